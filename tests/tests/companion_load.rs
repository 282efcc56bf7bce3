//! A companion under load: interrupts and other guests go on while a doorbell is carried out, and a
//! guest is told the truth however slow the dext is and whoever dies.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_tests::companion::{Guest, PAGE};
use cordon_tests::{
    RAM_BASE, SetAtEnd, Simulator, Vmm, address, announce, config, eventually, is_running, signal,
};
use cordon_vmm::companion::{Companion, CompanionConfig, Layout, register};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, Function, HostConfig, PassthroughDevice as _, Recovery};
use ipc::wire::function::{Access, InterruptIndex, Space};
use ipc::{Deadline, Event};
use rustix::process::Signal;

const OK: u32 = 0;
const IO_ERROR: u32 = 1;
/// Memory to map: behind the rings.
const DATA: u64 = RAM_BASE + 0x10_0000;
/// The most that a batch has.
const MANY: u64 = 4096;
/// Calls of the dext that register, and that remove.
const REGISTER: u32 = 5;
const REMOVE: u32 = 6;

/// A write of the doorbell register.
const RING: Access =
    Access { space: Space::Bar(0), offset: register::DOORBELL, width: 4, write: true, value: 1 };

struct Setup {
    simulator: Simulator,
    vmm: Vmm,
    probe: Arc<Function>,
    companion: Arc<Companion>,
}

fn setup_with(change: impl FnOnce(&mut HostConfig)) -> Setup {
    let devices = ["--device=01:00.0=probe", "--device=01:00.1=probe", "--dart=strict"];
    let simulator = Simulator::start(&devices);
    let mut config = config(&simulator).with_recovery(Recovery::default());
    change(&mut config);
    let vmm = Vmm::new(config, DmaMode::Companion);
    let companion = CompanionConfig::new(address("00:05.0"));
    let attached =
        vmm.host.attach_with_companion(address("01:00.1"), &vmm.container, None, companion);
    let (probe, companion) = attached.unwrap();
    Setup { simulator, vmm, probe, companion }
}

fn setup() -> Setup {
    setup_with(|_| {})
}

impl Setup {
    fn guest(&self) -> Guest<'_> {
        Guest { companion: &*self.companion, ram: &self.vmm.ram, layout: Layout::Packed32 }
    }

    /// Registrations as the dext counts them.
    fn held(&self) -> u64 {
        self.simulator.held("01:00.1").2
    }

    fn live(&self) -> u64 {
        self.probe.connection().statistics(address("01:00.1")).unwrap().regions
    }

    /// The next calls of a selector take this long each, beginning with the `nth`.
    fn delay(&self, selector: u32, nth: u64, calls: u64, ms: u64) {
        self.simulator.fault(&format!("delay:selector={selector},nth={nth},calls={calls},ms={ms}"));
    }

    /// Whoever serves the function has never been replaced, and the device was never away.
    fn assert_undisturbed(&self) {
        assert_eq!((self.probe.replacements(), self.probe.returns()), (0, 0));
    }
}

fn ranges(count: u64) -> Vec<(u64, u64)> {
    (0..count).map(|number| (DATA + 16 * number, 16)).collect()
}

fn ids(ranges: &[(u64, u64)]) -> Vec<u64> {
    ranges.iter().map(|(address, _)| *address).collect()
}

/// How long something takes, many times.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// Which of them, of a hundred.
    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (count, max) = (self.0.len(), self.at(100));
        let (p50, p90, p99) = (self.at(50), self.at(90), self.at(99));
        write!(f, "p50 {p50:.2?}, p90 {p90:.2?}, p99 {p99:.2?}, max {max:.2?} of {count}")
    }
}

/// Has the probe fire a vector until `ended`, at least a few times; how long each signal took.
fn interrupts(probe: &Function, ended: impl Fn(usize) -> bool, first: u32) -> Times {
    let event = Event::new().unwrap();
    let signallers = vec![Some(event.signaller().unwrap())];
    let assign = InterruptSetup::Assign { start: 0, signallers };
    probe.set_interrupts(InterruptIndex::Msix, assign).unwrap();
    let registers = probe.windows().unwrap()[0].map().unwrap();
    registers.write(0x68, 1u32).unwrap();
    let mut times = Vec::new();
    for number in first.. {
        if ended(times.len()) {
            break;
        }
        let began = Instant::now();
        registers.store_u32(0x6c, number).unwrap();
        assert!(event.wait(Deadline::after(Duration::from_secs(5))).unwrap());
        times.push(began.elapsed());
        event.clear().unwrap();
    }
    Times::of(times)
}

#[test]
fn c5_6_interrupts_are_delivered_while_doorbells_are_carried_out() {
    let s = setup();
    let all = ranges(MANY);
    let idle = interrupts(&s.probe, |count| count == 200, 1);
    let ended = AtomicBool::new(false);
    let (busy, doorbells) = std::thread::scope(|scope| {
        let doorbells = scope.spawn(|| {
            let ends = SetAtEnd(&ended);
            let mut times = Vec::new();
            for _ in 0..10 {
                let began = Instant::now();
                assert_eq!(s.guest().map(&all).0, OK);
                times.push(began.elapsed());
                assert_eq!(s.guest().unmap(&ids(&all)).0, OK);
            }
            drop(ends);
            Times::of(times)
        });
        // The interrupt set-up is a request of its own: done before there is anything to wait for.
        let busy = interrupts(&s.probe, |_| ended.load(Ordering::Relaxed), 1001);
        (busy, doorbells.join().unwrap())
    });
    announce(&format!("interrupts, idle: {idle}"));
    announce(&format!("interrupts during doorbells of {MANY} entries: {busy}"));
    announce(&format!("doorbells: {doorbells}"));
    assert!(busy.at(90) < Duration::from_millis(50), "{busy}");
    s.assert_undisturbed();
}

#[test]
fn c5_6_a_slow_doorbell_holds_up_no_sibling_and_its_guest_hears_what_was_done() {
    let s = setup();
    // The other function of the device belongs to another guest.
    let other = Vmm::new(config(&s.simulator), DmaMode::Companion);
    let sibling = s.vmm.host.attach(address("01:00.0"), &other.container, None).unwrap();
    assert_eq!(sibling.connection().pid(), s.probe.connection().pid());
    s.delay(REGISTER, 1, 1_000_000, 1);
    let all = ranges(MANY);
    let ended = AtomicBool::new(false);
    let (responses, configs, asked) = std::thread::scope(|scope| {
        let mapping = scope.spawn(|| {
            let ends = SetAtEnd(&ended);
            let (status, responses) = s.guest().map(&all);
            drop(ends);
            assert_eq!(status, IO_ERROR);
            responses
        });
        let (mut configs, mut asked) = (Vec::new(), Vec::new());
        while !ended.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut id = [0; 4];
            sibling.config_read(0, &mut id).unwrap();
            assert_eq!(id, [0xd0, 0xc0, 0x02, 0x00]);
            configs.push(began.elapsed());
            // This one is answered by the process that registers.
            let began = Instant::now();
            assert_eq!(sibling.connection().statistics(address("01:00.0")).unwrap().regions, 0);
            asked.push(began.elapsed());
        }
        (mapping.join().unwrap(), Times::of(configs), Times::of(asked))
    });
    announce(&format!("a sibling's config reads meanwhile: {configs}"));
    announce(&format!("a sibling's requests to the connection process meanwhile: {asked}"));
    assert!(asked.at(90) < Duration::from_millis(200), "{asked}");
    // Entries that there was time for are mapped, and the others are not.
    let done: Vec<bool> = responses.iter().map(|(_, _, status)| *status == OK).collect();
    let count = done.iter().filter(|done| **done).count();
    assert!(count > 0 && count < done.len(), "{count}");
    assert!(done[..count].iter().all(|done| *done));
    let count = u64::try_from(count).unwrap();
    assert_eq!((s.held(), s.live()), (count, count));
    announce(&format!("entries of {MANY} that there was time for: {count}"));
    assert_eq!(s.guest().unmap(&ids(&ranges(count))).0, OK);
    assert_eq!((s.held(), s.live()), (0, 0));
    s.assert_undisturbed();
    assert_eq!((sibling.replacements(), sibling.returns()), (0, 0));
    s.vmm.host.detach(&sibling);
}

#[test]
fn c5_6_a_doorbell_keeps_to_its_callers_deadline_and_a_reset_to_slices() {
    let s = setup();
    let guest = s.guest();
    s.delay(REGISTER, 1, 1_000_000, 1);
    let all = ranges(MANY);
    guest.write_map(&all);
    let deadline = Deadline::after(Duration::from_millis(600));
    s.companion.access(RING, deadline).unwrap();
    assert!(!deadline.passed());
    assert_eq!(guest.read(register::STATUS), IO_ERROR);
    assert_eq!(guest.get(PAGE + 8, 4), IO_ERROR.to_le_bytes());
    let done = guest.mapped(&all).iter().filter(|(_, _, status)| *status == OK).count();
    assert!(done > 0 && done < all.len(), "{done}");
    let done = u64::try_from(done).unwrap();
    assert_eq!((s.held(), s.live()), (done, done));
    // Whatever one removal takes: the guest's reset is done in the time of many requests.
    s.delay(REMOVE, 1, 1_000_000, 2);
    s.companion.reset().unwrap();
    assert_eq!((s.held(), s.live()), (0, 0));
    s.assert_undisturbed();
}

#[test]
fn c5_7_an_answer_that_comes_too_late_is_undone_and_the_next_batch_works() {
    // One call of the dext that takes longer than a doorbell may.
    let s = setup_with(|config| config.deadlines.call = Duration::from_millis(600));
    let guest = s.guest();
    let all = ranges(8);
    for round in 0..3 {
        s.delay(REGISTER, 3, 1, 900);
        let (status, responses) = guest.map(&all);
        assert_eq!(status, IO_ERROR, "{round}");
        assert!(responses.iter().all(|(_, _, status)| *status == IO_ERROR), "{round}");
        // The guest was told that nothing is mapped.
        assert!(eventually(|| s.held() == 0), "{round}: {}", s.held());
        assert_eq!(guest.map(&all).0, OK, "{round}");
        assert_eq!((s.held(), s.live()), (8, 8), "{round}");
        s.delay(REMOVE, 3, 1, 900);
        let (status, statuses) = guest.unmap(&ids(&all));
        assert_eq!((status, statuses), (IO_ERROR, vec![IO_ERROR; 8]), "{round}");
        // The guest was told that all are mapped, so it can remove all.
        assert!(eventually(|| s.held() == 5), "{round}: {}", s.held());
        assert_eq!(guest.unmap(&ids(&all)), (OK, vec![OK; 8]), "{round}");
        assert_eq!((s.held(), s.live()), (0, 0), "{round}");
    }
    s.assert_undisturbed();
}

#[test]
fn c5_7_a_batch_whose_process_dies_without_a_successor_leaves_nothing() {
    let s = setup_with(|config| *config = config.clone().with_recovery(Recovery::OFF));
    let guest = s.guest();
    s.delay(REGISTER, 1, 1_000_000, 2);
    let pid = s.probe.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(eventually(|| s.held() > 20));
            signal(pid, Signal::KILL);
        });
        guest.write_map(&ranges(MANY));
        assert_eq!(guest.ring(PAGE), IO_ERROR);
    });
    assert!(!is_running(pid));
    assert!(eventually(|| s.held() == 0), "{}", s.held());
    assert_eq!(s.live(), 0);
}

#[test]
fn c5_7_a_process_that_is_stopped_over_its_doorbell_maps_nothing_afterwards() {
    let s = setup_with(|config| config.deadlines.call = Duration::from_secs(20));
    let guest = s.guest();
    s.delay(REGISTER, 1, 1_000_000, 2);
    let pid = s.probe.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(eventually(|| s.held() > 20));
            signal(pid, Signal::STOP);
        });
        // Its caller gives up: a command of a vfio-user client has a deadline of its own.
        guest.write_map(&ranges(MANY));
        let _ = s.companion.access(RING, Deadline::after(Duration::from_millis(800)));
        assert_eq!(guest.read(register::STATUS), IO_ERROR);
    });
    assert!(eventually(|| s.held() == 0), "{}", s.held());
    signal(pid, Signal::CONT);
    // It goes on where it was, and is answered by nobody.
    let mut id = [0; 4];
    s.probe.config_read(0, &mut id).unwrap();
    assert_eq!(id, [0xd0, 0xc0, 0x02, 0x00]);
    assert_eq!((s.held(), s.live()), (0, 0));
    assert_eq!(guest.map(&ranges(8)).0, OK);
    assert_eq!((s.held(), s.live()), (8, 8));
    s.assert_undisturbed();
}

#[test]
fn doorbells_of_two_processors_are_carried_out_one_after_the_other() {
    let s = setup();
    let guest = s.guest();
    let all = ranges(MANY);
    assert_eq!(guest.map(&all).0, OK);
    // Both ring for the same page: whoever comes second finds nothing left to remove.
    guest.write_unmap(&ids(&all));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| guest.write(register::DOORBELL, 1));
        }
    });
    assert_eq!(guest.read(register::STATUS), IO_ERROR);
    assert_eq!((s.held(), s.live()), (0, 0));
    assert_eq!(guest.map(&all).0, OK);
    s.assert_undisturbed();
}
