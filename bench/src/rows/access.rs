//! Trapped accesses of a VMM that links cordon-vmm.

use cordon_backend::{Backend as _, Source};
use cordon_tests::{Simulator, Vmm, address, config};
use cordon_vmm::{DmaMode, PassthroughDevice as _};
use dext_client::Dext;

use super::{Bar, Failure, Row};
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

pub(super) fn measure(
    meter: &Meter,
    row: &mut dyn FnMut(Row) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let simulator = Simulator::start(&DEVICES);
    let vmm = Vmm::new(config(&simulator), DmaMode::Companion);
    let functions = ["01:00.0", "02:00.0", "03:00.0", "04:00.0"].map(|one| vmm.attach(one));
    let function = functions[0].as_ref();
    let hot = Bar { median: Some(500), ratio: Some(4.0), ..Bar::default() };
    let mut failed = false;
    {
        let mut spin = SpinPair::start();
        let mut read = || failed |= function.bar_read(0, SCRATCH, &mut [0; 4]).is_err();
        let (subject, baseline) = meter.pair(&mut read, &mut || spin.round_trip());
        let (name, baseline_name) = ("trapped-bar-read".to_owned(), "raw spin round trip");
        row(Row { name, subject, baseline_name, baseline, bar: hot })?;
        let mut write = || failed |= function.bar_write(0, SCRATCH, &[1; 4]).is_err();
        let (subject, baseline) = meter.pair(&mut write, &mut || spin.round_trip());
        let name = "trapped-bar-write".to_owned();
        row(Row { name, subject, baseline_name, baseline, bar: hot })?;
    }
    {
        let mut socket = echo(1, 1)?;
        let mut read = || failed |= function.bar_read(0, SCRATCH, &mut [0; 4]).is_err();
        let (subject, baseline) = meter.cold_pair(&mut read, &mut || socket.round_trip());
        row(Row {
            name: "trapped-bar-read-cold".to_owned(),
            subject,
            baseline_name: "raw socketpair round trip, cold",
            baseline,
            bar: Bar { ratio: Some(1.3), ..Bar::default() },
        })?;
    }
    {
        let dext = Dext::at(&simulator.endpoint().parse()?)?;
        let mut own = dext.open_function(address("01:00.0"), Source::Own)?;
        let mut call = || drop(own.config_read(0, 4));
        let mut read = || failed |= function.config_read(0, &mut [0; 4]).is_err();
        let (subject, baseline) = meter.pair(&mut read, &mut call);
        row(Row {
            name: "config-read".to_owned(),
            subject,
            baseline_name: "the dext call alone",
            baseline,
            bar: Bar { more: Some(600), ..Bar::default() },
        })?;
    }
    let cpus = std::thread::available_parallelism()?;
    let never_less = Bar { ratio: Some(1.0), ..Bar::default() };
    for threads in [2, 4] {
        let call = |_: usize| drop(function.bar_read(0, SCRATCH, &mut [0; 4]));
        let (subject, baseline) = meter.at_once(threads, &call);
        row(Row {
            name: format!("{threads}-threads-one-function-{cpus}-cpus"),
            subject,
            baseline_name: "one thread",
            baseline,
            bar: never_less,
        })?;
    }
    for threads in [2, 4] {
        let call = |thread: usize| drop(functions[thread].bar_read(0, SCRATCH, &mut [0; 4]));
        let (subject, baseline) = meter.at_once(threads, &call);
        row(Row {
            name: format!("{threads}-threads-{threads}-functions-{cpus}-cpus"),
            subject,
            baseline_name: "one thread",
            baseline,
            bar: never_less,
        })?;
    }
    if failed { Err("an access failed".into()) } else { Ok(()) }
}
