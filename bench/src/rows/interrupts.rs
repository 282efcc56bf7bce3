//! From a device's raising an interrupt to the VMM's event being readable.

use std::time::Duration;

use cordon_tests::{Simulator, Vmm, config};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use ipc::Event;
use ipc::wire::function::InterruptIndex;

use super::{Bar, Failure, Report, Row};
use crate::hops::{Hops, wait};
use crate::measure::Meter;

/// Registers of the probe device: how many vectors to fire from the first, what starts that, and when
/// the last one was fired.
const COUNT: u64 = 0x68;
const START: u64 = 0x6c;
const RAISED: u64 = 0x78;

/// Before each: long enough that everybody sleeps who sleeps when nothing happens.
const PAUSE: Duration = Duration::from_micros(300);

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let function = vmm.attach("01:00.0");
    let event = Event::new()?;
    let signallers = vec![Some(event.signaller()?)];
    let assign = InterruptSetup::Assign { start: 0, signallers };
    function.set_interrupts(InterruptIndex::Msix, assign)?;
    let windows = function.windows()?;
    let registers = windows.first().ok_or("the probe device has no window")?.map()?;
    registers.write(COUNT, 1u32)?;
    let mut number = 0;
    let mut ours = || -> Result<u64, Failure> {
        std::thread::sleep(PAUSE);
        number += 1;
        registers.store_u32(START, number)?;
        let seen = wait(&event)?;
        Ok(seen.saturating_sub(registers.read::<u64>(RAISED)?))
    };
    let mut hops = Hops::start()?;
    let mut raw = || -> Result<u64, Failure> {
        std::thread::sleep(PAUSE);
        Ok(hops.once()?)
    };
    let pair = meter.pair_of(&mut ours, &mut raw)?;
    let baseline = "as many wake-ups and nothing else: raiser, a process that passes it on, waiter";
    row(Row::new("interrupt", pair, baseline, Bar::ratio(1.3)))
}
