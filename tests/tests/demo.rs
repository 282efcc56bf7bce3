//! `cordon demo`, as a person runs it, and with each of its processes killed at any time.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cordon_tests::{announce, bin_dir, eventually, is_running, program, signal};
use rustix::process::Signal;
use serde_json::Value;

fn demo(arguments: &[&str]) -> (bool, Value, String) {
    let output =
        Command::new(program("cordon")).args(["demo", "--json"]).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), last.unwrap_or_default(), errors)
}

fn assert_summary(summary: &Value) {
    assert_eq!(summary["ok"], true);
    assert_eq!(summary["functions"], 2);
    assert_eq!(summary["connection_processes"], 1);
    assert_eq!(summary["leftovers"], 0);
    assert!(summary["bytes_verified"].as_u64().unwrap() >= 64 << 20);
    assert_eq!(summary["bytes_mapped_on_demand"], 1 << 20);
    for (function, vectors) in [("01:00.0", 5), ("01:00.1", 32)] {
        let interrupts = summary["interrupts"][function].as_array().unwrap();
        assert_eq!(interrupts.len(), vectors);
        assert!(interrupts.iter().all(|count| count.as_u64().unwrap() > 0));
    }
    let sandbox = &summary["sandbox"];
    assert_eq!(sandbox["tried"], sandbox["refused"]);
    assert!(sandbox["tried"].as_u64().unwrap() >= 50);
    assert!(sandbox["syscalls_function"].as_u64().unwrap() <= 24);
}

#[test]
fn every_step_holds() {
    let _ = bin_dir();
    let before = Instant::now();
    let (ok, summary, errors) = demo(&[]);
    assert!(ok, "{errors}");
    // The death that it causes is told once, where it says so.
    assert_eq!(errors, "");
    assert_summary(&summary);
    assert!(before.elapsed() < Duration::from_secs(30));
}

#[test]
fn an_ext4_image_reads_as_the_file_and_does_not_change() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
    // mkfs.ext4 is part of Debian's base system (e2fsprogs), in /sbin.
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&image)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status()
        .expect("mkfs.ext4 of the package e2fsprogs");
    assert!(made.success());
    let before = std::fs::read(&image).unwrap();
    let (ok, summary, errors) = demo(&["--image", image.to_str().unwrap()]);
    assert!(ok, "{errors}");
    assert_summary(&summary);
    assert!(std::fs::read(&image).unwrap() == before, "the image changed");
}

#[test]
fn an_image_that_cannot_be_used_is_named() {
    for image in ["/nonexistent.img", "/dev/null"] {
        let (ok, _, errors) = demo(&["--image", image]);
        assert!(!ok);
        assert!(errors.contains(image), "{errors}");
    }
}

/// Runs a torture in which nothing may be lost; what it printed, line by line.
fn torture(kills: u64, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(program("cordon"))
        .args(["torture", "--seed", "7", "--json", "--kills", &kills.to_string()])
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.last().unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(summary["kills"], kills);
    for zero in ["corrupt_bytes", "io_errors", "lost_interrupts", "leaked"] {
        assert_eq!(summary[zero], 0, "{zero}: {text}");
    }
    announce(&format!("torture {arguments:?}: {summary}"));
    lines
}

#[test]
fn a_torture_of_500_kills_loses_corrupts_and_leaks_nothing() {
    let lines = torture(500, &[]);
    assert_eq!(lines.last().unwrap()["recoveries"], 500);
}

#[test]
fn nor_does_one_with_a_standby() {
    let lines = torture(100, &["--standby"]);
    assert_eq!(lines.last().unwrap()["recoveries"], 100);
}

#[test]
fn nor_does_one_of_stops_hangs_and_nonsense_with_a_plan() {
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("plan.json");
    let faults = serde_json::json!({ "faults": [
        { "process": "function", "device": "01:00.1", "request": "BarWrite", "nth": 30,
          "when": "during", "what": "kill" },
        { "process": "function", "request": "BarRead", "nth": 60, "when": "before",
          "after-ms": 2, "what": "stop" },
        { "process": "function", "request": "BarRead", "nth": 1_000_000, "when": "after",
          "what": "garbage" },
    ] });
    std::fs::write(&plan, faults.to_string()).unwrap();
    let with = "--with=kill,stop,hang,garbage,truncated,closed";
    let lines = torture(40, &[with, "--plan", plan.to_str().unwrap()]);
    let fired = |line: &Value| line.get("fault").map(|report| !report["fired"].is_null());
    let fired: Vec<bool> = lines.iter().filter_map(fired).collect();
    assert_eq!(fired, [true, true, false]);
}

/// Of a torture whose victims are others than function processes too: each death is answered, and the load goes on.
fn removals(lines: &[Value]) -> (u64, u64) {
    let summary = lines.last().unwrap();
    let number = |of: &Value| of.as_u64().unwrap();
    let victims = &summary["victims"];
    let removed = number(&victims["connection"]) + number(&victims["dext"]);
    assert!(number(&summary["returns"]) >= 2 * removed, "{summary}");
    assert!(number(&summary["interruptions"]) >= removed, "the load noticed none: {summary}");
    assert!(number(&summary["recoveries"]) >= number(&victims["function"]), "{summary}");
    assert_eq!(removed + number(&victims["function"]), number(&summary["kills"]));
    (number(&victims["connection"]), number(&victims["dext"]))
}

#[test]
fn deaths_of_connection_process_and_dext_are_removals_that_the_load_survives() {
    let lines = torture(60, &["--kill=function=4,connection=2,dext=1"]);
    let (connection, dext) = removals(&lines);
    assert!(connection > 0 && dext > 0, "{:?}", lines.last());
}

#[test]
fn a_connection_process_may_do_anything_wrong() {
    let with = "--with=kill,freeze,stop,hang,garbage,truncated,closed";
    let lines = torture(20, &["--kill=connection", with]);
    assert_eq!(removals(&lines), (20, 0));
}

#[test]
fn what_is_frozen_is_found_by_its_silence() {
    let lines = torture(6, &["--kill=function,connection", "--with=freeze"]);
    assert!(removals(&lines).0 < 6, "both are struck");
}

#[test]
fn victims_that_cannot_be_are_named() {
    for (arguments, why) in [
        (&["--kill=vmm"][..], "function, connection or dext"),
        (&["--kill=function=0"], "a weight from 1 to 1000"),
        (
            &["--kill=dext", "--with=kill,freeze"],
            "A dext can only be killed, not struck --with freeze",
        ),
    ] {
        let output =
            Command::new(program("cordon")).arg("torture").args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(why), "{arguments:?}: {errors}");
    }
}

#[test]
fn the_grammar_of_faults_is_in_the_help_of_what_takes_them() {
    for command in ["torture", "serve"] {
        let help = Command::new(program("cordon")).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for line in cordon_vmm::faults::GRAMMAR.lines().filter(|line| !line.is_empty()) {
            let shown = help.lines().any(|shown| shown.trim() == line.trim());
            assert!(shown, "{command}: {line}: {help}");
        }
    }
}

/// Every fault plan that the documentation shows, with the file that shows it.
fn documented_plans() -> Vec<(&'static str, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut plans = Vec::new();
    for file in ["README.md", "ARCHITECTURE.md", "vmm-side/src/faults/mod.rs"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let plain: Vec<&str> =
            text.lines().map(|line| line.strip_prefix("//!").unwrap_or(line)).collect();
        let plain = plain.join("\n");
        let blocks = plain.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        plans.extend(
            blocks
                .filter(|block| block.contains("\"faults\""))
                .map(|block| (file, block.to_owned())),
        );
    }
    plans
}

#[test]
fn every_plan_and_fault_that_the_documentation_shows_runs_and_fires() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plan.json");
    let plans = documented_plans();
    let files: Vec<&str> = plans.iter().map(|(file, _)| *file).collect();
    assert!(
        ["ARCHITECTURE.md", "vmm-side/src/faults/mod.rs"].iter().all(|one| files.contains(one))
    );
    for (file, plan) in plans {
        std::fs::write(&path, &plan).unwrap();
        let lines = torture(20, &["--plan", path.to_str().unwrap()]);
        let reports: Vec<&Value> = lines.iter().filter_map(|line| line.get("fault")).collect();
        let planned: Value = serde_json::from_str(&plan).unwrap();
        assert_eq!(reports.len(), planned["faults"].as_array().unwrap().len(), "{file}");
        assert!(reports.iter().all(|report| !report["fired"].is_null()), "{file}: {reports:?}");
    }
    let help = Command::new(program("cordon")).args(["torture", "--help"]).output().unwrap();
    let help =
        String::from_utf8(help.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let fault = help.split("A fault, as ").nth(1).unwrap().split(';').next().unwrap();
    let lines = torture(20, &["--fault", fault]);
    let report = lines.iter().find_map(|line| line.get("fault")).unwrap();
    assert!(!report["fired"].is_null(), "{fault}: {report}");
}

#[test]
fn plans_that_cannot_be_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("plan.json");
    for (text, why) in [
        ("{", "is no fault plan"),
        (r#"{"faults":[{"process":"vmm","when":"before","what":"kill"}]}"#, "unknown variant"),
        (r#"{"faults":[{"process":"function","when":"before","what":"kill","x":1}]}"#, "`x`"),
        (
            r#"{"faults":[{"process":"function","request":"Fly","when":"before","what":"kill"}]}"#,
            "no request Fly",
        ),
        (
            r#"{"faults":[{"process":"connection","when":"before","what":"kill"}]}"#,
            "--kill connection strikes under load",
        ),
        (
            r#"{"faults":[{"process":"connection","when":"before","what":{"delay":600}}]}"#,
            "longer than 600 ms",
        ),
        (
            r#"{"faults":[{"process":"function","when":"after","what":{"selector":{"selector":8,
               "code":1}}}]}"#,
            "an I/O error",
        ),
    ] {
        std::fs::write(&plan, text).unwrap();
        let output = Command::new(program("cordon"))
            .args(["torture", "--kills", "1", "--plan"])
            .arg(&plan)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(why), "{text}: {errors}");
    }
}

/// Runs the demo with `folder` for temporary files and kills the process called `victim` once `step`
/// has begun; how it ended and which processes it had.
fn killed_at(victim: &str, step: usize, folder: &Path) -> (bool, Vec<u32>) {
    let mut child = Command::new(program("cordon"))
        .args(["demo", "--json"])
        .env("TMPDIR", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pids = vec![("cordon".to_owned(), child.id())];
    let mut steps = 0;
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Ok(line) = line else { break };
        let value: Value = match serde_json::from_str(&line) {
            Ok(value) => value,
            // What it was writing when it was killed.
            Err(_) if killed => break,
            Err(error) => panic!("{error}: {line}"),
        };
        if let (Some(name), Some(pid)) = (value["process"].as_str(), value["pid"].as_u64()) {
            pids.push((name.to_owned(), u32::try_from(pid).unwrap()));
        }
        steps += usize::from(!value["step"].is_null());
        let target = pids.iter().find(|(name, _)| name == victim);
        if steps >= step
            && !killed
            && let Some((_, pid)) = target
        {
            if is_running(*pid) {
                signal(*pid, Signal::KILL);
            }
            killed = true;
        }
    }
    let ended = eventually(|| child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(ended, "killing {victim} at step {step} hung the demo");
    (status.success(), pids.into_iter().map(|(_, pid)| pid).collect())
}

#[test]
fn killing_any_process_at_any_step_never_hangs_the_demo_and_leaves_nothing() {
    let _ = bin_dir();
    let mut failed = 0;
    for victim in ["cordon", "dext-sim", "connection", "function 01:00.0", "function 01:00.1"] {
        for step in 1..=13 {
            let folder = tempfile::tempdir().unwrap();
            let (ok, pids) = killed_at(victim, step, folder.path());
            failed += usize::from(!ok);
            let gone = eventually(|| pids.iter().all(|pid| !is_running(*pid)));
            assert!(gone, "{victim} at {step} left processes");
            // Nobody is there to remove its own folder when it is killed itself.
            if victim != "cordon" {
                let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
                assert!(left.is_empty(), "{victim} at {step} left {left:?}");
            }
        }
    }
    // The kills were real: most of them end the demo early.
    assert!(failed > 25, "{failed}");
}
