//! A guest does not notice that the processes behind its disk are replaced by those of another build, and back.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cordon_cli::protocol::{Served, Upgrade};
use cordon_tests::machine::Guest;
use cordon_tests::{Simulator, announce, copy_program, eventually, program};
use serde::de::DeserializeOwned;

use crate::serve::Serve;

const DISK: &str = "01:00.0";
const UPGRADES: u64 = 50;

/// What `cordon ctl` is answered.
fn ctl<T: DeserializeOwned>(control: &Path, arguments: &[&str]) -> T {
    let mut command = Command::new(program("cordon"));
    command.args(["ctl", "--json", "--control"]).arg(control).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Two builds of the program: a program ends where its header says, and what follows is the build's.
fn builds(folder: &Path) -> [PathBuf; 2] {
    ["old", "new"].map(|build| {
        let path = folder.join(build);
        copy_program("device-proc", &path);
        std::fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(build.as_bytes())
            .unwrap();
        path
    })
}

/// What the guest said of its load: bytes, accesses, the longest access, and the longest one before.
fn said(guest: &Guest) -> (u64, u64, Duration, Duration) {
    let line = guest.seen.iter().find_map(|line| line.split_once("replaced: "));
    let line =
        line.unwrap_or_else(|| panic!("the guest does not say how it was: {:#?}", guest.seen)).1;
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [bytes, accesses, longest, before] = numbers[..] else { panic!("{line}") };
    (bytes, accesses, Duration::from_millis(longest), Duration::from_millis(before))
}

#[test]
fn fifty_upgrades_between_two_builds_are_invisible_to_a_guest_under_io() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let folder = tempfile::tempdir().unwrap();
    let builds = builds(folder.path());
    let serve = Serve::start_with(&simulator, &[DISK], |command, directory| {
        command.arg("--standby").arg("--control").arg(directory.join("control"));
    });
    let control = serve.socket("control");
    let port = folder.path().join("port");
    let port_option = format!("unix:{},server=on,wait=off", port.display());
    let more = ["-no-reboot", "-serial", &port_option];
    let mut guest = Guest::boot("replaced", "q35", &[serve.socket(DISK)], &more);
    let mut tell = None;
    assert!(eventually(|| {
        tell = UnixStream::connect(&port).ok();
        tell.is_some()
    }));
    guest.says("GUEST-BUSY");
    let connection = ctl::<Served>(&control, &["inspect", DISK]).connection_process;
    let mut longest_take_over = Duration::ZERO;
    for round in 0..UPGRADES {
        let build = &builds[usize::from(round % 2 == 0)];
        let upgraded: Upgrade = ctl(&control, &["upgrade", "--program", build.to_str().unwrap()]);
        let [one] = &upgraded.functions[..] else { panic!("{upgraded:?}") };
        let runs = std::fs::read_link(format!("/proc/{}/exe", one.process)).unwrap();
        assert_eq!(runs, *build, "round {round}");
        longest_take_over = longest_take_over.max(Duration::from_micros(one.microseconds));
        assert!(!guest.has_said("GUEST-"), "it ended after {round}");
    }
    let seen: Served = ctl(&control, &["inspect", DISK]);
    assert_eq!((seen.upgrades, seen.replacements, seen.returns), (UPGRADES, 0, 0));
    assert_eq!(seen.connection_process, connection, "the claim and DMA are held by who held them");
    tell.unwrap().write_all(b"over\n").unwrap();
    guest.passes("replaced");
    guest.ends();
    let (bytes, accesses, longest, before) = said(&guest);
    announce(&format!(
        "upgrades under a guest: {UPGRADES}, longest access {} ms, {bytes} bytes verified; the longest \
         take-over {} ms, of {accesses} accesses; the longest access without upgrades {} ms",
        longest.as_millis(),
        longest_take_over.as_millis(),
        before.as_millis()
    ));
    assert!(bytes > 1 << 20 && accesses > 50, "{bytes} {accesses}");
    // An access waits for one take-over; what is beyond that the guest's own processors take, too, when nothing
    // is replaced.
    let allowed = longest_take_over + (2 * before).max(Duration::from_millis(500));
    assert!(longest < allowed, "{longest:?} of {allowed:?}");
    serve.stop_after_its_guest(&simulator);
}
