//! What `cordon` logs, as whoever runs it asks for it: levels, targets, text or JSON, and what is no filter.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::{Command, Output, Stdio};

use cordon_tests::processes::end_by_hangup;
use cordon_tests::vfio_user::Client;
use cordon_tests::{Simulator, eventually, program, serve, signal};
use rustix::process::Signal;
use serde_json::Value;

fn cordon(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program("cordon"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("CORDON_LOG");
    command.envs(variables.iter().copied()).output().unwrap()
}

/// What a server logs whose function process is killed once.
fn log_of_a_death(arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let mut command = serve::command(&simulator, folder.path(), &["01:00.1"]);
    command.args(["--fault", "function,request=BarRead,nth=1,when=before,kill"]).args(arguments);
    command.env_remove("RUST_LOG").env_remove("CORDON_LOG").envs(variables.iter().copied());
    end_by_hangup(&mut command);
    let serve = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(eventually(|| folder.path().join("control").exists()), "it does not start");
    let mut client = Client::negotiated(&folder.path().join("01:00.1"));
    client.master_bus();
    assert_eq!(client.read(0, 0, 4), b"PRBE");
    signal(serve.id(), Signal::TERM);
    let output = serve.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
}

/// Time and level of a line of text, and the rest.
fn parts(line: &str) -> (&str, &str, &str) {
    let (time, rest) = line.split_once(' ').unwrap();
    let (level, text) = rest.trim_start().split_once(' ').unwrap();
    assert!(time.len() == 27 && time.ends_with('Z'), "{line}");
    (time, level, text)
}

#[test]
fn lines_have_time_and_level_and_a_filter_says_which_there_are() {
    let lines = log_of_a_death(&[], &[]);
    let died = |text: &str| text.contains("function process of 01:00.1") && text.contains("died");
    assert!(lines.iter().any(|line| parts(line).1 == "WARN" && died(parts(line).2)), "{lines:?}");
    assert!(lines.iter().all(|line| parts(line).1 == "WARN"), "{lines:?}");
    assert!(lines.iter().map(|line| parts(line).0).is_sorted());
    // The option comes before the variable, and that before the other.
    let none = log_of_a_death(&["--log", "off"], &[("CORDON_LOG", "trace"), ("RUST_LOG", "trace")]);
    assert!(none.is_empty(), "{none:?}");
    let ours = log_of_a_death(&[], &[("CORDON_LOG", "cordon_vmm=warn"), ("RUST_LOG", "off")]);
    assert!(ours.iter().any(|line| died(line)), "{ours:?}");
    let debug = log_of_a_death(&[], &[("RUST_LOG", "debug")]);
    assert!(debug.iter().any(|line| parts(line).1 == "DEBUG"), "{debug:?}");
}

#[test]
fn as_json_every_line_is_an_object() {
    let lines = log_of_a_death(&["--log-format", "json"], &[]);
    let mut died = 0;
    for line in &lines {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(object["timestamp"].as_str().unwrap().len(), 27, "{line}");
        assert_eq!(object["level"], "WARN", "{line}");
        assert!(object["target"].as_str().unwrap().starts_with("cordon_vmm"), "{line}");
        died += usize::from(object["fields"]["message"].as_str().unwrap().contains("died"));
    }
    assert!(died >= 1, "{lines:?}");
    let failed = cordon(&["devices", "--dext=sim:/no/dext", "--log-format=json"], &[]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8(failed.stderr).unwrap();
    let object: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(
        object["fields"]["message"].as_str().unwrap().contains("No dext at sim:/no/dext"),
        "{said}"
    );
}

#[test]
fn what_is_no_filter_is_an_error_that_says_where_it_is_from() {
    let devices = ["devices", "--dext=sim:/no/dext"];
    for (option, variables, from) in [
        (Some("--log=loud"), vec![], "--log: 'loud'"),
        (Some("--log=a=b=c"), vec![], "--log: 'a=b=c'"),
        (None, vec![("CORDON_LOG", "warn,loud")], "CORDON_LOG: 'warn,loud'"),
        (None, vec![("RUST_LOG", "x=loud")], "RUST_LOG: 'x=loud'"),
    ] {
        let arguments: Vec<&str> = devices.into_iter().chain(option).collect();
        let refused = cordon(&arguments, &variables);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
        assert!(said.contains(from) && said.contains("is no filter of the log"), "{said}");
    }
    // An empty variable is none.
    let empty = cordon(&devices, &[("CORDON_LOG", ""), ("RUST_LOG", "")]);
    assert_eq!(empty.status.code(), Some(1));
}

#[test]
fn a_log_that_cannot_be_written_is_no_reason_to_fail() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    for format in ["text", "json"] {
        let mut command = Command::new(program("cordon"));
        command.args(["devices", &dext, "--log=trace", "--log-format", format]);
        command.stdout(Stdio::piped()).stderr(std::fs::File::from(writer.try_clone().unwrap()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        assert!(String::from_utf8_lossy(&output.stdout).contains("01:00.0"));
        // Not even open.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 2>&-", "sh"]).arg(program("cordon"));
        shell.args(["devices", &dext, "--log=trace", "--log-format", format]);
        let output = shell.stderr(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        assert!(String::from_utf8_lossy(&output.stdout).contains("01:00.0"));
    }
}
