//! The death of a function process, unseen: callers wait and get the device's answer, interrupts
//! go on, and what the connection process holds is not touched.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cordon_tests::{
    RAM, RAM_BASE, SetAtEnd, Simulator, Vmm, announce, config, eventually, is_running, over_iokit,
    signal, start_copy,
};
use cordon_vmm::child::Cause;
use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::observer::{ProcessKind, Successor};
use cordon_vmm::{
    DmaMode, Function, Happening, HostConfig, Observer, PassthroughDevice as _, Presence, Recovery,
};
use ipc::wire::function::InterruptIndex;
use ipc::{Deadline, Event, SharedMemory, Window};
use rustix::process::Signal;

struct Setup {
    simulator: Simulator,
    vmm: Vmm,
    probe: Arc<Function>,
    registers: Window,
}

fn recovering(simulator: &Simulator) -> HostConfig {
    config(simulator).with_recovery(Recovery::default())
}

fn setup_with(change: impl FnOnce(&mut HostConfig), faults: &[&str]) -> Setup {
    let mut arguments = vec!["--device=01:00.0=nvme,size=16M,queues=4", "--device=01:00.1=probe"];
    arguments.extend(faults);
    let simulator = Simulator::start(&arguments);
    let mut config = recovering(&simulator);
    change(&mut config);
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let registers = probe.windows().unwrap()[0].map().unwrap();
    Setup { simulator, vmm, probe, registers }
}

#[test]
fn an_observer_is_told_of_deaths_and_what_follows_and_may_call_back() {
    use std::sync::mpsc::channel;
    let (sender, told) = channel::<Happening>();
    // Calls the host that tells it, as an embedder would, and is slow about it.
    let shared = Arc::<std::sync::Mutex<Option<Arc<Function>>>>::default();
    let seen = Arc::clone(&shared);
    let observer = Observer::start(move |happening| {
        std::thread::sleep(Duration::from_millis(20));
        if let Some(probe) = &*seen.lock().unwrap() {
            let _ = (probe.presence(), probe.config_read(0, &mut [0; 4]), probe.recoveries());
        }
        let _ = sender.send(happening.clone());
    })
    .unwrap();
    let s = setup_with(|config| config.observer = Some(observer.clone()), &[]);
    *shared.lock().unwrap() = Some(Arc::clone(&s.probe));
    let next = || told.recv_timeout(Duration::from_secs(30)).unwrap();
    let killed = s.probe.pid();
    signal(killed, Signal::KILL);
    match next() {
        Happening::Died { address, kind: ProcessKind::Function, death, generation: 0, sandbox } => {
            assert_eq!(sandbox, s.probe.sandbox());
            assert_eq!((address, death.pid), (s.probe.address(), killed));
            assert_eq!(death.exit.signal().unwrap().to_string(), "SIGKILL");
        }
        other => panic!("{other:?}"),
    }
    match next() {
        Happening::Recovered { pid, generation: 1, took, by: Successor::Spawned, .. } => {
            assert_eq!(pid, s.probe.pid());
            assert_eq!(Some(&took), s.probe.recoveries().last());
        }
        other => panic!("{other:?}"),
    }
    let killed = s.probe.connection().pid();
    signal(killed, Signal::KILL);
    let (mut names, mut back) = (Vec::new(), false);
    while !back {
        let happening = next();
        names.push(match happening {
            // Its function process may notice by itself.
            Happening::Died { kind: ProcessKind::Function, .. } => continue,
            Happening::Died { death, .. } => {
                assert_eq!(death.pid, killed);
                "died"
            }
            Happening::Away { .. } => "away",
            Happening::Reconnected { generation: 1, .. } => "reconnected",
            Happening::Back { returns: 1, pid, .. } => {
                back = true;
                assert_eq!(pid, s.probe.pid());
                "back"
            }
            other => panic!("{other:?}"),
        });
    }
    names.sort_unstable();
    assert_eq!(names, ["away", "back", "died", "reconnected"]);
    assert!(observer.flush(Duration::from_secs(10)));
    // The closure holds the function: nobody else would let go of it.
    *shared.lock().unwrap() = None;
    s.vmm.host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
}

fn setup() -> Setup {
    setup_with(|_| {}, &[])
}

impl Setup {
    fn assign(&self, index: InterruptIndex, count: usize) -> Vec<Event> {
        let events: Vec<Event> = (0..count).map(|_| Event::new().unwrap()).collect();
        let signallers = events.iter().map(|event| Some(event.signaller().unwrap())).collect();
        let setup = InterruptSetup::Assign { start: 0, signallers };
        self.probe.set_interrupts(index, setup).unwrap();
        events
    }

    fn fire(&self, vector: u32, number: u32) {
        cordon_tests::fire(&self.registers, vector, 1, number);
    }

    /// Kills the function process and waits until another serves.
    fn kill(&self) {
        let before = self.probe.recoveries().len();
        signal(self.probe.pid(), Signal::KILL);
        assert!(eventually(|| self.probe.recoveries().len() > before), "{:?}", self.probe.death());
    }
}

fn comes(event: &Event) -> bool {
    event.wait(Deadline::after(Duration::from_secs(5))).unwrap()
}

#[test]
fn callers_never_see_the_death_of_the_process() {
    let s = setup();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&ended);
        for thread in 0..2u64 {
            let (s, ended) = (&s, &ended);
            scope.spawn(move || {
                let mut number = 0u64;
                while !ended.load(Ordering::Relaxed) {
                    number += 1;
                    let at = 0x100 + 8 * thread;
                    let mut bytes = [0; 8];
                    s.probe.bar_write(2, at, &number.to_le_bytes()).unwrap();
                    s.probe.bar_read(2, at, &mut bytes).unwrap();
                    assert_eq!(u64::from_le_bytes(bytes), number);
                    s.probe.config_read(0, &mut bytes[..4]).unwrap();
                    assert_eq!(bytes[..4], [0xd0, 0xc0, 0x02, 0x00]);
                    s.probe.config_write(0x0c, &[thread.to_le_bytes()[0]]).unwrap();
                }
            });
        }
        for _ in 0..30 {
            s.kill();
        }
        drop(ends);
    });
    let mut recoveries = s.probe.recoveries();
    assert_eq!(recoveries.len(), 30);
    recoveries.sort_unstable();
    announce(&format!(
        "recovery: {:?} median, {:?} at most, of 30 kills under two callers",
        recoveries[15], recoveries[29]
    ));
}

#[test]
fn every_vector_in_use_is_signalled_once_and_goes_on() {
    let s = setup();
    let events = s.assign(InterruptIndex::Msix, 5);
    let taken_away = InterruptSetup::Assign { start: 3, signallers: vec![None] };
    s.probe.set_interrupts(InterruptIndex::Msix, taken_away).unwrap();
    for round in 0..10 {
        s.kill();
        for vector in [0, 1, 2, 4] {
            assert!(comes(&events[vector]), "{vector}");
        }
        assert!(!events[3].clear().unwrap());
        for vector in [0u8, 1, 2, 4] {
            s.fire(vector.into(), 1 + u32::from(vector) + 10 * round);
            assert!(comes(&events[usize::from(vector)]));
        }
    }
}

#[test]
fn intx_comes_back_too() {
    let s = setup();
    let line = s.assign(InterruptIndex::Intx, 1).pop().unwrap();
    s.kill();
    assert!(comes(&line));
    s.probe.set_interrupts(InterruptIndex::Intx, InterruptSetup::Unmask).unwrap();
    s.fire(0, 1);
    assert!(comes(&line));
}

#[test]
fn no_interrupt_is_lost_however_often_the_process_dies() {
    let s = setup();
    let event = s.assign(InterruptIndex::Msix, 1).pop().unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ends = SetAtEnd(&ended);
            for _ in 0..20 {
                s.kill();
            }
            drop(ends);
        });
        let mut number = 0;
        while !ended.load(Ordering::Relaxed) {
            number += 1;
            s.fire(0, number);
            // The signal of the recovery stands in for one that was lost with the process.
            assert!(comes(&event), "interrupt {number} was lost");
        }
    });
}

#[test]
fn claim_dma_and_windows_are_not_touched() {
    let s = setup();
    s.registers.write(0x10, 7u32).unwrap();
    let connection = s.probe.connection().pid();
    s.kill();
    assert_eq!(s.probe.connection().pid(), connection);
    assert!(eventually(|| s.simulator.held("01:00.1") == (2, 1, 1, true)));
    assert_eq!(s.registers.read::<u32>(0x10).unwrap(), 7);
    s.vmm.host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
}

#[test]
fn a_process_that_hangs_is_replaced_and_its_caller_is_answered() {
    let s = setup_with(|config| config.deadlines.call = Duration::from_secs(1), &[]);
    let stopped = s.probe.pid();
    signal(stopped, Signal::STOP);
    let mut id = [0; 4];
    s.probe.bar_read(0, 0, &mut id).unwrap();
    assert_eq!(&id, b"PRBE");
    assert!(!is_running(stopped));
    assert_eq!(s.probe.recoveries().len(), 1);
}

#[test]
fn a_dext_that_cleans_up_slowly_is_waited_for() {
    let s = setup_with(|_| {}, &["--fault=cleanup-delay:ms=200"]);
    let event = s.assign(InterruptIndex::Msix, 1).pop().unwrap();
    s.kill();
    assert!(s.probe.recoveries()[0] >= Duration::from_millis(150), "{:?}", s.probe.recoveries());
    assert!(comes(&event));
    s.probe.config_read(0, &mut [0; 4]).unwrap();
}

/// A register of 2 bytes.
fn half(s: &Setup, offset: u32) -> u16 {
    let mut bytes = [0; 2];
    s.probe.config_read(offset, &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

#[test]
fn p6_4_what_a_guest_may_not_write_does_not_reach_the_device_before_and_after_a_kill() {
    let s = setup();
    let msix = u32::from(s.probe.info().msix.unwrap().capability);
    let event = s.assign(InterruptIndex::Msix, 1).pop().unwrap();
    for _ in 0..2 {
        s.probe.config_write(msix + 2, &[0x1f, 0x00]).unwrap();
        assert_eq!(half(&s, msix + 2) & 0xc000, 0x8000, "messages are the host's");
        s.probe.config_write(0x3c, &[0x5a]).unwrap();
        assert_eq!(half(&s, 0x3c) & 0xff, 0);
        event.clear().unwrap();
        s.kill();
        assert!(comes(&event));
    }
}

#[test]
fn p6_4_a_read_request_is_bounded_by_what_the_host_set_also_for_a_successor() {
    const DEVICE_CONTROL: u32 = 0x78;
    for standby in [false, true] {
        let recovery = Recovery::default().with_standby(standby);
        let s = setup_with(|config| config.recovery = recovery, &[]);
        let ask = |value: u16| {
            s.probe.config_write(DEVICE_CONTROL, &value.to_le_bytes()).unwrap();
            half(&s, DEVICE_CONTROL) & 0x7000
        };
        // The simulated host has it at 512 bytes, which is 2.
        assert_eq!([ask(0x7000), ask(0x0000)], [0x2000, 0]);
        s.kill();
        assert_eq!([ask(0x7000), ask(0x1000), ask(0x2000)], [0x2000, 0x1000, 0x2000]);
    }
}

#[test]
fn a_crash_loop_is_given_up() {
    let few = Recovery::default().with_max_deaths(3);
    let s = setup_with(|config| config.recovery = few, &[]);
    for _ in 0..3 {
        s.kill();
    }
    signal(s.probe.pid(), Signal::KILL);
    assert!(eventually(|| s.probe.death().is_some()));
    let death = s.probe.death().unwrap();
    assert!(matches!(death.cause, Cause::CrashLoop { deaths: 4, .. }), "{death}");
    let mut bytes = [0; 4];
    s.probe.config_read_or_ones(0, &mut bytes);
    assert_eq!(bytes, [0xff; 4]);
    s.vmm.host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
}

#[test]
fn the_sibling_does_not_notice() {
    let s = setup();
    let disk = s.vmm.attach("01:00.0");
    s.kill();
    assert!(disk.recoveries().is_empty());
    disk.config_read(0, &mut [0; 4]).unwrap();
}

fn is_away(proxy: &Function) -> bool {
    matches!(proxy.presence(), Presence::Away(_))
}

/// Vendor id and command register, all ones when nobody answers.
fn identity(proxy: &Function) -> [u8; 4] {
    let mut bytes = [0; 4];
    proxy.config_read_or_ones(0, &mut bytes);
    bytes
}

const PROBE: [u8; 4] = [0xd0, 0xc0, 0x02, 0x00];

/// The probe's DMA engine copies from one page of guest RAM to another.
fn moves_data(s: &Setup, number: u8) {
    let (from, to, length) = (RAM_BASE + 0x4000, RAM_BASE + 0x8000, 4096u32);
    s.vmm.ram.copy_in(0x4000, &[number; 4096]).unwrap();
    s.probe.config_write(4, &[6, 0]).unwrap();
    let window = &s.registers;
    start_copy(window, from, to, length, number.into());
    let mut found = vec![0; 4096];
    let moved = eventually(|| {
        s.vmm.ram.copy_out(0x8000, &mut found).unwrap();
        found == [number; 4096]
    });
    assert!(moved, "status {:#x}", window.read::<u32>(0x60).unwrap());
}

#[test]
fn a_connection_process_that_dies_is_a_surprise_removal_and_return() {
    let s = setup();
    let disk = s.vmm.attach("01:00.0");
    let event = s.assign(InterruptIndex::Msix, 1).pop().unwrap();
    let guest = s.probe.map_windows().unwrap();
    let (first, address) = (guest[0].window(), guest[0].window().address());
    moves_data(&s, 1);
    let before = s.probe.connection().pid();
    // What another connection still holds is cleaned up for a while; the device is away as long.
    s.simulator.fault("cleanup-delay:ms=300");
    signal(before, Signal::KILL);
    assert!(eventually(|| is_away(&s.probe) && is_away(&disk)));
    assert_eq!(identity(&s.probe), [0xff; 4]);
    assert!(s.probe.config_write(4, &[6, 0]).is_err());
    assert!(eventually(|| first.read::<u64>(0).unwrap() == u64::MAX));
    first.write(0x10, 7u32).unwrap();
    // Memory that comes and goes meanwhile, and interrupts that are set up.
    let more = SharedMemory::create("more", 0x4000).unwrap();
    let iova = RAM_BASE + RAM;
    let region = GuestRegion { iova, size: 0x4000, memory: more.into(), offset: 0, writable: true };
    s.vmm.container.map(region).unwrap();
    let two = s.assign(InterruptIndex::Msix, 2);
    assert!(
        eventually(|| s.probe.returns() == 1 && disk.returns() == 1),
        "{:?}",
        s.probe.presence()
    );
    assert_ne!(s.probe.connection().pid(), before);
    assert_eq!(identity(&s.probe), PROBE);
    assert_eq!(first.address(), address);
    assert_eq!(first.read::<u32>(0).unwrap(), 0x4542_5250);
    // It was reset and is as new; memory and interrupts are as the guest has them.
    moves_data(&s, 2);
    assert_eq!(s.simulator.held("01:00.1").2, 2);
    assert!(comes(&two[1]));
    two[1].clear().unwrap();
    s.fire(1, 1);
    assert!(comes(&two[1]));
    drop(event);
    disk.config_read(0, &mut [0; 4]).unwrap();
    s.vmm.container.unmap(iova, 0x4000).unwrap();
    s.vmm.host.detach(&s.probe);
    s.vmm.host.detach(&disk);
    s.simulator.assert_released("01:00.1");
    s.simulator.assert_released("01:00.0");
}

#[test]
fn a_dext_that_dies_and_returns_takes_its_devices_along_and_brings_them_back() {
    let mut s = setup();
    let guest = s.probe.map_windows().unwrap();
    let stale = s.probe.windows().unwrap()[0].map().unwrap();
    s.simulator.kill();
    assert!(eventually(|| is_away(&s.probe)));
    assert_eq!(identity(&s.probe), [0xff; 4]);
    assert!(eventually(|| guest[0].window().read::<u32>(0).unwrap() == u32::MAX));
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_away(&s.probe));
    s.simulator.restart();
    assert!(eventually(|| s.probe.returns() == 1), "{:?}", s.probe.presence());
    assert_eq!(guest[0].window().read::<u32>(0).unwrap(), 0x4542_5250);
    assert_eq!(identity(&s.probe), PROBE);
    // What was mapped otherwise is memory that nobody serves: all ones where it is known to be plain memory, and as
    // it was where the system does not tell.
    let left = if cfg!(target_os = "macos") { 0x4542_5250 } else { u32::MAX };
    assert_eq!(stale.read::<u32>(0).unwrap(), left);
    s.registers = s.probe.windows().unwrap()[0].map().unwrap();
    moves_data(&s, 3);
}

#[test]
fn a_device_that_does_not_come_back_in_time_is_given_up() {
    let mut s = setup_with(|config| config.recovery.away = Duration::from_millis(300), &[]);
    s.simulator.kill();
    assert!(eventually(|| s.probe.death().is_some()));
    // In IOKit's registry there are no services then.
    let why = if over_iokit() { "the dext has no function" } else { "No dext at" };
    assert!(s.probe.death().unwrap().to_string().contains(why), "{:?}", s.probe.death());
    assert_eq!(identity(&s.probe), [0xff; 4]);
    s.vmm.host.detach(&s.probe);
}

#[test]
fn a_connection_process_in_a_crash_loop_is_given_up() {
    let few = Recovery::default().with_max_deaths(2);
    let s = setup_with(|config| config.recovery = few, &[]);
    for round in 1..=2 {
        signal(s.probe.connection().pid(), Signal::KILL);
        assert!(eventually(|| s.probe.returns() == round));
    }
    signal(s.probe.connection().pid(), Signal::KILL);
    assert!(eventually(|| s.probe.death().is_some()));
    assert!(matches!(s.probe.death().unwrap().cause, Cause::CrashLoop { deaths: 3, .. }));
    // Its own thread learns of it a moment later than whoever asks.
    assert!(eventually(|| identity(&s.probe) == [0xff; 4]));
    s.vmm.host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
}

#[test]
fn a_device_that_returns_as_another_one_is_given_up() {
    let mut s = setup();
    s.simulator.kill();
    assert!(eventually(|| is_away(&s.probe)));
    s.simulator.replace(&["--device=01:00.1=nvme,size=16M"]);
    assert!(eventually(|| s.probe.death().is_some()));
    assert!(s.probe.death().unwrap().to_string().contains("another device"));
    assert_eq!(identity(&s.probe), [0xff; 4]);
}

#[test]
fn a_standby_takes_over() {
    let s = setup_with(|config| config.recovery.standby = true, &[]);
    let event = s.assign(InterruptIndex::Msix, 1).pop().unwrap();
    for round in 1..20u32 {
        assert!(eventually(|| s.probe.has_standby()));
        let served = s.probe.pid();
        s.kill();
        assert_ne!(s.probe.pid(), served);
        assert!(comes(&event));
        event.clear().unwrap();
        s.fire(0, round);
        assert!(comes(&event));
        event.clear().unwrap();
        assert_eq!(identity(&s.probe), PROBE);
    }
    let mut recoveries = s.probe.recoveries();
    recoveries.sort_unstable();
    announce(&format!("recovery with a standby: {:?} median of 19", recoveries[9]));
    // It goes and comes with the device, and ends with it.
    signal(s.probe.connection().pid(), Signal::KILL);
    assert!(eventually(|| s.probe.returns() == 1 && s.probe.has_standby()));
    s.vmm.host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
}

#[test]
fn a_successor_does_not_ask_the_dext_for_what_its_predecessor_found() {
    let s = setup();
    let device = s.probe.info().clone();
    // One read of config space says whether the device is there; everything else would fail.
    s.simulator.fault("fail:selector=8,nth=2,code=0xe00002bd");
    s.simulator.fault("fail:selector=10,nth=1,code=0xe00002bd");
    s.kill();
    assert_eq!((s.probe.info().bars, s.probe.info().msix), (device.bars, device.msix));
    let events = s.assign(InterruptIndex::Msix, 1);
    s.fire(0, 1);
    assert!(comes(&events[0]));
    let mut status = [0; 2];
    // The next one fails, ours or that of whoever looks whether the device is there.
    assert!(eventually(|| s.probe.config_read(6, &mut status).is_ok()));
    assert_ne!(u16::from_le_bytes(status) & 0x10, 0);
}
