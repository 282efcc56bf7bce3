//! Trapped accesses of several threads at once, through the deaths of the process that serves them.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cordon_tests::{SetAtEnd, Simulator, Vmm, announce, config, eventually, signal};
use cordon_vmm::{Deadlines, DmaMode, Function, PassthroughDevice as _, Recovery};
use ipc::lane::SLOTS;
use rustix::process::Signal;

/// A scratch word of the probe device for each thread.
fn word(thread: usize) -> u64 {
    0x10 + 4 * thread as u64
}

/// Writes and reads back until `done`; how often.
fn work(function: &Function, thread: usize, done: &AtomicBool, count: &AtomicU64) {
    let mut number = 0u32;
    while !done.load(Ordering::Acquire) {
        number = number.wrapping_add(1);
        function.bar_write(0, word(thread), &number.to_le_bytes()).unwrap();
        let mut read = [0; 4];
        function.bar_read(0, word(thread), &mut read).unwrap();
        assert_eq!(u32::from_le_bytes(read), number, "thread {thread}");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// More threads than the lane has slots, so that some go by the tube.
fn through(vmm: &Vmm, strike: impl Fn(&Arc<Function>)) {
    let probe = vmm.attach("01:00.0");
    let (done, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&done);
        for thread in 0..SLOTS + 2 {
            let (probe, done, count) = (&probe, &done, &count);
            scope.spawn(move || work(probe, thread, done, count));
        }
        for _ in 0..10 {
            let before = count.load(Ordering::Relaxed);
            assert!(eventually(|| count.load(Ordering::Relaxed) > before + 200));
            let replaced = probe.replacements();
            strike(&probe);
            assert!(eventually(|| probe.replacements() > replaced));
        }
        drop(ends);
    });
    let pairs = count.load(Ordering::Relaxed);
    announce(&format!("{pairs} writes read back, 10 processes replaced"));
    vmm.host.detach(&probe);
}

#[test]
fn threads_that_trap_at_once_get_their_own_answers_through_kills() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let recovering = config(&simulator).with_recovery(Recovery::default());
    let vmm = Vmm::new(recovering, DmaMode::Direct);
    through(&vmm, |probe| signal(probe.pid(), Signal::KILL));
}

#[test]
fn threads_that_trap_at_once_get_their_own_answers_through_stops() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let mut deadlines = Deadlines::default();
    deadlines.call = Duration::from_millis(300);
    let recovering =
        config(&simulator).with_recovery(Recovery::default()).with_deadlines(deadlines);
    let vmm = Vmm::new(recovering, DmaMode::Direct);
    through(&vmm, |probe| signal(probe.pid(), Signal::STOP));
}

#[test]
fn with_a_standby_too() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let recovering = config(&simulator).with_recovery(Recovery::default().with_standby(true));
    let vmm = Vmm::new(recovering, DmaMode::Direct);
    through(&vmm, |probe| signal(probe.pid(), Signal::KILL));
}

#[test]
fn an_error_in_the_lane_says_what_and_why() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.0");
    let error = probe.bar_read(0, 1 << 40, &mut [0; 4]).unwrap_err();
    assert_eq!(error.errno(), 22);
    assert!(error.to_string().contains("01:00.0: BAR 0: Access of 4 bytes at 0x10000000000"));
    let unaligned = probe.bar_read(0, 2, &mut [0; 4]).unwrap_err();
    assert!(unaligned.to_string().contains("not aligned"), "{unaligned}");
    let none = probe.bar_read(5, 0, &mut [0; 4]).unwrap_err();
    assert!(none.to_string().contains("BAR 5 is not mapped"), "{none}");
}
