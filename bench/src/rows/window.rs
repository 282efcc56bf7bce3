//! Loads and stores through a BAR window, which cross no process.

use std::hint::black_box;

use cordon_tests::{Simulator, Vmm, config};
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use ipc::{Access, SharedMemory, Window};

use super::{Bar, Failure, Report, Row};
use crate::measure::Meter;

/// Accesses of one sample, since one by itself is shorter than a look at the clock.
const MANY: u32 = 1_000;
/// In the probe device's scratch registers.
const SCRATCH: u64 = 0x10;

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let function = vmm.attach("01:00.0");
    let windows = function.windows()?;
    let window = windows.first().ok_or("the probe device has no window")?.map()?;
    let own = SharedMemory::create("private", 16 * 1024)?.map_all(Access::ReadWrite)?;
    let bar = Bar::ratio(1.05);
    let load = |window: &Window| -> Result<(), Failure> {
        for _ in 0..MANY {
            black_box(window.read::<u32>(black_box(SCRATCH))?);
        }
        Ok(())
    };
    let store = |window: &Window| -> Result<(), Failure> {
        for number in 0..MANY {
            window.write(black_box(SCRATCH), black_box(number))?;
        }
        Ok(())
    };
    let baseline = "memory that nobody else maps";
    let pair = meter.pair(&mut || load(&window), &mut || load(&own))?;
    row(Row::new("window-load-x1000", pair, baseline, bar))?;
    let pair = meter.pair(&mut || store(&window), &mut || store(&own))?;
    row(Row::new("window-store-x1000", pair, baseline, bar))
}
