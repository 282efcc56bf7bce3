//! A companion's batch, and what another function's guest notices of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_backend::{Backend as _, Behind, BusRange, DmaRange, GroupFunction, Source};
use cordon_tests::companion::{Guest, PAGE};
use cordon_tests::{RAM_BASE, Simulator, Vmm, address, config};
use cordon_vmm::companion::{CompanionConfig, Layout, register};
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use dext_client::Dext;
use ipc::{Access, SharedMemory, Window};

use super::{Bar, Failure, Report, Row};
use crate::measure::{Meter, Samples, nanoseconds};

/// Entries of a batch, and the bytes of each.
const MANY: u64 = 4096;
const SIZE: u64 = 16;
/// Memory to map: behind the rings.
const DATA: u64 = RAM_BASE + 0x10_0000;
/// A scratch register.
const SCRATCH: u64 = 0x10;
/// Between two accesses of the other function: its guest does other things too.
const PAUSE: Duration = Duration::from_micros(200);

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let devices = ["--device=01:00.0=probe", "--device=01:00.1=probe", "--device=02:00.0=probe"];
    let simulator = Simulator::start(&devices);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let (_function, companion) = vmm.host.attach_with_companion(
        address("01:00.1"),
        &vmm.container,
        None,
        CompanionConfig::new(address("00:05.0")),
    )?;
    let guest = Guest { companion: &*companion, ram: &vmm.ram, layout: Layout::Packed32 };
    let ranges: Vec<_> = (0..MANY).map(|number| (DATA + SIZE * number, SIZE)).collect();
    let keys: Vec<_> = ranges.iter().map(|(address, _)| *address).collect();
    // What is timed is the doorbell: a guest writes its requests whoever carries them out.
    let batch = || -> Result<u64, Failure> {
        guest.write_map(&ranges);
        let before = Instant::now();
        guest.companion.bar_write(0, register::DOORBELL, &1u32.to_le_bytes())?;
        let taken = nanoseconds(before.elapsed());
        guest.write_unmap(&keys);
        let (mapped, removed) = (guest.read(register::STATUS), guest.ring(PAGE));
        if (mapped, removed) == (0, 0) {
            Ok(taken)
        } else {
            Err(format!("a batch ended with status {mapped}, its removal with {removed}").into())
        }
    };

    let mut alone = Alone::start(&simulator)?;
    let mut pair = (Samples::new(), Samples::new());
    meter.repeat(2, &mut || {
        pair.0.add(batch()? / MANY);
        pair.1.add(alone.batch()? / MANY);
        Ok(())
    })?;
    let bar = Bar { more: Some(300), ..Bar::default() };
    row(Row::new("companion-map-entry", pair, "the dext call alone", bar))?;

    // Another guest's function, of the same device.
    let other = Vmm::new(config(&simulator), DmaMode::Companion);
    let sibling = vmm.host.attach(address("01:00.0"), &other.container, None)?;
    let access = || -> Result<u64, Failure> {
        std::thread::sleep(PAUSE);
        let before = Instant::now();
        sibling.bar_read(0, SCRATCH, &mut [0; 4])?;
        Ok(nanoseconds(before.elapsed()))
    };
    let mut pair = (Samples::new(), Samples::new());
    meter.repeat(2, &mut || {
        let mut count = 0;
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<(), Failure> {
            let batch = scope.spawn(|| {
                let done = batch();
                ended.store(true, Ordering::Relaxed);
                done
            });
            while !ended.load(Ordering::Relaxed) {
                pair.0.add(access()?);
                count += 1;
            }
            batch.join().map_err(|_| "the guest panicked")?.map(drop)
        })?;
        for _ in 0..count {
            pair.1.add(access()?);
        }
        Ok(())
    })?;
    let bar = Bar { p99: Some(1_000_000), ..Bar::default() };
    row(Row::new(
        "sibling-bar-read-during-batches",
        pair,
        "the same while nothing else is asked",
        bar,
    ))
}

/// The same registrations, by somebody who asks the dext and does nothing else.
struct Alone {
    function: Box<dyn GroupFunction>,
    memory: SharedMemory,
    window: Window,
}

impl Alone {
    fn start(simulator: &Simulator) -> Result<Self, Failure> {
        let dext = Dext::at(&simulator.endpoint().parse()?)?;
        let group = dext.open_group(address("02:00.0"), Source::Own)?;
        let mut function = group.functions.into_iter().next().ok_or("a device has no function")?;
        function.claim()?;
        let memory = SharedMemory::create("alone", MANY * SIZE)?;
        let window = memory.map_all(Access::ReadWrite)?;
        Ok(Self { function, memory, window })
    }

    /// Nanoseconds of as many registrations as a batch has, which are removed afterwards.
    fn batch(&mut self) -> Result<u64, Failure> {
        let mut at = Vec::with_capacity(usize::try_from(MANY)?);
        let before = Instant::now();
        for number in 0..MANY {
            let offset = SIZE * number;
            let behind = Behind { memory: &self.memory, offset, writable: true };
            let mapped_at = Some(self.window.address() + usize::try_from(offset)?);
            let range = DmaRange { key: DATA + offset, size: SIZE, mapped_at, behind };
            at.push((range.key, self.function.register_dma(&range)?));
        }
        let taken = nanoseconds(before.elapsed());
        at.into_iter()
            .try_for_each(|(key, bus): (u64, BusRange)| self.function.unregister_dma(key, bus))?;
        Ok(taken)
    }
}
