//! A function through its process: config space, BARs, windows, interrupts, reset.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::time::Duration;

use cordon_tests::{PROBE_MSIX, RAM_BASE, Simulator, Vmm, config, fire};
use cordon_vmm::device::{BarMemory, InterruptSetup};
use cordon_vmm::{DmaMode, ErrorKind, Function, PassthroughDevice as _, WindowRoute};
use ipc::wire::function::InterruptIndex;
use ipc::{Deadline, Event, Window};

struct Setup {
    simulator: Simulator,
    vmm: Vmm,
    probe: Arc<Function>,
}

fn setup() -> Setup {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    Setup { simulator, vmm, probe }
}

fn registers(proxy: &Function) -> Window {
    proxy.windows().unwrap().iter().find(|w| w.bar == 0 && w.offset == 0).unwrap().map().unwrap()
}

fn assign(proxy: &Function, index: InterruptIndex, count: usize) -> Vec<Event> {
    let events: Vec<Event> = (0..count).map(|_| Event::new().unwrap()).collect();
    let signallers = events.iter().map(|event| Some(event.signaller().unwrap())).collect();
    proxy.set_interrupts(index, InterruptSetup::Assign { start: 0, signallers }).unwrap();
    events
}

fn comes(event: &Event) -> bool {
    event.wait(Deadline::after(Duration::from_secs(5))).unwrap()
}

#[test]
fn p5_config_space_is_read_at_any_offset_and_length() {
    let s = setup();
    let mut whole = vec![0; 4096];
    s.probe.config_read(0, &mut whole).unwrap();
    assert_eq!(whole[..4], [0xd0, 0xc0, 0x02, 0x00]);
    for (offset, length) in [(0, 1), (1, 2), (3, 7), (0x40, 64), (4090, 6)] {
        let mut part = vec![0; length];
        s.probe.config_read(offset, &mut part).unwrap();
        assert_eq!(part, whole[offset as usize..offset as usize + length], "{offset} {length}");
    }
    let mut past = [0xaa; 8];
    s.probe.config_read(4092, &mut past).unwrap();
    assert_eq!(past[4..], [0; 4]);
    assert_eq!(s.probe.config_read(0, &mut vec![0; 5000]).unwrap_err().errno(), 22);
}

#[test]
fn p6_what_the_host_owns_cannot_be_written() {
    let s = setup();
    let read = |offset| {
        let mut bytes = [0; 4];
        s.probe.config_read(offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    let (bar, status) = (read(0x10), read(0x04) >> 16);
    s.probe.config_write(0x10, &[0xff; 4]).unwrap();
    s.probe.config_write(0x06, &[0xff; 2]).unwrap();
    assert_eq!((read(0x10), read(0x04) >> 16), (bar, status));
    s.probe.config_write(0x04, &[0x02, 0x00, 0xff, 0xff]).unwrap();
    assert_eq!(read(0x04) & 0xffff, 2);
    s.probe.config_write(0x0c, &[0x2a]).unwrap();
    assert_eq!(read(0x0c) & 0xff, 0x2a);
    assert_eq!(s.probe.config_write(0x50, &[0; 3]).unwrap_err().errno(), 22);
}

#[test]
fn p7_traps_and_windows_reach_the_same_memory() {
    let s = setup();
    let windows = s.probe.windows().unwrap();
    let shape: Vec<_> = windows.iter().map(|w| (w.bar, w.offset, w.length)).collect();
    let of = |bar: u8, size, taken: &[_]| {
        cordon_tests::windows(size, taken).into_iter().map(move |(at, bytes)| (bar, at, bytes))
    };
    let bars = of(0, 0x2_0000, &PROBE_MSIX).chain(of(1, 0x1000, &[])).chain(of(2, 0x10_0000, &[]));
    assert_eq!(shape, bars.collect::<Vec<_>>());
    for (bar, offset) in [(0, 0x10), (0, 0x10010), (2, 0x8)] {
        let has = |window: &&BarMemory| {
            window.bar == bar && (window.offset..window.offset + window.length).contains(&offset)
        };
        let window = windows.iter().find(has).unwrap();
        let mapped = window.map().unwrap();
        let in_window = offset - window.offset;
        s.probe.bar_write(window.bar, offset, &0xfeed_f00du32.to_le_bytes()).unwrap();
        assert_eq!(mapped.read::<u32>(in_window).unwrap(), 0xfeed_f00d);
        mapped.write(in_window, 0x1234_5678u32).unwrap();
        let mut bytes = [0; 4];
        s.probe.bar_read(window.bar, offset, &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
    }
    // BAR 1 is too small for a window where pages are larger (P7.7), and is there all the same.
    s.probe.bar_write(1, 0xff8, &7u64.to_le_bytes()).unwrap();
    let mut bytes = [0; 8];
    s.probe.bar_read(1, 0xff8, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 7);
}

#[test]
fn without_windows_every_access_is_trapped() {
    let simulator = Simulator::usual();
    let config = config(&simulator).with_windows(WindowRoute::Trapped);
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    assert!(probe.windows().unwrap().is_empty() && probe.map_windows().unwrap().is_empty());
    assert!((0..9).all(|index| !probe.region_info(index).unwrap().mappable));
    let mut bytes = [0; 4];
    probe.bar_read(0, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"PRBE");
    probe.bar_write(2, 0x1000, &[1, 2, 3, 4]).unwrap();
    probe.bar_read(2, 0x1000, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
}

#[test]
fn a_function_that_was_detached_leaves_nothing_of_it_in_windows_that_are_still_mapped() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let mapped = probe.map_windows().unwrap();
    mapped[0].window().write::<u32>(0x10, 0x0bad_cafe).unwrap();
    vmm.host.detach(&probe);
    for window in &mapped {
        assert_eq!(window.window().read::<u32>(0x10).unwrap(), u32::MAX, "BAR {}", window.bar);
    }
    assert!(probe.windows().unwrap().is_empty() && probe.map_windows().unwrap().is_empty());
    // Whoever has it next does not see what the first one stores from now on.
    let next = vmm.attach("01:00.1");
    mapped[0].window().write::<u32>(0x10, 7).unwrap();
    let found = next.map_windows().unwrap()[0].window().read::<u32>(0x10).unwrap();
    assert_ne!(found, 7);
}

#[test]
fn windows_by_a_connection_of_the_vmms_own_are_the_same_and_come_back() {
    let mut simulator = Simulator::usual();
    let recovery = cordon_vmm::Recovery::default();
    let windows = WindowRoute::OwnConnection;
    let config = config(&simulator).with_windows(windows).with_recovery(recovery);
    let vmm = Vmm::new(config, DmaMode::Direct);
    let probe = vmm.attach("01:00.1");
    let shape = |proxy: &Function| -> Vec<(u8, u64, u64)> {
        let all = proxy.windows().unwrap();
        all.iter().map(|one| (one.bar, one.offset, one.length)).collect()
    };
    let handed = Vmm::new(cordon_tests::config(&simulator), DmaMode::Direct);
    let mapped = probe.map_windows().unwrap();
    assert_eq!(mapped[0].window().read::<u32>(0).unwrap(), u32::from_le_bytes(*b"PRBE"));
    probe.bar_write(0, 0x10, &[1, 2, 3, 4]).unwrap();
    assert_eq!(mapped[0].window().read::<u32>(0x10).unwrap(), 0x0403_0201);
    // The MSI-X pages are left out as they are otherwise.
    let own = shape(&probe);
    simulator.kill();
    simulator.restart();
    assert!(cordon_tests::eventually(|| probe.returns() == 1));
    assert_eq!(mapped[0].window().read::<u32>(0).unwrap(), u32::from_le_bytes(*b"PRBE"));
    vmm.host.detach(&probe);
    // Also where memory has no descriptor, and so is the VMM's own connection's for as long as it is mapped.
    simulator.assert_released("01:00.1");
    assert_eq!(mapped[0].window().read::<u32>(0).unwrap(), u32::MAX);
    let other = handed.attach("01:00.1");
    assert_eq!(shape(&other), own);
}

#[test]
fn p7_5_bad_accesses_are_named_and_hurt_nobody() {
    let s = setup();
    for (bar, offset, length) in [
        (0, 0x20000, 4),
        (1, 0xffe, 4),
        (2, 1, 2),
        (2, u64::MAX, 8),
        (3, 0, 4),
        (4, 0, 4),
        (9, 0, 1),
    ] {
        let error = s.probe.bar_read(bar, offset, &mut vec![0; length]).unwrap_err();
        assert_eq!(error.errno(), 22);
        assert!(error.to_string().contains(&format!("BAR {bar}")), "{error}");
        assert!(error.to_string().contains("01:00.1"), "{error}");
    }
    assert_eq!(s.probe.bar_read(0, 0, &mut [0; 3]).unwrap_err().errno(), 22);
    let mut id = [0; 4];
    s.probe.bar_read(0, 0, &mut id).unwrap();
    assert_eq!(&id, b"PRBE");
}

#[test]
fn p3_and_p4_regions_and_interrupts() {
    let s = setup();
    let sizes: Vec<u64> = (0..9).map(|index| s.probe.region_info(index).unwrap().size).collect();
    assert_eq!(sizes, [0x20000, 0x1000, 0x10_0000, 0, 64, 0, 0, 4096, 0]);
    let counts: Vec<u32> =
        (0u32..5).map(|index| s.probe.interrupt_info(index.try_into().unwrap()).count).collect();
    assert_eq!(counts, [1, 32, 32, 0, 0]);
    assert_eq!(s.probe.feature(1).unwrap_err().errno(), 25);
}

#[test]
fn p9_every_vector_goes_to_its_event_and_no_other() {
    let s = setup();
    let registers = registers(&s.probe);
    let events = assign(&s.probe, InterruptIndex::Msix, 32);
    for vector in 0..32 {
        fire(&registers, vector, 1, vector + 1);
        assert!(comes(&events[vector as usize]), "{vector}");
        assert!(events.iter().all(|event| !event.clear().unwrap()));
    }
    fire(&registers, 0, 32, 100);
    assert!(events.iter().all(comes));
    let statistics = s.probe.statistics().unwrap();
    assert_eq!((statistics.delivered, statistics.dropped), (64, 0));
}

#[test]
fn p9_2_intx_takes_any_vector_and_is_held_back_until_unmasked() {
    let s = setup();
    let registers = registers(&s.probe);
    let line = assign(&s.probe, InterruptIndex::Intx, 1).pop().unwrap();
    fire(&registers, 0, 1, 1);
    assert!(comes(&line));
    fire(&registers, 0, 1, 2);
    let held_back = || s.probe.statistics().unwrap().notifications == 2;
    assert!(cordon_tests::eventually(held_back));
    assert!(!line.clear().unwrap());
    s.probe.set_interrupts(InterruptIndex::Intx, InterruptSetup::Unmask).unwrap();
    assert!(comes(&line));
}

#[test]
fn p9_4_vectors_that_are_not_in_use_do_not_even_wake_the_process() {
    let s = setup();
    let registers = registers(&s.probe);
    let events = assign(&s.probe, InterruptIndex::Msix, 2);
    fire(&registers, 5, 20, 1);
    fire(&registers, 1, 1, 2);
    assert!(comes(&events[1]));
    let statistics = s.probe.statistics().unwrap();
    assert_eq!((statistics.notifications, statistics.dropped), (1, 0));
}

#[test]
fn the_devices_dma_engine_reaches_guest_memory_and_nothing_else() {
    let s = setup();
    let registers = registers(&s.probe);
    let events = assign(&s.probe, InterruptIndex::Msix, 1);
    s.vmm.ram.copy_in(0x1000, b"through the wire").unwrap();
    let copy = |source: u64, target: u64, number: u32| {
        registers.write(0x40, source).unwrap();
        registers.write(0x48, target).unwrap();
        registers.write(0x50, 16u32).unwrap();
        registers.write(0x54, 0u32).unwrap();
        registers.store_u32(0x58, number).unwrap();
        assert!(comes(&events[0]));
        registers.load_u32(0x60).unwrap()
    };
    assert_eq!(copy(RAM_BASE + 0x1000, RAM_BASE + 0x2000, 1), 0);
    let mut bytes = [0; 16];
    s.vmm.ram.copy_out(0x2000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"through the wire");
    assert_eq!(copy(RAM_BASE - 16, RAM_BASE, 2), 1, "outside guest memory is a fault");
    assert_eq!(copy(RAM_BASE, 0, 3), 1);
}

#[test]
fn p8_reset_resets_and_a_failing_reset_is_an_io_error() {
    let s = setup();
    let registers = registers(&s.probe);
    let events = assign(&s.probe, InterruptIndex::Msix, 2);
    registers.write(0x10, 7u32).unwrap();
    s.probe.reset().unwrap();
    assert_eq!(registers.read::<u32>(0x10).unwrap(), 0);
    // Interrupts stay set up.
    fire(&registers, 1, 1, 1);
    assert!(comes(&events[1]));
    s.simulator.fault("fail:selector=17,nth=1,code=0xe00002bd");
    let error = s.probe.reset().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io), "{error}");
    assert_eq!(error.errno(), 5);
    assert!(error.to_string().contains("0xe00002bd"), "{error}");
}

#[test]
fn a_slow_dext_is_waited_for() {
    let s = setup();
    s.simulator.fault("delay:selector=8,nth=1,ms=300");
    s.probe.config_read(0, &mut [0; 4]).unwrap();
    assert_eq!(s.simulator.fired(), [1]);
}
