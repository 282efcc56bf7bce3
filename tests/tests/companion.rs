//! The DMA companion over a strict DART: the platform chooses bus addresses, the guest maps on
//! demand, and whatever happens meanwhile nothing is mapped twice and nothing is left.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;
use std::time::Duration;

use cordon_tests::companion::{Guest, PAGE, REQUESTS, RESPONSES};
use cordon_tests::{
    RAM, RAM_BASE, SetAtEnd, Simulator, Vmm, address, config, eventually, signal, start_copy,
};
use cordon_vmm::companion::{Companion, CompanionConfig, Layout, register};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::faults::{Fault, FaultPlan, Faults, Point, Target, What};
use cordon_vmm::{Container, DmaMode, Function, PassthroughDevice as _, Recovery};
use ipc::{SharedMemory, Window};
use rustix::process::Signal;

const OK: u32 = 0;
const IO_ERROR: u32 = 1;
const INVALID: u32 = 3;
/// Memory to map: behind the rings.
const DATA: u64 = RAM_BASE + 0x10_0000;

struct Setup {
    simulator: Simulator,
    faults: Arc<Faults>,
    vmm: Vmm,
    probe: Arc<Function>,
    companion: Arc<Companion>,
    registers: Window,
}

fn guest_address() -> CompanionConfig {
    CompanionConfig::new(address("00:05.0"))
}

fn setup_with(companion: CompanionConfig, arguments: &[&str]) -> Setup {
    setup_within(Recovery::default().timeout, companion, arguments)
}

/// A setup of which whoever has no deadline of its own waits for so long.
fn setup_within(timeout: Duration, companion: CompanionConfig, arguments: &[&str]) -> Setup {
    let mut all = vec!["--device=01:00.0=nvme,size=16M", "--device=01:00.1=probe", "--dart=strict"];
    all.extend(arguments);
    let simulator = Simulator::start(&all);
    let faults = Faults::new(FaultPlan::default()).unwrap();
    let mut recovery = Recovery::default().with_max_deaths(u32::MAX);
    recovery.timeout = timeout;
    let faulty = Some(Arc::clone(&faults));
    let config = config(&simulator).with_recovery(recovery).with_faults(faulty);
    let vmm = Vmm::new(config, DmaMode::Companion);
    let attached =
        vmm.host.attach_with_companion(address("01:00.1"), &vmm.container, None, companion);
    let (probe, companion) = attached.unwrap();
    let registers = probe.windows().unwrap()[0].map().unwrap();
    Setup { simulator, faults, vmm, probe, companion, registers }
}

fn setup() -> Setup {
    setup_with(guest_address(), &[])
}

impl Setup {
    fn guest(&self) -> Guest<'_> {
        let layout = self.companion.config().layout;
        Guest { companion: &*self.companion, ram: &self.vmm.ram, layout }
    }

    /// Has the device copy, by bus addresses; the status of the copy.
    fn copy(&self, from: u64, to: u64, length: u32, number: u32) -> u32 {
        self.probe.config_write(4, &[6, 0]).unwrap();
        let registers = &self.registers;
        start_copy(registers, from, to, length, number);
        assert!(eventually(|| registers.load_u32(0x5c).unwrap() == number));
        registers.load_u32(0x60).unwrap()
    }

    /// Registrations as the dext counts them.
    fn held(&self) -> u64 {
        self.simulator.held("01:00.1").2
    }

    fn live(&self) -> u64 {
        self.probe.connection().statistics(address("01:00.1")).unwrap().regions
    }

    fn strike(&self, request: &str, when: Point, what: What) {
        let request = Some(request.to_owned());
        let process = Target::Function;
        self.faults
            .add(Fault { process, device: None, request, nth: 1, when, after_ms: 0, what })
            .unwrap();
    }
}

#[test]
fn c1_identity_and_registers() {
    let s = setup_with(CompanionConfig { max_entries: 100, ..guest_address() }, &[]);
    let mut header = [0; 64];
    s.companion.config_read(0, &mut header).unwrap();
    assert_eq!(header[..4], [0x36, 0x1b, 0x15, 0x00]);
    assert_eq!(header[9..12], [0x00, 0x80, 0x08]);
    assert_eq!(s.companion.region_info(0).unwrap().size, 4096);
    let guest = s.guest();
    assert_eq!(guest.read(register::VERSION), 2);
    assert_eq!(guest.read(register::MANAGED_BDF), 5 << 3);
    assert_eq!(guest.read(register::MAX_ENTRIES), 100);
    // Write-only registers and the rest read 0; other writes are ignored.
    guest.write(register::CMD_GPA_LO, 0xffff_ffff);
    guest.write(register::VERSION, 7);
    for at in [0x10, 0x14, 0x18, 0x1c, 0x400, 0xffc] {
        assert_eq!(guest.read(at), 0, "{at:#x}");
    }
    assert_eq!(guest.read(register::VERSION), 2);
    let mut wide = [0xff; 8];
    s.companion.bar_read(0, 0, &mut wide).unwrap();
    assert_eq!(wide, [0; 8]);
    s.companion.bar_write(0, register::DOORBELL, &[1]).unwrap();
    assert_eq!(guest.read(register::STATUS), 0);
    assert_eq!(s.companion.bar_read(0, 4096, &mut wide[..4]).unwrap_err().errno(), 22);
}

#[test]
fn c1_1_its_config_space_is_that_of_a_device_with_one_memory_bar() {
    let s = setup();
    let read = |at: u32, length: usize| {
        let mut bytes = vec![0xa5; length];
        s.companion.config_read(at, &mut bytes).unwrap();
        bytes
    };
    let write = |at: u32, bytes: &[u8]| s.companion.config_write(at, bytes).unwrap();
    let fresh = read(0, 4096);
    // Sized as any BAR is, and placed.
    write(0x10, &[0xff; 4]);
    assert_eq!(read(0x10, 4), 0xffff_f000u32.to_le_bytes());
    write(0x10, &0xfeb0_0123u32.to_le_bytes());
    assert_eq!(read(0x10, 4), 0xfeb0_0000u32.to_le_bytes());
    // Memory space and bus mastering are all there is to switch on; nothing else can be written.
    write(0x04, &[0xff; 4]);
    assert_eq!(read(0x04, 4), [0x06, 0, 0, 0]);
    for at in (0x14..0x3c).chain(0x40..0x100).step_by(4).chain([0x00, 0x08, 0xffc]) {
        write(at, &[0xff; 4]);
        let place = usize::try_from(at).unwrap();
        assert_eq!(read(at, 4), fresh[place..place + 4], "{at:#x}");
    }
    assert_eq!((read(0xffe, 4)[2..].to_vec(), read(0x3d, 1)), (vec![0, 0], vec![0]));
    assert_eq!(s.companion.config_write(0, &[0; 9]).unwrap_err().errno(), 22);
    s.companion.reset().unwrap();
    assert_eq!(read(0, 4096), fresh);
}

#[test]
fn c1_4_batches_have_as_many_entries_as_configured() {
    assert_eq!(setup().guest().read(register::MAX_ENTRIES), 4096);
    let s = setup_with(CompanionConfig { max_entries: 2, ..guest_address() }, &[]);
    let pages: Vec<_> = (0..3).map(|page| (DATA + 0x1000 * page, 0x1000)).collect();
    assert_eq!(s.guest().map(&pages).0, INVALID);
    assert_eq!(s.guest().map(&pages[..2]).0, OK);
    let too_many = CompanionConfig { max_entries: 4097, ..guest_address() };
    let other = Simulator::start(&["--device=01:00.1=probe", "--dart=strict"]);
    let vmm = Vmm::new(config(&other), DmaMode::Companion);
    let refused =
        vmm.host.attach_with_companion(address("01:00.1"), &vmm.container, None, too_many);
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("01:00.1") && error.contains("4097"), "{error}");
    other.assert_released("01:00.1");
}

#[test]
fn a_guest_maps_and_the_device_moves_data_by_the_addresses_it_was_given() {
    for layout in [Layout::Packed32, Layout::Packed64] {
        let s = setup_with(CompanionConfig { layout, ..guest_address() }, &[]);
        let guest = s.guest();
        // Nothing is mapped by itself.
        assert_eq!((s.held(), s.copy(DATA, DATA + 0x8000, 4096, 1)), (0, 1));
        let from = guest.map_one(DATA, 0x4000);
        let to = guest.map_one(DATA + 0x8000, 0x4000);
        assert!(from != DATA && to != DATA + 0x8000);
        let content: Vec<u8> = (0..0x4000u32).map(|at| (at * 7 / 3).to_le_bytes()[0]).collect();
        guest.put(DATA, &content);
        assert_eq!(s.copy(from, to, 0x4000, 2), 0);
        assert_eq!(guest.get(DATA + 0x8000, 0x4000), content);
        assert_eq!((s.held(), s.live()), (2, 2));
        // Unmapped, it is out of reach.
        assert_eq!(guest.unmap(&[DATA, DATA]), (IO_ERROR, vec![0, 1]));
        assert_eq!(s.copy(from, to, 4096, 3), 1);
        assert_eq!(s.held(), 1);
    }
}

#[test]
fn c5_5_duplicates_and_what_is_not_guest_memory_fail_alone() {
    let s = setup();
    let guest = s.guest();
    let (status, responses) = guest.map(&[
        (DATA, 0x1000),
        (DATA, 0x1000),
        (0, 0x1000),
        (RAM_BASE + RAM - 0x800, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
        (DATA + 0x1000, 0),
        (DATA + 0x2000, 0x1000),
    ]);
    let statuses: Vec<u32> = responses.iter().map(|response| response.2).collect();
    assert_eq!((status, statuses), (IO_ERROR, vec![0, 1, 1, 1, 1, 1, 0]));
    assert_eq!(guest.map(&[(DATA, 0x2000)]).0, IO_ERROR);
    assert_eq!(s.held(), 2);
}

#[test]
fn c2_3_nonsense_is_invalid_and_changes_nothing() {
    let s = setup();
    let guest = s.guest();
    guest.write(register::DOORBELL, 0);
    assert_eq!(guest.read(register::STATUS), INVALID);
    for page in [0, 1, RAM_BASE - 1, RAM_BASE + RAM - 8, u64::MAX] {
        assert_eq!(guest.ring(page), INVALID, "{page:#x}");
    }
    for (kind, count, requests, responses) in [
        (0, 1, REQUESTS, RESPONSES),
        (9, 1, REQUESTS, RESPONSES),
        (1, 0, REQUESTS, RESPONSES),
        (1, 4097, REQUESTS, RESPONSES),
        (1, 1, 0, RESPONSES),
        (1, 1, REQUESTS, u64::MAX),
        (2, 4096, RAM_BASE + RAM - 16, RESPONSES),
    ] {
        guest.command(kind, count, requests, responses);
        assert_eq!(guest.ring(PAGE), INVALID, "{kind} {count} {requests:#x} {responses:#x}");
        assert_eq!(guest.get(PAGE + 8, 4), INVALID.to_le_bytes());
    }
    assert_eq!(s.held(), 0);
    assert_eq!(guest.map(&[(DATA, 0x1000)]).0, OK);
}

#[test]
fn rings_that_are_rewritten_meanwhile_or_overlap_cost_a_status() {
    let s = setup();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&ended);
        // Another processor of the guest's rewrites page, requests and responses all the time.
        scope.spawn(|| {
            let mut number = 0u64;
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let at = number >> 40 & 0xff8;
                let _ = s.vmm.ram.write(at % 0x40, number);
                let _ = s.vmm.ram.write(0x1000 + at, number);
                let _ = s.vmm.ram.write(0x2_0000 + at, RAM_BASE + (number >> 44));
            }
        });
        let guest = s.guest();
        for round in 0..200u64 {
            let (requests, responses) = match round % 4 {
                0 => (REQUESTS, RESPONSES),
                1 => (PAGE, PAGE),
                2 => (REQUESTS, REQUESTS + 8),
                _ => (PAGE + 8, REQUESTS),
            };
            guest.command(1 + (round % 2) as u32, 16, requests, responses);
            assert!([OK, IO_ERROR, INVALID].contains(&guest.ring(PAGE)));
        }
        drop(ends);
    });
    assert_eq!(s.probe.replacements(), 0);
    s.companion.reset().unwrap();
    assert_eq!((s.held(), s.live()), (0, 0));
    let guest = s.guest();
    assert_eq!(guest.map(&[(DATA, 0x1000)]).0, OK);
}

#[test]
fn c5_2_a_process_that_dies_in_the_middle_of_a_batch_is_not_noticed() {
    let s = setup();
    let guest = s.guest();
    let pages: Vec<_> = (0..512u64).map(|page| (DATA + 0x1000 * page, 0x1000)).collect();
    let ids: Vec<u64> = pages.iter().map(|(address, _)| *address).collect();
    for when in [Point::Before, Point::During, Point::After] {
        for what in [What::Kill, What::Hang, What::Garbage] {
            if what == What::Hang && when != Point::During {
                continue;
            }
            let before = s.probe.replacements();
            s.strike("Doorbell", when, what);
            let (status, responses) = guest.map(&pages);
            assert_eq!((status, s.held(), s.live()), (OK, 512, 512), "{when:?} {what:?}");
            // Each address is the one that the device reaches it by.
            let (first, last) = (responses[0].0, responses[511].0);
            guest.put(DATA, &[0x5a; 256]);
            assert_eq!(s.copy(first, last, 256, 1 + u32::try_from(before).unwrap()), 0);
            assert_eq!(guest.get(DATA + 0x1000 * 511, 256), [0x5a; 256]);
            guest.put(DATA + 0x1000 * 511, &[0; 256]);
            // What happened after a reply is noticed at the next request by the tube: before the next
            // death, which is to be another process's.
            s.probe.statistics().unwrap();
            s.strike("Doorbell", Point::During, What::Kill);
            assert_eq!(guest.unmap(&ids).0, OK, "{when:?} {what:?}");
            assert_eq!((s.held(), s.live()), (0, 0));
            assert!(eventually(|| s.probe.replacements() >= before + 2));
        }
    }
}

#[test]
fn kills_at_any_moment_of_many_batches_map_nothing_twice_and_leak_nothing() {
    let s = setup();
    let guest = s.guest();
    let pages: Vec<_> = (0..256u64).map(|page| (DATA + 0x1000 * page, 0x1000)).collect();
    let ids: Vec<u64> = pages.iter().map(|(address, _)| *address).collect();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ends = SetAtEnd(&ended);
            for number in 0..60u64 {
                std::thread::sleep(Duration::from_micros(3000 + number * 137 % 4000));
                signal(s.probe.pid(), Signal::KILL);
                assert!(eventually(|| s.probe.replacements() > number));
            }
            drop(ends);
        });
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            assert_eq!(guest.map(&pages).0, OK);
            assert_eq!((s.held(), s.live()), (256, 256));
            assert_eq!(guest.unmap(&ids).0, OK);
            assert_eq!((s.held(), s.live()), (0, 0));
        }
    });
}

#[test]
fn c5_3_a_limit_fails_its_entries_and_unmapping_makes_room() {
    // The release of 65,536 mappings is as many calls of the dext, which take longer than the usual deadline
    // where other programs keep the processors busy: what is shown here is the limit.
    let long = Duration::from_secs(60);
    let s = setup_within(long, guest_address(), &["--fault=fragment:nth=1"]);
    let guest = s.guest();
    assert_eq!(guest.map(&[(DATA, 0x1000), (DATA + 0x1000, 0x1000)]).0, IO_ERROR);
    assert_eq!(guest.unmap(&[DATA + 0x1000]).0, OK);
    // 65,536 mappings.
    let all: Vec<_> = (0..65_536u64).map(|number| (DATA + 16 * number, 16)).collect();
    for batch in all.chunks(4096) {
        assert_eq!(guest.map(batch).0, OK);
    }
    let one_more = [(DATA + 16 * 65_536, 16)];
    assert_eq!(guest.map(&one_more).0, IO_ERROR);
    assert_eq!(guest.unmap(&[DATA]).0, OK);
    assert_eq!(guest.map(&one_more).0, OK);
    s.companion.reset().unwrap();
    // 1.5 GiB: overlapping ranges with keys of their own.
    let ranges: Vec<_> = (0..513u64).map(|number| (DATA + 16 * number, 3 << 20)).collect();
    let big = SharedMemory::create("big", 8 << 20).unwrap();
    let base = 0x10_0000_0000;
    let region =
        GuestRegion { iova: base, size: 8 << 20, memory: big.into(), offset: 0, writable: true };
    s.vmm.container.map(region).unwrap();
    let ranges: Vec<_> =
        ranges.into_iter().map(|(address, size)| (base + address - DATA, size)).collect();
    let (status, responses) = guest.map(&ranges);
    let failed = responses.iter().filter(|response| response.2 != 0).count();
    assert_eq!((status, failed), (IO_ERROR, 1));
    assert_eq!(guest.unmap(&[base]).0, OK);
    assert_eq!(guest.map(&ranges[512..]).0, OK);
    let now = s.probe.connection().statistics(address("01:00.1")).unwrap();
    let limits = (now.failed_bytes, now.failed_mappings, now.failed_segments);
    assert_eq!((limits, now.peak_regions, now.peak_bytes), ((1, 1, 1), 65_536, 3 << 29));
    // Memory that goes takes its registrations along.
    s.vmm.container.unmap(base, 8 << 20).unwrap();
    assert_eq!((s.held(), s.live()), (0, 0));
}

#[test]
fn c5_4_everything_is_released_with_the_guest_the_device_or_the_connection_process() {
    let s = setup();
    let pages: Vec<_> = (0..64u64).map(|page| (DATA + 0x1000 * page, 0x1000)).collect();
    let map = || assert_eq!(s.guest().map(&pages).0, OK);
    map();
    s.companion.reset().unwrap();
    assert_eq!(s.held(), 0);
    assert_eq!(s.guest().read(register::STATUS), 0);
    map();
    s.vmm.container.unmap(RAM_BASE, RAM).unwrap();
    assert_eq!(s.held(), 0);
    assert_eq!(s.guest().ring(PAGE), INVALID);
    let memory = SharedMemory::create("ram", RAM).unwrap();
    let ram = memory.map_all(ipc::Access::ReadWrite).unwrap();
    let region =
        GuestRegion { iova: RAM_BASE, size: RAM, memory: memory.into(), offset: 0, writable: true };
    s.vmm.container.map(region).unwrap();
    let guest = Guest { companion: &*s.companion, ram: &ram, layout: Layout::Packed32 };
    assert_eq!(guest.map(&pages).0, OK);
    // A surprise removal and return: the guest maps anew.
    signal(s.probe.connection().pid(), Signal::KILL);
    assert!(eventually(|| s.probe.returns() == 1));
    assert_eq!((s.held(), s.live()), (0, 0));
    assert_eq!(guest.map(&pages).0, OK);
    s.vmm.host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
    assert_eq!(guest.ring(PAGE), IO_ERROR);
}

#[test]
fn p10_1_p10_2_a_companion_comes_and_goes_with_its_device() {
    let s = setup();
    let (host, container) = (&s.vmm.host, &s.vmm.container);
    // The same guest and host address: the one that is there.
    let again = host.create_companion(address("01:00.1"), container, guest_address()).unwrap();
    assert!(Arc::ptr_eq(&again, &s.companion));
    let elsewhere = CompanionConfig::new(address("00:06.0"));
    let refused = host.create_companion(address("01:00.1"), container, elsewhere);
    assert!(refused.err().unwrap().to_string().contains("another guest address"));
    host.detach(&s.probe);
    s.simulator.assert_released("01:00.1");
    // One that was created by itself stays, and keeps the function.
    let device = host.attach(address("01:00.1"), container, None).unwrap();
    let own = host.create_companion(address("01:00.1"), container, guest_address()).unwrap();
    host.detach(&device);
    let guest = Guest { companion: &*own, ram: &s.vmm.ram, layout: Layout::Packed32 };
    assert_eq!(guest.map(&[(DATA, 0x1000)]).0, OK);
    assert_eq!(s.held(), 1);
    host.destroy_companion(&own);
    s.simulator.assert_released("01:00.1");
}

#[test]
fn p10_1_an_attach_whose_companion_cannot_be_made_is_undone() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let attached =
        vmm.host.attach_with_companion(address("01:00.1"), &vmm.container, None, guest_address());
    let error = attached.err().unwrap().to_string();
    assert!(error.contains("01:00.1") && error.contains("companion"), "{error}");
    simulator.assert_released("01:00.1");
}

#[test]
fn p10_3_a_companion_alone_claims_and_its_device_shares_it() {
    let simulator = Simulator::start(&["--device=01:00.1=probe", "--dart=strict"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let (host, container) = (&vmm.host, &vmm.container);
    let alone = host.create_companion(address("01:00.1"), container, guest_address()).unwrap();
    assert_eq!(simulator.held("01:00.1").1, 1);
    // Another guest may not have the device.
    let other = Arc::new(Container::new(DmaMode::Companion));
    let refused = host.attach(address("01:00.1"), &other, None).err().unwrap();
    assert!(refused.to_string().contains("duplicate owner"), "{refused}");
    let attached = host.attach_with_companion(address("01:00.1"), container, None, guest_address());
    let (device, companion) = attached.unwrap();
    assert!(Arc::ptr_eq(&alone, &companion));
    assert!(Arc::ptr_eq(&device, companion.device()));
    assert_eq!(simulator.held("01:00.1").1, 1);
    // It was not created with the device, so it does not go with it.
    host.detach(&device);
    assert_eq!(simulator.held("01:00.1").1, 1);
    let guest = Guest { companion: &*alone, ram: &vmm.ram, layout: Layout::Packed32 };
    assert_eq!(guest.map(&[(DATA, 0x1000)]).0, OK);
    host.destroy_companion(&alone);
    simulator.assert_released("01:00.1");
}

#[test]
fn functions_of_two_guests_have_key_spaces_of_their_own() {
    let s = setup();
    let other = Vmm::new(config(&s.simulator), DmaMode::Companion);
    let attached = s.vmm.host.attach_with_companion(
        address("01:00.0"),
        &other.container,
        None,
        CompanionConfig::new(address("00:07.0")),
    );
    let (disk, companion) = attached.unwrap();
    let theirs = Guest { companion: &*companion, ram: &other.ram, layout: Layout::Packed32 };
    assert_eq!(s.guest().map(&[(DATA, 0x1000)]).0, OK);
    assert_eq!(theirs.unmap(&[DATA]).0, IO_ERROR);
    assert_eq!(theirs.map(&[(DATA, 0x1000)]).0, OK);
    assert_eq!(s.guest().unmap(&[DATA]).0, OK);
    assert_eq!(s.simulator.held("01:00.0").2, 1);
    s.vmm.host.detach(&disk);
}
