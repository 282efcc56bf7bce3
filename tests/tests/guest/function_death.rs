//! A guest does not notice that function processes die.

use std::time::{Duration, Instant};

use cordon_tests::{Simulator, announce, signal};
use rustix::process::Signal;

use crate::serve::{Serve, process};
use cordon_tests::machine::Guest;

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
    serve.stop_after_its_guest(&simulator);
}

#[test]
fn a_stopped_function_process_is_a_short_stall_though_the_guest_traps_nothing() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start_with(&simulator, &["01:00.0"], |command, directory| {
        command.arg("--control").arg(directory.join("control"));
    });
    let mut guest = Guest::boot("stalled", "q35", &[serve.socket("01:00.0")], &["-no-reboot"]);
    guest.says("GUEST-BUSY");
    let mut noticed = Vec::new();
    for number in 1..=3u64 {
        std::thread::sleep(Duration::from_millis(1500));
        signal(process(serve.child.id(), "function", "01:00.0").unwrap(), Signal::STOP);
        let before = Instant::now();
        while serve.inspect(&simulator, "01:00.0")["replacements"] != number {
            assert!(before.elapsed() < Duration::from_secs(5), "the stop was not noticed");
        }
        noticed.push(before.elapsed());
    }
    guest.passes("stalled");
    let longest = guest.longest_request();
    guest.ends();
    // Found by the sign of life alone: had the guest trapped anything, the process would have been
    // overdue with that.
    let said = serve.errors.lock().unwrap().join("\n");
    let found = said.matches("did not give a sign of life").count();
    assert_eq!(found, noticed.len(), "{said}");
    announce(&format!("guest: stops noticed after {noticed:?}, its longest request {longest:?}"));
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    serve.stop_after_its_guest(&simulator);
}

/// The shared memory that a process has mapped, and where.
fn shared_memory(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.contains("memfd:")).map(str::to_owned).collect()
}
