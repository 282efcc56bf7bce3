//! `cargo xtask guest` cleans up after itself, whatever ends it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cordon_tests::processes::{end_by_hangup, processes_of};
use cordon_tests::{bin_dir, eventually, program, signal};
use rustix::process::Signal;

use cordon_tests::machine::prepared;

/// Starts `cargo xtask guest` with what was prepared, and a folder for temporary files of its own.
fn interactive(folder: &Path) -> Command {
    let mut command = Command::new(program("xtask"));
    command.arg("guest").env("CORDON_GUEST_DIR", prepared()).env("CORDON_BIN_DIR", bin_dir());
    // QEMU's monitor is on its standard input, which must not end.
    command.env("TMPDIR", folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    end_by_hangup(&mut command);
    command
}

#[test]
fn an_interactive_guest_that_is_interrupted_at_any_moment_leaves_nothing() {
    let moments = [0, 3, 10, 20, 40, 70, 100, 150, 250, 400, 800, 1500];
    let signals = [(Signal::TERM, 15), (Signal::HUP, 1), (Signal::INT, 2)];
    let mut started = 0;
    for (at, ms) in moments.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (with, number) = signals[at % signals.len()];
        let mut child = interactive(folder.path()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        started += usize::from(processes_of(folder.path()).len() > 3);
        signal(child.id(), with);
        let when = format!("{with:?} after {ms} ms");
        let ended = eventually(|| child.try_wait().unwrap().is_some());
        assert!(ended, "{when}: {:?}", processes_of(folder.path()));
        let status = child.wait().unwrap();
        let by_it = status.code() == Some(128 + number) || status.signal() == Some(number);
        assert!(by_it, "{when}: {status}");
        let gone = eventually(|| processes_of(folder.path()).is_empty());
        assert!(gone, "{when}: {:?}", processes_of(folder.path()));
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{when}: {left:?}");
    }
    // Some of it was while everything ran.
    assert!(started >= 2, "{started}");
}

#[test]
fn an_interactive_guest_that_ends_by_itself_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = interactive(folder.path()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = output.by_ref().map_while(Result::ok).find(|line| line.contains("PCI functions:"));
    assert!(found.is_some(), "the guest did not boot");
    child.stdin.as_mut().unwrap().write_all(b"poweroff -f\n").unwrap();
    output.map_while(Result::ok).for_each(drop);
    assert!(child.wait().unwrap().success());
    assert!(eventually(|| processes_of(folder.path()).is_empty()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
