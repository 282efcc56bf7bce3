//! Trapped accesses of a VMM that links cordon-vmm.

use cordon_backend::{Backend as _, Source};
use cordon_tests::{Simulator, Vmm, address, config};
use cordon_vmm::{DmaMode, Function, PassthroughDevice as _};
use dext_client::Dext;
use parking_lot::Mutex;

use super::{Bar, Failure, Report, Row};
use crate::measure::Meter;
use crate::raw::{SpinPair, echo};

const DEVICES: [&str; 4] = [
    "--device=01:00.0=probe",
    "--device=02:00.0=probe",
    "--device=03:00.0=probe",
    "--device=04:00.0=probe",
];

/// A scratch register.
const SCRATCH: u64 = 0x10;

/// Threads, and the functions that they share: thread T traps at function T modulo that.
const AT_ONCE: [(usize, usize); 5] = [(1, 1), (2, 1), (4, 1), (2, 2), (4, 4)];

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    let simulator = Simulator::start(&DEVICES);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let functions = ["01:00.0", "02:00.0", "03:00.0", "04:00.0"].map(|one| vmm.attach(one));
    let function = functions[0].as_ref();
    let read = |function: &Function| -> Result<(), Failure> {
        Ok(function.bar_read(0, SCRATCH, &mut [0; 4])?)
    };
    let hot = Bar { median: Some(500), ratio: Some(4.0), ..Bar::default() };
    let spin = Mutex::new(SpinPair::start());
    let raw = |_: usize| {
        spin.lock().round_trip();
        Ok(())
    };
    let pair = meter.pair(&mut || read(function), &mut || raw(0))?;
    row(Row::new("trapped-bar-read", pair, "raw spin round trip", hot))?;
    let mut write = || Ok(function.bar_write(0, SCRATCH, &[1; 4])?);
    let pair = meter.pair(&mut write, &mut || raw(0))?;
    row(Row::new("trapped-bar-write", pair, "raw spin round trip", hot))?;

    let mut socket = echo(1, 1)?;
    let pair = meter.cold_pair(&mut || read(function), &mut || Ok(socket.round_trip()?))?;
    let baseline = "raw socketpair round trip, cold";
    row(Row::new("trapped-bar-read-cold", pair, baseline, Bar::ratio(1.3)))?;

    let dext = Dext::at(&simulator.endpoint().parse()?)?;
    let mut own = dext.open_function(address("01:00.0"), Source::Own)?;
    let mut call = || {
        own.config_read(0, 4)?;
        Ok(())
    };
    let pair = meter.pair(&mut || Ok(function.config_read(0, &mut [0; 4])?), &mut call)?;
    let bar = Bar { more: Some(600), ..Bar::default() };
    row(Row::new("config-read", pair, "the dext call alone", bar))?;

    let cpus = std::thread::available_parallelism()?;
    for (threads, many) in AT_ONCE {
        let call = |thread: usize| read(&functions[thread % many]);
        // One thread is what the others are compared with; beside it is what the machine can do.
        let (pair, baseline, bar) = if threads == 1 {
            (meter.at_once(1, &call, &raw)?, "raw spin round trip", Bar::ratio(4.0))
        } else {
            (meter.at_once(threads, &call, &call)?, "one thread", Bar::ratio(1.0))
        };
        let name = format!("{threads}-threads-on-{many}-functions");
        row(Row::new(name, pair, format!("{baseline}, {cpus} CPUs"), bar))?;
    }
    Ok(())
}
