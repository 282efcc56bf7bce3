//! Output that cannot be written ends a command with an exit status of its own, and nothing else: no
//! panic, no message, nothing left.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::fs::File;
use std::process::{Command, Output, Stdio};

use cordon_tests::processes::processes_of;
use cordon_tests::{Simulator, eventually, program};

/// The status of a command whose output cannot be written, as `--help` says.
const UNWRITTEN: i32 = 74;

/// Where nothing can be written: a disk that is full, and a pipe whose reader is gone.
fn nowhere() -> [Stdio; 2] {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    [File::options().write(true).open("/dev/full").unwrap().into(), File::from(writer).into()]
}

fn with_output(name: &str, arguments: &[&str], output: Stdio) -> (Output, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program(name));
    command.args(arguments).env("TMPDIR", folder.path()).stdin(Stdio::null());
    (command.stdout(output).stderr(Stdio::piped()).output().unwrap(), folder)
}

#[test]
fn every_command_says_by_its_status_that_its_output_is_lost() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let socket = tempfile::tempdir().unwrap();
    let socket = format!("--socket={}", socket.path().join("dext").display());
    let commands: &[(&str, &[&str])] = &[
        ("cordon", &["--help"]),
        ("cordon", &["--version"]),
        ("cordon", &["help", "serve"]),
        ("cordon", &["devices", &dext]),
        ("cordon", &["devices", &dext, "--json"]),
        ("cordon", &["inspect", "01:00.0", &dext]),
        ("cordon", &["inspect", "01:00.0", &dext, "--json"]),
        ("cordon", &["inspect", "01:00.0", &dext, "--attach"]),
        ("cordon", &["doctor"]),
        ("cordon", &["doctor", &dext]),
        ("cordon", &["doctor", "--mac-bringup"]),
        ("cordon", &["demo"]),
        ("cordon", &["demo", "--json"]),
        ("cordon", &["torture", "--kills", "3"]),
        ("cordon", &["torture", "--kills", "3", "--json"]),
        ("dext-sim", &["--help"]),
        ("dext-sim", &["--device=01:00.0=probe", &socket]),
        ("device-proc", &["--help"]),
        ("device-proc", &["doctor"]),
        ("sandbox-probe", &["list"]),
        ("xtask", &["--help"]),
    ];
    for (name, arguments) in commands {
        for output in nowhere() {
            let (ended, folder) = with_output(name, arguments, output);
            let errors = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(UNWRITTEN), "{name} {arguments:?}: {errors}");
            assert_eq!(errors, "", "{name} {arguments:?}");
            let gone = eventually(|| processes_of(folder.path()).is_empty());
            assert!(gone, "{name} {arguments:?}: {:?}", processes_of(folder.path()));
            let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
            assert!(files.is_empty(), "{name} {arguments:?}: {files:?}");
        }
    }
    simulator.assert_released("01:00.0");
}

#[test]
fn a_message_that_cannot_be_written_changes_no_status() {
    for (arguments, status) in
        [(&["devices", "--dext=sim:/nonexistent/dext"][..], 1), (&["devices"], 2)]
    {
        for errors in nowhere() {
            let mut command = Command::new(program("cordon"));
            command.args(arguments).env_remove("CORDON_DEXT").stdout(Stdio::null()).stderr(errors);
            assert_eq!(command.status().unwrap().code(), Some(status), "{arguments:?}");
        }
    }
}

#[test]
fn help_says_what_the_statuses_mean() {
    for (name, arguments) in [
        ("cordon", &["--help"][..]),
        ("cordon", &["devices", "--help"]),
        ("cordon", &["inspect", "--help"]),
        ("cordon", &["doctor", "--help"]),
        ("cordon", &["demo", "--help"]),
        ("cordon", &["torture", "--help"]),
        ("cordon", &["serve", "--help"]),
        ("cordon", &["ctl", "--help"]),
        ("dext-sim", &["--help"]),
    ] {
        let help = Command::new(program(name)).args(arguments).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("Exit status:") && help.contains("74"), "{name} {arguments:?}");
        let (serves, asks) = (arguments[0] == "serve", arguments[0] == "ctl");
        assert_eq!(help.contains("   69  "), serves || asks, "{name} {arguments:?}");
        assert_eq!(help.contains("   70  "), serves, "{name} {arguments:?}");
    }
}
