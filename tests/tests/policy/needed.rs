//! Rows that are used only where something is out of the ordinary: each is made to be used, by the role that
//! has it, in a process that is traced. What ordinary suites use is seen by `cargo xtask trace`.

use cordon_tests::trace::{Clock, OUT_OF_THE_ORDINARY, Seen, Tracer};
use cordon_tests::{Simulator, Vmm, bin_dir, config, eventually, signal};
use cordon_vmm::child::ExitStatus;
use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, HostConfig, PassthroughDevice as _};
use ipc::SharedMemory;
use ipc::event::Signaller;
use ipc::wire::function::InterruptIndex;
use rustix::event::EventfdFlags;
use rustix::process::Signal;

use crate::{tries, try_one_of};

/// As the suites start processes, but traced.
fn traced(tracer: &Tracer, simulator: &Simulator) -> HostConfig {
    let mut config = config(simulator);
    config.device_proc = tracer.folder().join("device-proc");
    config
}

/// Whether a call was seen of a role, by a row that begins so.
fn used(seen: &Seen, role: &str, row: &str) -> bool {
    seen.rows.iter().any(|used| used.role == role && used.what.starts_with(row))
}

#[test]
fn the_clock_is_a_call_where_the_vdso_has_none() {
    for (clock, expected) in [(Clock::ByCall, true), (Clock::AsItIs, false)] {
        let simulator = Simulator::usual();
        let tracer = Tracer::start(bin_dir(), clock);
        let vmm = Vmm::new(traced(&tracer, &simulator), DmaMode::Direct);
        let probe = vmm.attach("01:00.1");
        let mut bytes = [0; 4];
        probe.bar_read(0, 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"PRBE");
        drop(probe);
        drop(vmm);
        let seen = tracer.seen();
        assert!(seen.forbidden.is_empty(), "{:?}", seen.forbidden);
        assert!(seen.processes >= 2 && seen.calls > 20, "{seen:?}");
        // Where the machine's own clock is such a one, it is seen in any case.
        for role in ["connection", "function"] {
            let used = used(&seen, role, "clock_gettime(0 is 0x1)");
            assert!(used || !expected, "{role}: {:?}", seen.rows);
        }
    }
}

/// The letter of a process's state.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_wait_goes_on_after_a_stop_without_another_call() {
    let simulator = Simulator::usual();
    let tracer = Tracer::start(bin_dir(), Clock::AsItIs);
    for config in [config(&simulator), traced(&tracer, &simulator)] {
        let vmm = Vmm::new(config, DmaMode::Direct);
        let probe = vmm.attach("01:00.1");
        let pids = [probe.pid(), probe.connection().pid()];
        for _ in 0..5 {
            // It waits, and is stopped in that.
            assert!(eventually(|| pids.iter().all(|pid| state(*pid) == Some('S'))));
            pids.iter().for_each(|pid| signal(*pid, Signal::STOP));
            assert!(eventually(|| pids.iter().all(|pid| state(*pid) == Some('T'))));
            pids.iter().for_each(|pid| signal(*pid, Signal::CONT));
            assert!(eventually(|| pids.iter().all(|pid| state(*pid) == Some('S'))));
        }
        let mut bytes = [0; 4];
        probe.bar_read(0, 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"PRBE");
        assert_eq!(pids, [probe.pid(), probe.connection().pid()], "the same processes");
    }
    let seen = tracer.seen();
    assert!(seen.forbidden.is_empty() && used(&seen, "function", "ppoll("), "{seen:?}");
}

#[test]
fn a_handler_that_interrupts_a_signal_comes_back() {
    let simulator = Simulator::usual();
    let tracer = Tracer::start(bin_dir(), Clock::AsItIs);
    let vmm = Vmm::new(traced(&tracer, &simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    // A VMM's own, which it has block, and which is full.
    let full = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let signallers = vec![Some(Signaller::from_trusted(full))];
    let setup = InterruptSetup::Assign { start: 0, signallers };
    probe.set_interrupts(InterruptIndex::Msix, setup).unwrap();
    let trigger = InterruptSetup::Trigger { start: 0, count: 1 };
    probe.set_interrupts(InterruptIndex::Msix, trigger).unwrap();
    let seen = tracer.seen();
    for row in ["rt_sigreturn()", "timer_settime(1 is 0x0, 3 is 0x0)"] {
        assert!(used(&seen, "function", row), "{row}: {:?}", seen.rows);
    }
    assert!(seen.forbidden.is_empty(), "{:?}", seen.forbidden);
}

#[test]
fn guest_memory_that_the_device_may_not_write_is_mapped_to_be_read() {
    let simulator = Simulator::usual();
    let tracer = Tracer::start(bin_dir(), Clock::AsItIs);
    let vmm = Vmm::new(traced(&tracer, &simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let row = "mmap(0 is 0x0, 2 is 0x1, 3 is 0x1)";
    assert!(!used(&tracer.seen(), "connection", row));
    let size = 1 << 20;
    let memory = SharedMemory::create("rom", size).unwrap().into();
    let region = GuestRegion { iova: 0x1_0000_0000, size, memory, offset: 0, writable: false };
    vmm.container.map(region).unwrap();
    assert!(used(&tracer.seen(), "connection", row), "{:?}", tracer.seen().rows);
    drop(probe);
}

#[test]
fn a_later_process_shows_only_what_was_not_seen_before() {
    let simulator = Simulator::usual();
    let tracer = Tracer::start(bin_dir(), Clock::AsItIs);
    let mut shown = Vec::new();
    for _ in 0..2 {
        let before = tracer.seen();
        let vmm = Vmm::new(traced(&tracer, &simulator), DmaMode::Direct);
        let probe = vmm.attach("01:00.1");
        for _ in 0..200 {
            probe.bar_read(0, 0, &mut [0; 4]).unwrap();
        }
        drop(probe);
        drop(vmm);
        let seen = tracer.seen();
        assert_eq!(seen.processes, before.processes + 2);
        shown.push((seen.calls - before.calls, seen.rows));
    }
    let [(first, rows), (second, again)] = &shown[..] else { unreachable!() };
    assert!(second * 10 < *first, "{first} calls were shown, then {second}");
    assert!(again.is_superset(rows) && tracer.seen().forbidden.is_empty());
    assert!(used(&tracer.seen(), "function", "exit_group("), "what comes last is seen too");
}

#[test]
fn a_call_that_no_row_allows_is_seen_and_ends_its_process() {
    let tracer = Tracer::start(bin_dir(), Clock::AsItIs);
    let probe = tracer.stand_in("sandbox-probe");
    let of =
        |begins: &str| tries("function").iter().position(|one| one.starts_with(begins)).unwrap();
    for (begins, exit, forbidden) in [
        ("works: mmap(", ExitStatus::Code(99), 0),
        ("refused: mmap(", ExitStatus::Signal(libc::SIGKILL), 1),
    ] {
        let death = try_one_of(&probe, "function", of(begins));
        assert_eq!(death.exit, exit, "{death}");
        let seen = tracer.seen();
        assert!(used(&seen, "function", "mmap("), "{seen:?}");
        assert_eq!(seen.forbidden.len(), forbidden, "{seen:?}");
    }
}

#[test]
fn what_the_suites_do_not_use_is_used_by_a_test_here() {
    for (row, test) in OUT_OF_THE_ORDINARY {
        assert!(include_str!("needed.rs").contains(&format!("fn {test}()")), "{row}: {test}");
    }
}
