//! Config reads that the VMM side answers by itself, from `cordon_pci`'s model: they cross no process.

use std::hint::black_box;

use cordon_pci::{ConfigSpace, Description, Options};
use cordon_tests::{Simulator, Vmm, config};
use cordon_vfio_user::config::Config;
use cordon_vmm::{DmaMode, InterruptIndex, PassthroughDevice as _};
use ipc::{Access, SharedMemory};

use super::{Bar, Failure, Report, Row};
use crate::measure::Meter;

/// Reads of one sample, since one by itself is shorter than a look at the clock. The sample is one read's.
const MANY: u32 = 200;
/// The first BAR's register, which the model keeps.
const BAR0: u32 = 0x10;

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let function = vmm.attach("01:00.0");
    let own = SharedMemory::create("private", 16 * 1024)?.map_all(Access::ReadWrite)?;
    let bar = Bar { median: Some(100), ..Bar::default() };
    let baseline = "4 bytes of memory";
    let mut load = || {
        black_box(own.read::<u32>(black_box(BAR0.into()))?);
        Ok(())
    };

    let mut shown = vec![0; 4096];
    function.config_read(0, &mut shown)?;
    let described = Description {
        config: &shown,
        bars: function.info().pci_bars(),
        vectors: u16::try_from(function.interrupt_info(InterruptIndex::Msi).count)?,
    };
    let space = ConfigSpace::new(&described, Options::linked())?;
    let mut linked = || -> Result<(), Failure> {
        let mut bytes = [0; 4];
        space.read_with(black_box(BAR0), &mut bytes, |at, inside| {
            function.config_read(at, inside)
        })?;
        black_box(bytes);
        Ok(())
    };
    let pair = meter
        .pair_of(&mut || meter.one_of(MANY, &mut linked), &mut || meter.one_of(MANY, &mut load))?;
    row(Row::new("kept-config-read-linked", pair, baseline, bar))?;

    let mut model = Config::default();
    let mut served = || -> Result<(), Failure> {
        let mut bytes = [0; 4];
        model.read(function.as_ref(), black_box(BAR0), &mut bytes)?;
        black_box(bytes);
        Ok(())
    };
    let pair = meter
        .pair_of(&mut || meter.one_of(MANY, &mut served), &mut || meter.one_of(MANY, &mut load))?;
    row(Row::new("kept-config-read-vfio-user", pair, baseline, bar))
}
