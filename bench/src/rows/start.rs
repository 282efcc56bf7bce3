//! What a function process takes to start, and how much it holds.

use std::process::{Child, Command, Stdio};

use cordon_tests::{Simulator, Vmm, address, config, program};
use cordon_vmm::DmaMode;
use cordon_vmm::host::SpawnMeter;

use super::{Bar, Failure, Report, Row};
use crate::measure::{Meter, Samples, nanoseconds};
use crate::proc::Process;

/// 0.7 MiB.
const PRIVATE: u64 = 7 * 1024 * 1024 / 10;
const PROGRAM: u64 = 1_500_000;

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let config = config(&simulator);
    let spawns = SpawnMeter::start(&config, address("02:00.0"))?;
    let mut spawn = || Ok(nanoseconds(spawns.measure()?));
    let mut bare = || -> Result<(), Failure> {
        let ended = Command::new("true").stdin(Stdio::null()).status()?;
        if ended.success() { Ok(()) } else { Err(format!("true: {ended}").into()) }
    };
    let pair = meter.pair_of(&mut spawn, &mut || meter.once(&mut bare))?;
    spawns.stop()?;
    let bar = Bar { median: Some(3_000_000), ..Bar::default() };
    row(Row::new("spawn-to-ready", pair, "true(1), from spawn to its end", bar))?;

    let vmm = Vmm::new(config, DmaMode::Companion);
    let function = vmm.attach("01:00.0");
    let idler = Idler(Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn()?);
    let (ours, theirs) = (Process(function.pid()).private(), Process(idler.0.id()).private());
    let bar = Bar { median: Some(PRIVATE), ..Bar::default() };
    let (name, baseline) = ("function-process-private-memory", "sleep(1)");
    row(match ours.and_then(|ours| Ok((Samples::of(ours), Samples::of(theirs?)))) {
        Ok(pair) => Row::new(name, pair, baseline, bar),
        Err(error) => {
            let why = format!("smaps_rollup of a confined process, which root may read: {error}");
            Row::missing(name, baseline, bar, why)
        }
    }
    .in_unit("bytes"))?;

    let size = |name| Ok::<_, Failure>(Samples::of(std::fs::metadata(program(name))?.len()));
    let pair = (size("device-proc")?, size("cordon")?);
    let bar = Bar { median: Some(PROGRAM), ..Bar::default() };
    row(Row::new("device-proc-size", pair, "cordon, which is not confined", bar).in_unit("bytes"))
}

/// A process that does nothing. Killed on drop.
struct Idler(Child);

impl Drop for Idler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
