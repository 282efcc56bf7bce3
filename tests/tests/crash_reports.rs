//! Crash reports of `cordon serve`, as the server writes them while it is confined and `cordon report` reads
//! them.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Output};

use cordon_cli::crash::CrashReport;
use cordon_cli::event::{Event, ProcessKind};
use cordon_tests::serve::Serve;
use cordon_tests::vfio_user::words;
use cordon_tests::{Simulator, copy_program, program, signal};
use cordon_vfio_user::protocol::command::SET_IRQS;
use rustix::process::Signal;

const PROBE: &str = "01:00.1";
const REPORTS: usize = 16;

fn start(simulator: &Simulator, folder: &Path) -> Serve {
    Serve::start_with(simulator, &[PROBE], |command| {
        command.arg("--crash-reports").arg(folder);
    })
}

/// Reports in a folder, by the number of the death.
fn reports(folder: &Path) -> Vec<CrashReport> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.map(|path| std::fs::read_to_string(path).unwrap());
    let written = texts.filter(|text| !text.is_empty());
    let mut all: Vec<_> = written.map(|text| CrashReport::read(&text).unwrap()).collect();
    all.sort_by(|one, other| one.time.cmp(&other.time));
    all
}

fn kill_function(serve: &Serve, pid: u32) -> u32 {
    signal(pid, Signal::KILL);
    match serve.until(|event| event.name() == "recovered") {
        Event::Recovered { process, .. } => process,
        other => panic!("{other}"),
    }
}

fn first(serve: &Serve) -> (u32, u32) {
    match serve.has_seen(|event| event.name() == "listening") {
        Event::Listening { function_process, connection_process, .. } => {
            (function_process, connection_process)
        }
        other => panic!("{other}"),
    }
}

fn report(file: &Path) -> Output {
    Command::new(program("cordon")).arg("report").arg(file).output().unwrap()
}

#[test]
fn a_death_is_reported_with_what_led_to_it_and_no_data() {
    let (simulator, folder) = (Simulator::usual(), tempfile::tempdir().unwrap());
    let mut serve = start(&simulator, folder.path());
    let (function, connection) = first(&serve);
    let mut client = serve.client(PROBE);
    client.master_bus();
    for _ in 0..100 {
        client.write(0, 0x10, &0x5ec2_e7d1_u32.to_le_bytes());
    }
    kill_function(&serve, function);
    signal(connection, Signal::KILL);
    serve.until(|event| event.name() == "back");
    drop(client);
    assert!(serve.end(Signal::TERM).0.success());
    let all = reports(folder.path());
    let of = |kind: ProcessKind| all.iter().find(|one| one.of == kind).unwrap();
    let (died, lost) = (of(ProcessKind::Function), of(ProcessKind::Connection));
    assert_eq!((died.death.process, died.generation), (function, 0));
    assert_eq!((lost.death.process, lost.generation), (connection, 0));
    assert_eq!(died.death.signal.as_deref(), Some("SIGKILL"));
    assert_eq!(died.requests.len(), 64);
    let last = died.requests.last().unwrap();
    assert_eq!((last.name.as_str(), last.bar, last.offset), ("BarWrite", Some(0), Some(0x10)));
    assert_eq!(last.bytes, Some(4));
    assert!(
        died.requests.is_sorted_by(|one, other| one.microseconds_ago >= other.microseconds_ago)
    );
    assert!(lost.requests.iter().any(|one| one.name == "Attach"), "{:?}", lost.requests);
    for one in [died, lost] {
        assert!(
            one.sandbox.iter().any(|layer| layer.name == "seccomp" && layer.state == "enforced")
        );
        assert!(one.syscalls > 5);
        let text = serde_json::to_string(one).unwrap();
        for data in [0x5ec2_e7d1_u32.to_string(), "5ec2e7d1".to_owned(), "d1e7c25e".to_owned()] {
            assert!(!text.contains(&data), "{text}");
        }
    }
    let written = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let shown: Vec<String> = written
        .filter(|path| std::fs::metadata(path).unwrap().len() > 0)
        .map(|path| {
            let shown = report(&path);
            assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
            String::from_utf8(shown.stdout).unwrap()
        })
        .collect();
    let head = format!("function process {function} of {PROBE} died at ");
    let shown = shown.iter().find(|text| text.starts_with(&head)).unwrap();
    assert!(shown.contains("ended: by SIGKILL, from outside"), "{shown}");
    assert_eq!(shown.matches("before: BarWrite BAR 0 0x10, 4 bytes").count(), 64, "{shown}");
}

/// A server that keeps reports in `folder`, and whose processes are attackers: each does what a file in `programs` says.
fn attacked(simulator: &Simulator, folder: &Path, programs: &Path) -> Serve {
    let attacker = programs.join("device-proc");
    copy_program("attacker", &attacker);
    Serve::start_with(simulator, &[PROBE], |command| {
        command.arg("--crash-reports").arg(folder).arg("--device-proc").arg(&attacker);
    })
}

#[test]
fn the_name_of_a_forbidden_call_is_told_as_the_word_of_the_process() {
    let (simulator, folder) = (Simulator::usual(), tempfile::tempdir().unwrap());
    let programs = tempfile::tempdir().unwrap();
    let mut serve = attacked(&simulator, folder.path(), programs.path());
    let mut client = serve.client(PROBE);
    client.master_bus();
    // The next process duplicates descriptors at its first request.
    let attack = programs.path().join("attack");
    std::fs::write(&attack, format!("{PROBE} function takes-descriptors")).unwrap();
    let pid = kill_function(&serve, first(&serve).0);
    std::fs::remove_file(&attack).unwrap();
    client.write(0, 0x10, &7u32.to_le_bytes());
    let died =
        |event: &Event| matches!(event, Event::FunctionDied { death, .. } if death.process == pid);
    let Event::FunctionDied { death, .. } = serve.until(died) else { unreachable!() };
    assert_eq!((death.signal.as_deref(), death.from_outside), (Some("SIGSYS"), false));
    assert_eq!(death.claimed_call.as_deref(), Some("fcntl"), "{death:?}");
    serve.until(|event| event.name() == "recovered");
    client.still_works();
    drop(client);
    assert!(serve.end(Signal::TERM).0.success());
    let all = reports(folder.path());
    // One more for each process that died in the same way before the attack was taken away.
    let [killed, forbidden @ ..] = &all[..] else { panic!("{all:?}") };
    assert_eq!(killed.death.claimed_call, None, "{killed:?}");
    assert!(!forbidden.is_empty(), "{all:?}");
    for report in forbidden {
        assert_eq!(report.death.claimed_call.as_deref(), Some("fcntl"));
        assert!(report.to_string().contains("ended: by SIGSYS, by its own word over fcntl\n"));
    }
}

#[test]
fn a_process_that_dies_while_it_takes_the_place_of_another_is_told_with_its_last_words() {
    let (simulator, folder) = (Simulator::usual(), tempfile::tempdir().unwrap());
    let programs = tempfile::tempdir().unwrap();
    let mut serve = attacked(&simulator, folder.path(), programs.path());
    let mut client = serve.client(PROBE);
    client.master_bus();
    // What is set up in every process that takes over, before it serves.
    let event = ipc::Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    let install = words(&[20, 0x24, 2, 0, 1]);
    assert_eq!(client.ask(SET_IRQS, &install, &[signaller.as_fd()]).error, 0);
    // Every process from here on duplicates descriptors as soon as it is asked for anything.
    let attack = programs.path().join("attack");
    std::fs::write(&attack, format!("{PROBE} function takes-descriptors")).unwrap();
    signal(first(&serve).0, Signal::KILL);
    let by_itself =
        |event: &Event| matches!(event, Event::FunctionDied { death, .. } if !death.from_outside);
    let Event::FunctionDied { death, .. } = serve.until(by_itself) else { unreachable!() };
    assert_eq!(death.signal.as_deref(), Some("SIGSYS"), "{death:?}");
    assert_eq!(death.claimed_call.as_deref(), Some("fcntl"), "{death:?}");
    assert_eq!(death.last_request.as_deref(), Some("Interrupts"), "{death:?}");
    std::fs::remove_file(&attack).unwrap();
    serve.until(|event| event.name() == "recovered");
    client.still_works();
    drop(client);
    assert!(serve.end(Signal::TERM).0.success());
    let all = reports(folder.path());
    let report = all.iter().find(|report| report.death.process == death.process).unwrap();
    assert_eq!((&report.death, report.generation), (&death, 0));
    assert_eq!(report.requests.last().unwrap().name, "Interrupts", "{report}");
}

#[test]
fn there_are_so_many_reports_and_the_oldest_gives_way() {
    let (simulator, folder) = (Simulator::usual(), tempfile::tempdir().unwrap());
    let mut serve = start(&simulator, folder.path());
    let mut pid = first(&serve).0;
    for _ in 0..REPORTS + 4 {
        pid = kill_function(&serve, pid);
    }
    assert!(serve.end(Signal::TERM).0.success());
    let generations =
        || -> Vec<u64> { reports(folder.path()).iter().map(|report| report.generation).collect() };
    assert_eq!(generations(), (4..REPORTS as u64 + 4).collect::<Vec<_>>());
    // Another server goes on with the oldest.
    let mut serve = start(&simulator, folder.path());
    kill_function(&serve, first(&serve).0);
    assert!(serve.end(Signal::TERM).0.success());
    let mut expected: Vec<u64> = (5..REPORTS as u64 + 4).collect();
    expected.push(0);
    assert_eq!(generations(), expected);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), REPORTS);
}

#[test]
fn what_is_no_report_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let long = "x".repeat((64 << 10) + 1);
    for (text, why) in [
        ("", "is empty"),
        ("garbage", "no crash report"),
        ("{\"type\":\"cordon-crash-report\",\"vers", "cut short"),
        ("{\"type\":\"cordon-crash-report\",\"version\":99}", "of version 99"),
        ("{\"type\":\"other\",\"version\":1}", "no crash report"),
        (&long, "longer than any crash report"),
    ] {
        std::fs::write(&file, text).unwrap();
        let said = report(&file);
        let errors = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{errors}");
        assert!(errors.contains(why) && errors.contains("file: "), "{errors}");
        assert!(errors.lines().count() == 1 && said.stdout.is_empty(), "{errors}");
    }
    let none = report(Path::new("/no/such/report"));
    assert!(String::from_utf8_lossy(&none.stderr).contains("/no/such/report: No such file"));
}

#[test]
fn a_folder_that_cannot_be_used_is_an_error_before_anything_starts() {
    let simulator = Simulator::usual();
    let folder = tempfile::tempdir().unwrap();
    let mut command = cordon_tests::serve::command(&simulator, folder.path(), &[PROBE]);
    let refused = command.args(["--crash-reports", "/no/such/folder"]).output().unwrap();
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("--crash-reports /no/such/folder: it cannot be made: No such file"),
        "{errors}"
    );
    assert!(refused.stdout.is_empty());
}
