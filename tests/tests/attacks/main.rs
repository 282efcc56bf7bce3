//! Everybody who is not trusted attacks, in the real sandbox where it has one, while a function of somebody
//! else's works: verified I/O, whose errors and 99th percentile are part of each verdict, as is what our side
//! holds meanwhile and afterwards. One line for each attack, and one over all.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod client;
mod dext;
mod group;
mod guest;
mod ledger;
mod neighbour;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cordon_tests::{RAM, RAM_BASE, Simulator, address, program};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::{Container, Deadlines, DmaMode, Function, Host, HostConfig, Recovery};
use ipc::{Access, SharedMemory, Window};

/// A function of the attacker's device whose guest is another: it shares the connection process.
const SIBLING: &str = "01:00.0";
/// The attacker's.
const ATTACKER: &str = "01:00.1";
/// A function of another device.
const OTHER: &str = "02:00.0";

/// Three probes.
fn simulator() -> Simulator {
    let devices = [SIBLING, ATTACKER, OTHER].map(|device| format!("--device={device}=probe"));
    Simulator::start(&devices.each_ref().map(String::as_str))
}

/// A VMM whose processes are those of the program `attacker`.
struct Attackers {
    host: Host,
    folder: tempfile::TempDir,
}

impl Attackers {
    fn new(dext: &str, recovery: Recovery) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at: PathBuf = folder.path().join("device-proc");
        std::os::unix::fs::symlink(program("attacker"), &at).unwrap();
        let mut deadlines = Deadlines::default();
        deadlines.start = Duration::from_secs(3);
        deadlines.call = Duration::from_secs(2);
        deadlines.silence = Duration::from_millis(300);
        let config = HostConfig::new(&at, dext).with_recovery(recovery).with_deadlines(deadlines);
        Self { host: Host::new(config), folder }
    }

    /// From here on processes of the attacker's function attack so, in this role. Behind the name there may be
    /// files of control groups that it enters first.
    fn attack(&self, role: &str, name: &str) {
        let text = format!("{ATTACKER} {role} {name}");
        std::fs::write(self.folder.path().join("attack"), text).unwrap();
    }
}

/// A guest's memory.
struct Guest {
    container: Arc<Container>,
    ram: Arc<Window>,
}

impl Guest {
    fn new(mode: DmaMode) -> Self {
        let memory = SharedMemory::create("guest-ram", RAM).unwrap();
        let ram = Arc::new(memory.map_all(Access::ReadWrite).unwrap());
        let container = Arc::new(Container::new(mode));
        let (iova, size, offset, writable) = (RAM_BASE, RAM, 0, true);
        let region = GuestRegion { iova, size, memory: memory.into(), offset, writable };
        container.map(region).unwrap();
        Self { container, ram }
    }

    fn attach(&self, host: &Host, function: &str) -> Arc<Function> {
        host.attach(address(function), &self.container, None).unwrap()
    }
}

/// The same numbers every time: an attack that found something is found again.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1 << 60;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Whether the system itself says of a process that it is confined.
fn is_confined(pid: u32) -> Result<(), String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX")) {
        return Ok(());
    }
    for needed in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        if !status.lines().any(|line| line == needed) {
            return Err(format!("process {pid} attacks without {needed:?}"));
        }
    }
    let space = |of: &str, kind: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
    for kind in ["user", "pid", "mnt", "net"] {
        if space(&pid.to_string(), kind) == space("self", kind) {
            return Err(format!("process {pid} attacks in our own {kind} namespace"));
        }
    }
    Ok(())
}

#[test]
fn every_attack_is_held_and_no_neighbour_notices() {
    // Not behind what the test runner has begun to say.
    cordon_tests::verdict("");
    let mut ledger = ledger::Ledger::default();
    process::attacks(&mut ledger);
    guest::attacks(&mut ledger);
    client::attacks(&mut ledger);
    dext::attacks(&mut ledger);
    ledger.close();
}
