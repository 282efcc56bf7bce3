//! The benches run and say what they are to say; no time is asserted.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;

use serde_json::Value;

/// Every row that there is.
const ROWS: [&str; 38] = [
    "trapped-bar-read",
    "trapped-bar-write",
    "trapped-bar-read-cold",
    "config-read",
    "1-threads-on-1-functions",
    "2-threads-on-1-functions",
    "4-threads-on-1-functions",
    "2-threads-on-2-functions",
    "4-threads-on-4-functions",
    "kept-config-read-linked",
    "kept-config-read-vfio-user",
    "window-load-x1000",
    "window-store-x1000",
    "serve-bar-read",
    "serve-bar-read-over-echo",
    "linked-bar-read",
    "interrupt",
    "companion-map-entry",
    "sibling-bar-read-during-batches",
    "spawn-to-ready",
    "function-process-private-memory",
    "device-proc-size",
    "call-with-8-functions",
    "call-with-64-functions",
    "threads-for-each-function",
    "memory-for-each-function",
    "idle-function-process-ns-a-second",
    "idle-function-process-wake-ups",
    "idle-connection-process-ns-a-second",
    "idle-connection-process-wake-ups",
    "idle-serve-ns-a-second",
    "idle-serve-wake-ups",
    "idle-vmm-threads-ns-a-second",
    "idle-vmm-threads-wake-ups",
    "recovery",
    "recovery-standby",
    "guest-nvme-random-read-4k",
    "guest-nvme-sequential-write-4k",
];

fn bench() -> Command {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.env("CORDON_BIN_DIR", cordon_tests::bin_dir());
    bench
}

/// The rows that a run printed, and its last line.
fn rows(bench: &mut Command) -> (Vec<Value>, Value) {
    let output = bench.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = lines.pop().unwrap();
    assert_eq!(sum["type"], "summary");
    assert!(lines.iter().all(|line| line["type"] == "row"), "{lines:?}");
    (lines, sum)
}

#[test]
fn every_row_is_measured_and_printed_and_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let svg = directory.path().join("bench.svg");
    let mut bench = bench();
    bench.env("CORDON_GUEST_DIR", cordon_tests::machine::prepared());
    bench.args(["--json", "--time", "60", "--svg"]).arg(&svg);
    let (rows, sum) = rows(&mut bench);
    assert_eq!(sum["rows"].as_u64().unwrap(), rows.len() as u64);
    let reached = rows.iter().filter(|row| row["ok"] == true).count();
    assert_eq!(sum["ok"].as_u64().unwrap(), reached as u64);
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ROWS);
    let drawn = std::fs::read_to_string(svg).unwrap();
    for row in &rows {
        for text in ["baseline", "bar", "unit"] {
            assert!(!row[text].as_str().unwrap().is_empty(), "{row}");
        }
        if let Some(why) = row["not_measured"].as_str() {
            // What only root may see of a confined process, and nothing else.
            let root = rustix::process::geteuid().is_root();
            assert!(!root && why.starts_with("smaps_rollup") && row["ok"] == false, "{row}");
            continue;
        }
        for number in ["median_ns", "p99_ns", "baseline_ns"] {
            assert!(row[number].as_u64().unwrap() > 0, "{row}");
        }
        assert!(row["ratio"].as_f64().is_some(), "{row}");
        let name = row["name"].as_str().unwrap();
        assert_eq!(drawn.contains(&format!("\n{name}\n")), row["unit"] == "ns", "{row}");
    }
}

#[test]
fn a_guest_that_there_is_not_is_two_red_rows_that_say_so() {
    let mut bench = bench();
    bench.env_remove("CORDON_GUEST_DIR").env("CORDON_GUEST_MISSING", "no mirror");
    let (rows, sum) = rows(bench.args(["--json", "--time", "60", "--only", "guest"]));
    assert_eq!(sum, serde_json::json!({ "type": "summary", "rows": 2, "ok": 0 }));
    for row in rows {
        assert_eq!(row["ok"], false);
        assert!(row["median_ns"].is_null() && row["ratio"].is_null(), "{row}");
        assert!(row["not_measured"].as_str().unwrap().ends_with("no mirror"), "{row}");
    }
}

#[test]
fn a_theme_that_is_none_is_refused_with_those_that_are() {
    let output = bench().args(["--only", "everything"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    let themes = "access, config, window, socket, interrupts, companion, start, scale, idle, \
                  recovery, guest";
    assert!(error.contains(themes), "{error}");
}
