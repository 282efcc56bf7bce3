//! `cordon ctl upgrade`: functions of a running `cordon serve` are served by another program, which comes as a
//! descriptor; clients notice nothing, and a program that is no good changes nothing.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_cli::event::Event;
use cordon_cli::protocol::{Served, ServerInfo, Upgrade};
use cordon_tests::serve::Serve;
use cordon_tests::vfio_user::Client;
use cordon_tests::{
    SetAtEnd, Simulator, announce, children, copy_program, eventually, program, signal,
    write_script,
};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Region of config space.
const CONFIG: u32 = 7;
/// The probe's registers, and a scratch register among them.
const REGISTERS: (u32, u64) = (2, 0x100);

const DEVICES: [&str; 2] = ["01:00.0", "01:00.1"];

struct Setup {
    simulator: Simulator,
    serve: Serve,
    folder: tempfile::TempDir,
}

impl Setup {
    fn new(change: impl FnOnce(&mut Command)) -> Self {
        let simulator = Simulator::usual();
        let folder = tempfile::tempdir().unwrap();
        let serve = Serve::start_with(&simulator, &DEVICES, change);
        let setup = Self { simulator, serve, folder };
        // Two builds: a program ends where its header says.
        for (build, last) in [("old", b"1"), ("new", b"2")] {
            let path = setup.build(build);
            copy_program("device-proc", &path);
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            file.write_all(last).unwrap();
        }
        setup
    }

    fn build(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Status, standard output and standard error of `cordon ctl --json`.
    fn ctl(&self, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let mut command = Command::new(program("cordon"));
        command.args(["ctl", "--json", "--control"]).arg(self.serve.control()).args(arguments);
        let output = command.output().unwrap();
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), value, String::from_utf8(output.stderr).unwrap())
    }

    fn done<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let (status, value, errors) = self.ctl(arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {errors}");
        serde_json::from_value(value).unwrap()
    }

    fn upgrade(&self, program: &Path, more: &[&str]) -> Upgrade {
        let path = program.to_str().unwrap();
        self.done(&[&["upgrade", "--program", path], more].concat())
    }

    /// Why an upgrade is refused.
    fn refused(&self, program: &Path) -> String {
        let (status, value, errors) =
            self.ctl(&["upgrade", "--program", program.to_str().unwrap()]);
        assert_eq!(status, Some(1), "{value}");
        errors
    }

    fn inspect(&self, device: &str) -> Served {
        self.done(&["inspect", device])
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = children(self.serve.pid());
        all.sort_unstable();
        all
    }
}

/// The program that a process runs.
fn runs(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// Writes and reads back by trapped accesses until it is told to end; how often, and how long the longest took.
fn work(client: &mut Client, ended: &AtomicBool) -> (u64, Duration) {
    let (mut number, mut longest) = (0u64, Duration::ZERO);
    // COMMAND: memory space and bus mastering.
    client.write(CONFIG, 4, &6u16.to_le_bytes());
    let (region, offset) = REGISTERS;
    while !ended.load(Ordering::Relaxed) {
        number += 1;
        let begun = Instant::now();
        client.write(region, offset, &number.to_le_bytes());
        let read = client.read(region, offset, 8);
        longest = longest.max(begun.elapsed());
        assert_eq!(read, number.to_le_bytes());
    }
    (number, longest)
}

#[test]
fn fifty_upgrades_between_two_builds_are_invisible_to_a_client() {
    let setup = Setup::new(|_| {});
    let mut client = setup.serve.client("01:00.1");
    let connection = setup.inspect("01:00.1").connection_process;
    let ended = AtomicBool::new(false);
    let mut took = Vec::new();
    let (accesses, longest) = std::thread::scope(|scope| {
        let ends = SetAtEnd(&ended);
        let (client, ended) = (&mut client, &ended);
        let worker = scope.spawn(move || work(client, ended));
        for round in 0..50u32 {
            let build = setup.build(if round % 2 == 0 { "new" } else { "old" });
            let upgraded = setup.upgrade(&build, &[]);
            assert_eq!((upgraded.functions.len(), upgraded.connections), (2, 0));
            assert_eq!(upgraded.left, DEVICES, "connection processes go on");
            for one in &upgraded.functions {
                assert_eq!(runs(one.process), build, "round {round}");
                took.push(one.microseconds);
                setup.serve.until(|event| matches!(event, Event::Upgraded { process, .. } if *process == one.process));
            }
        }
        drop(ends);
        worker.join().unwrap()
    });
    for device in DEVICES {
        let seen = setup.inspect(device);
        assert_eq!((seen.upgrades, seen.replacements, seen.returns), (50, 0, 0));
        assert_eq!((seen.program.as_str(), seen.connection_program.as_str()), ("50", "original"));
        assert_eq!(seen.connection_process, connection);
    }
    assert_eq!(setup.processes().len(), 4, "a spawner, a connection and two function processes");
    took.sort_unstable();
    announce(&format!(
        "live update: {} us median, {} us at most, of {} take-overs; the longest of {accesses} \
         verified accesses of a vfio-user client meanwhile took {longest:?}",
        took[took.len() / 2],
        took[took.len() - 1],
        took.len()
    ));
    assert!(accesses > 100, "{accesses}");
    // What comes in the place of a process that dies is of the program that it was.
    let pid = setup.inspect("01:00.1").function_process;
    signal(pid, Signal::KILL);
    assert!(eventually(|| setup.inspect("01:00.1").replacements == 1));
    assert_eq!(runs(setup.inspect("01:00.1").function_process), setup.build("old"));
    // A roll-back.
    let back: Upgrade = setup.done(&["upgrade", "--original"]);
    assert_eq!((back.program.as_str(), back.functions.len()), ("original", 2));
    assert_eq!(runs(back.functions[0].process), program("device-proc"));
    assert!(back.left.is_empty(), "{:?}", back.left);
    client.still_works();
}

#[test]
fn a_program_that_is_no_good_changes_nothing() {
    let setup = Setup::new(|_| {});
    let mut client = setup.serve.client("01:00.1");
    let before = setup.processes();
    let path = |name: &str| setup.folder.path().join(name);
    let with_mode = |name: &str, mode| {
        std::fs::copy(setup.build("new"), path(name)).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        path(name)
    };
    write_script(&path("script"), "#!/bin/sh\nexit 0\n");
    std::fs::write(path("text"), "text").unwrap();
    std::fs::set_permissions(path("text"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::from_raw_mode(0o755))
        .unwrap();
    for (file, says) in [
        (path("missing"), "cannot open the program"),
        (path("socket"), "cannot open the program"),
        (path("pipe"), "no regular file"),
        (setup.folder.path().to_owned(), "no regular file"),
        (with_mode("plain", 0o644), "not executable"),
        (with_mode("of-all", 0o777), "others may write it"),
        (with_mode("as-another", 0o4755), "set-user-id"),
        (path("text"), "no program for this machine"),
        (path("script"), "01:00.0 cannot be served by the other program"),
        (PathBuf::from("/bin/true"), "01:00.0 cannot be served by the other program"),
        (program("cordon"), "01:00.0 cannot be served by the other program"),
    ] {
        let why = setup.refused(&file);
        assert!(why.contains(says), "{}: {why}", file.display());
        assert_eq!(why.lines().filter(|line| !line.contains("WARN")).count(), 1, "{why}");
        client.still_works();
    }
    assert!(eventually(|| setup.processes() == before), "{before:?} {:?}", setup.processes());
    for device in DEVICES {
        let seen = setup.inspect(device);
        assert_eq!((seen.upgrades, seen.replacements, seen.program.as_str()), (0, 0, "original"));
    }
    // Nothing of them is kept, so there is room for one that is good.
    assert_eq!(setup.upgrade(&setup.build("new"), &[]).functions.len(), 2);
    client.still_works();
}

#[test]
fn connection_processes_are_replaced_when_their_device_is_detached_or_on_request() {
    let setup = Setup::new(|command| {
        command.args(["--windows", "trapped"]);
    });
    let mut client = setup.serve.client("01:00.1");
    let identity = client.read(CONFIG, 0, 4);
    let upgraded = setup.upgrade(&setup.build("new"), &[]);
    assert_eq!(upgraded.left, DEVICES);
    let seen = setup.inspect("01:00.1");
    assert_eq!(seen.next_connection_program.as_deref(), Some("1"));
    assert_eq!(runs(seen.connection_process), program("device-proc"));
    // On request, which is told as what it is to guests.
    let upgraded = setup.upgrade(&setup.build("old"), &["--connections"]);
    assert_eq!((upgraded.connections, upgraded.left.len()), (1, 0));
    for name in ["away", "back"] {
        let of = |device: &'static str| {
            move |event: &Event| event.name() == name && event.to_string().starts_with(device)
        };
        let told = setup.serve.until(of("01:00.1"));
        assert!(name == "back" || told.to_string().contains("another program"), "{told}");
    }
    let seen = setup.inspect("01:00.1");
    assert_eq!((seen.returns, seen.next_connection_program), (1, None));
    assert_eq!((seen.program.as_str(), seen.connection_program.as_str()), ("2", "2"));
    for pid in [seen.function_process, seen.connection_process] {
        assert_eq!(runs(pid), setup.build("old"));
    }
    assert_eq!(client.read(CONFIG, 0, 4), identity);
    // With the last function of its device.
    setup.upgrade(&setup.build("new"), &[]);
    DEVICES.iter().for_each(|device| drop(setup.done::<Value>(&["detach", device])));
    DEVICES.iter().for_each(|device| drop(setup.done::<Value>(&["attach", device])));
    let seen = setup.inspect("01:00.1");
    assert_eq!(runs(seen.connection_process), setup.build("new"));
    assert_eq!(setup.serve.client("01:00.1").read(CONFIG, 0, 4), identity);
    assert_eq!(setup.processes().len(), 4);
}

#[test]
fn the_original_program_stays_what_it_was_when_its_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let installed = folder.path().join("device-proc");
    copy_program("device-proc", &installed);
    let setup = Setup::new(|command| {
        command.arg("--device-proc").arg(&installed);
    });
    let mut client = setup.serve.client("01:00.1");
    setup.upgrade(&setup.build("new"), &[]);
    // A package is installed over it, and is no good.
    write_script(&folder.path().join("other"), "#!/bin/sh\nexit 1\n");
    std::fs::rename(folder.path().join("other"), &installed).unwrap();
    let back: Upgrade = setup.done(&["upgrade", "--original"]);
    assert_eq!(back.functions.len(), 2);
    let is_it = |pid: u32| runs(pid).to_string_lossy().ends_with("device-proc (deleted)");
    assert!(is_it(back.functions[1].process), "{:?}", runs(back.functions[1].process));
    signal(setup.inspect("01:00.1").function_process, Signal::KILL);
    assert!(eventually(|| setup.inspect("01:00.1").replacements == 1));
    assert!(is_it(setup.inspect("01:00.1").function_process));
    client.still_works();
}

#[test]
fn an_upgrade_without_a_program_takes_what_was_installed_since_the_server_started() {
    let folder = tempfile::tempdir().unwrap();
    let installed = folder.path().join("device-proc");
    copy_program("device-proc", &installed);
    // By a path that means something in the folder that it is started in only.
    let setup = Setup::new(|command| {
        command.current_dir(folder.path()).args(["--device-proc", "./device-proc"]);
    });
    let mut client = setup.serve.client("01:00.1");
    let server: ServerInfo = setup.done(&["inspect"]);
    assert_eq!(server.device_proc.as_deref(), installed.to_str());
    // Nothing was installed: it is the program that it has.
    let same: Upgrade = setup.done(&["upgrade"]);
    assert_eq!((same.program.as_str(), same.functions.len()), ("original", 2));
    // A package is installed over it, as dpkg does: beside, and renamed.
    let package = |build: &str| {
        let new = folder.path().join("device-proc.dpkg-new");
        std::fs::copy(setup.build(build), &new).unwrap();
        std::fs::rename(new, &installed).unwrap();
    };
    let is_of = |build: &str, pid: u32| {
        let running = std::fs::read(format!("/proc/{pid}/exe")).unwrap();
        running == std::fs::read(setup.build(build)).unwrap()
    };
    for build in ["new", "old"] {
        package(build);
        let upgraded: Upgrade = setup.done(&["upgrade"]);
        assert_ne!(upgraded.program, "original");
        assert!(upgraded.functions.iter().all(|one| is_of(build, one.process)), "{build}");
        client.still_works();
    }
    // And back, to what is in no folder any more.
    let back: Upgrade = setup.done(&["upgrade", "--original"]);
    assert_eq!(back.program, "original");
    assert!(runs(back.functions[0].process).to_string_lossy().ends_with("device-proc (deleted)"));
    // What is installed and is no good changes nothing, and what is not there is named.
    write_script(&folder.path().join("other"), "#!/bin/sh\nexit 1\n");
    std::fs::rename(folder.path().join("other"), &installed).unwrap();
    let (status, _, errors) = setup.ctl(&["upgrade"]);
    assert_eq!(status, Some(1));
    assert!(errors.contains("01:00.0 cannot be served by the other program"), "{errors}");
    std::fs::remove_file(&installed).unwrap();
    let (status, _, errors) = setup.ctl(&["upgrade"]);
    assert_eq!(status, Some(1));
    let missing = format!("cannot open the program {}: ", installed.display());
    assert!(errors.contains(&missing), "{errors}");
    client.still_works();
}

#[test]
fn standbys_are_of_the_program_that_serves_and_one_upgrade_is_done_at_a_time() {
    let setup = Setup::new(|command| {
        command.arg("--standby");
    });
    let mut client = setup.serve.client("01:00.1");
    let new = setup.build("new");
    let arguments = ["ctl", "--json", "upgrade", "--program", new.to_str().unwrap(), "--control"];
    let asked: Vec<_> = (0..6)
        .map(|_| {
            let mut command = Command::new(program("cordon"));
            command.args(arguments).arg(setup.serve.control());
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let codes: Vec<Value> = asked
        .into_iter()
        .map(|child| serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let done = codes.iter().filter(|one| one["type"] == "upgraded").count();
    assert!(
        done >= 1 && codes.iter().all(|one| one["type"] == "upgraded" || one["code"] == "busy"),
        "{codes:?}"
    );
    assert!(eventually(|| setup.inspect("01:00.1").standby));
    signal(setup.inspect("01:00.1").function_process, Signal::KILL);
    assert!(eventually(|| setup.inspect("01:00.1").replacements == 1));
    assert_eq!(runs(setup.inspect("01:00.1").function_process), setup.build("new"));
    client.still_works();
}

#[test]
fn without_a_function_there_is_nothing_to_try_a_program_with() {
    let setup = Setup::new(|_| {});
    DEVICES.iter().for_each(|device| drop(setup.done::<Value>(&["detach", device])));
    assert!(setup.refused(&setup.build("new")).contains("no function is attached"));
    for device in DEVICES {
        setup.simulator.assert_released(device);
    }
}
