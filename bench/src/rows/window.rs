//! Loads and stores through a BAR window, which cross no process.

use std::hint::black_box;

use cordon_tests::{Simulator, Vmm, config};
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use ipc::{Access, SharedMemory, Window};

use super::{Bar, Failure, Row};
use crate::measure::Meter;

/// Accesses of one sample, since one by itself is shorter than a look at the clock.
const MANY: u64 = 1_000;
/// In the probe device's scratch registers.
const SCRATCH: u64 = 0x10;

pub(super) fn measure(
    meter: &Meter,
    row: &mut dyn FnMut(Row) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let function = vmm.attach("01:00.0");
    let windows = function.windows()?;
    let window = windows.first().ok_or("the probe device has no window")?.map()?;
    let own = SharedMemory::create("private", 16 * 1024)?.map_all(Access::ReadWrite)?;
    let bar = Bar { ratio: Some(1.05), ..Bar::default() };
    let load = |window: &Window| {
        for _ in 0..MANY {
            let _ = black_box(window.read::<u32>(black_box(SCRATCH)));
        }
    };
    let store = |window: &Window| {
        for number in 0..MANY {
            let _ = window.write(black_box(SCRATCH), black_box(u32::try_from(number).unwrap_or(0)));
        }
    };
    let baseline_name = "memory that nobody else maps";
    let (subject, baseline) = meter.pair(&mut || load(&window), &mut || load(&own));
    row(Row { name: "window-load-x1000".to_owned(), subject, baseline_name, baseline, bar })?;
    let (subject, baseline) = meter.pair(&mut || store(&window), &mut || store(&own));
    row(Row { name: "window-store-x1000".to_owned(), subject, baseline_name, baseline, bar })
}
