//! A guest does not notice that function processes die.

use std::time::Duration;

use cordon_tests::{Simulator, announce, signal};
use rustix::process::Signal;

use crate::machine::Guest;
use crate::serve::{Serve, process};

#[test]
fn a_function_process_that_is_killed_every_200_ms_is_invisible_to_the_guest() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=128M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let mut guest = Guest::boot("hold", "q35", &[serve.socket("01:00.0")], &["-no-reboot"]);
    let qemu = guest.child.id();
    guest.says("GUEST-BUSY");
    let memory = shared_memory(qemu);
    assert!(memory.iter().any(|line| line.contains("memfd")), "{memory:?}");
    let mut kills = 0;
    // Until the guest says how it went.
    while !guest.has_said("GUEST-") {
        if let Some(pid) = process(serve.child.id(), "function", "01:00.0") {
            signal(pid, Signal::KILL);
            kills += 1;
        }
        // The same guest RAM and BAR windows at the same places, until QEMU ends.
        let now = shared_memory(qemu);
        assert!(now == memory || now.is_empty(), "{memory:?}, then {now:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    guest.passes("hold");
    assert_eq!(guest.child.id(), qemu);
    guest.ends();
    announce(&format!("guest: {kills} kills under its I/O, none seen"));
    assert!(kills > 50, "{kills}");
    let seen = serve.until("detach");
    assert!(seen.iter().all(|line| line["event"] != "given-up"), "{seen:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}

/// The shared memory that a process has mapped, and where.
fn shared_memory(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.contains("memfd:")).map(str::to_owned).collect()
}
