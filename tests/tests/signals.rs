//! SIGINT, SIGTERM and SIGHUP at any moment: every process and folder is gone, and what was done is
//! told.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cordon_tests::processes::{closes_within, end_by_hangup, full_pipe, processes_of};
use cordon_tests::stopwatch::Stopwatch;
use cordon_tests::{announce, bin_dir, eventually, program, signal};
use rustix::process::Signal;
use serde_json::Value;

const SIGNALS: [(Signal, i32, &str); 3] =
    [(Signal::INT, 2, "SIGINT"), (Signal::TERM, 15, "SIGTERM"), (Signal::HUP, 1, "SIGHUP")];

/// A command with a folder for temporary files of its own, which all its processes are told of.
struct Run {
    child: Child,
    folder: tempfile::TempDir,
}

impl Run {
    fn start(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("cordon"));
        command.args(arguments).env("TMPDIR", folder.path());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        end_by_hangup(&mut command);
        change(&mut command);
        Self { child: command.spawn().unwrap(), folder }
    }

    /// Waits for it to end, and not for ever.
    fn ends(&mut self) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it did not end: {:?}", processes_of(self.folder.path()));
            std::thread::sleep(Duration::from_millis(2));
        }
        self.child.wait().unwrap()
    }

    fn assert_nothing_left(&self, when: &str) {
        assert_nothing_left(self.folder.path(), when);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_nothing_left(folder: &Path, when: &str) {
    let gone = eventually(|| processes_of(folder).is_empty());
    assert!(gone, "{when}: {:?}", processes_of(folder));
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(files.is_empty(), "{when}: {files:?}");
}

/// Whether a signal ended it, before or after it was ready for one; it may also have been done.
fn was_interrupted(status: ExitStatus, number: i32, when: &str) -> bool {
    let by_itself = status.code() == Some(128 + number) || status.signal() == Some(number);
    assert!(by_itself || status.success(), "{when}: {status}");
    by_itself
}

#[test]
fn a_demo_that_is_interrupted_at_any_step_leaves_nothing() {
    let _ = bin_dir();
    let mut interrupted = 0;
    for step in 1..=13 {
        let (with, number, _) = SIGNALS[step % SIGNALS.len()];
        let mut run = Run::start(&["demo", "--json"], |_| {});
        let output = BufReader::new(run.child.stdout.take().unwrap());
        let mut steps = 0;
        for line in output.lines().map_while(Result::ok) {
            let value: Value = serde_json::from_str(&line).unwrap();
            steps += usize::from(!value["step"].is_null());
            if steps == step && !value["step"].is_null() {
                signal(run.child.id(), with);
            }
        }
        let when = format!("{with:?} at step {step}");
        let status = run.ends();
        interrupted += usize::from(was_interrupted(status, number, &when));
        run.assert_nothing_left(&when);
    }
    assert!(interrupted >= 11, "{interrupted} of 13");
}

#[test]
fn a_demo_that_is_interrupted_at_any_moment_leaves_nothing() {
    let _ = bin_dir();
    let mut interrupted = 0;
    let moments: Vec<u64> = (0..12).map(|number| number * number * 8).collect();
    for (at, &ms) in moments.iter().enumerate() {
        let (with, number, _) = SIGNALS[at % SIGNALS.len()];
        let mut run = Run::start(&["demo"], |command| {
            command.stdout(Stdio::null());
        });
        std::thread::sleep(Duration::from_millis(ms));
        signal(run.child.id(), with);
        let when = format!("{with:?} after {ms} ms");
        let status = run.ends();
        interrupted += usize::from(was_interrupted(status, number, &when));
        run.assert_nothing_left(&when);
    }
    assert!(interrupted >= 8, "{interrupted} of {}", moments.len());
}

#[test]
fn ctrl_c_reaches_the_whole_foreground_and_leaves_nothing() {
    let _ = bin_dir();
    for ms in [50, 300, 700] {
        let mut run = Run::start(&["demo"], |command| {
            command.stdout(Stdio::null()).process_group(0);
        });
        std::thread::sleep(Duration::from_millis(ms));
        let group = rustix::process::Pid::from_child(&run.child);
        rustix::process::kill_process_group(group, Signal::INT).unwrap();
        let status = run.ends();
        was_interrupted(status, 2, "Ctrl-C");
        run.assert_nothing_left(&format!("Ctrl-C after {ms} ms"));
    }
}

/// Starts a torture and waits until it has struck a few times.
fn torture_under_way() -> Run {
    let mut run = Run::start(&["torture", "--json", "--kills", "1000000"], |command| {
        command.stderr(Stdio::piped()).env("RUST_LOG", "warn");
    });
    let errors = BufReader::new(run.child.stderr.take().unwrap());
    let (sender, struck) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in errors.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    for _ in 0..5 {
        let said = struck.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(said.contains("died (signal 9)"), "{said}");
    }
    run
}

#[test]
fn an_interrupted_torture_tells_what_it_did() {
    let _ = bin_dir();
    for (with, number, name) in SIGNALS {
        let mut run = torture_under_way();
        signal(run.child.id(), with);
        let mut text = String::new();
        run.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = run.ends();
        assert_eq!(status.code(), Some(128 + number), "{text}");
        let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(summary["interrupted"], name);
        assert_eq!(summary["kills_asked_for"], 1_000_000);
        assert!(summary["kills"].as_u64().unwrap() >= 5, "{summary}");
        assert_eq!(summary["recoveries"], summary["kills"]);
        for zero in ["corrupt_bytes", "io_errors", "lost_interrupts", "leaked"] {
            assert_eq!(summary[zero], 0, "{zero}: {text}");
        }
        run.assert_nothing_left(&format!("{with:?}"));
        announce(&format!("torture, {with:?}: {summary}"));
    }
}

#[test]
fn a_torture_that_is_interrupted_at_any_moment_leaves_nothing() {
    let _ = bin_dir();
    for (at, ms) in [0, 10, 30, 60, 100, 200, 400].into_iter().enumerate() {
        let (with, number, _) = SIGNALS[at % SIGNALS.len()];
        let mut run = Run::start(&["torture", "--kills", "1000000", "--standby"], |command| {
            command.stdout(Stdio::null());
        });
        std::thread::sleep(Duration::from_millis(ms));
        signal(run.child.id(), with);
        let when = format!("{with:?} after {ms} ms");
        let status = run.ends();
        assert!(was_interrupted(status, number, &when), "{when}: {status}");
        run.assert_nothing_left(&when);
    }
}

#[test]
fn a_demo_whose_dext_does_not_answer_ends_all_the_same() {
    let _ = bin_dir();
    let mut run = Run::start(&["demo", "--json"], |_| {});
    let mut output = BufReader::new(run.child.stdout.take().unwrap()).lines();
    let dext = loop {
        let value: Value = serde_json::from_str(&output.next().unwrap().unwrap()).unwrap();
        if value["process"] == "dext-sim" {
            break u32::try_from(value["pid"].as_u64().unwrap()).unwrap();
        }
    };
    signal(dext, Signal::STOP);
    signal(run.child.id(), Signal::TERM);
    let status = run.ends();
    assert_eq!(status.code(), Some(143));
    run.assert_nothing_left("a stopped dext");
}

#[test]
fn a_second_signal_ends_at_once_what_the_first_one_does_not() {
    let _ = bin_dir();
    let mut run = torture_under_way();
    let processes = processes_of(run.folder.path());
    let (dext, _) = processes.iter().find(|(_, line)| line.contains("--exit-with-stdin")).unwrap();
    signal(*dext, Signal::STOP);
    signal(run.child.id(), Signal::TERM);
    // It would wait for what it struck last, for up to ten seconds.
    std::thread::sleep(Duration::from_millis(300));
    assert!(run.child.try_wait().unwrap().is_none());
    let output = run.child.stdout.take().unwrap();
    let stopwatch = Stopwatch::start();
    signal(run.child.id(), Signal::TERM);
    assert!(closes_within(&output, Duration::from_secs(60)));
    let taken = stopwatch.stop();
    assert!(taken < Duration::from_secs(3), "{taken:?}");
    let status = run.ends();
    assert_eq!(status.code(), Some(143));
    run.assert_nothing_left("a second signal");
}

#[test]
fn whoever_does_not_read_cannot_hold_up_the_end() {
    let _ = bin_dir();
    for arguments in [&["demo"][..], &["torture", "--kills", "3"]] {
        let (_reader, output) = full_pipe();
        let (_errors_reader, errors) = full_pipe();
        let mut run = Run::start(arguments, |command| {
            command.stdout(output).stderr(errors);
        });
        // The first line cannot be written, so it does not get any further.
        std::thread::sleep(Duration::from_millis(300));
        assert!(run.child.try_wait().unwrap().is_none());
        signal(run.child.id(), Signal::TERM);
        let status = run.ends();
        assert!([Some(143), Some(74)].contains(&status.code()), "{arguments:?}: {status}");
        run.assert_nothing_left("an unread pipe");
    }
}
