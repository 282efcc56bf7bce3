//! What `cargo xtask test` counts as "vfio guest".

mod ground;
mod handed;
mod keeper;
mod product;
mod served;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cordon_tests::machine::prepared;
use cordon_tests::{announce, program};
use vfio_guest::script::Ending;
use vfio_guest::{Machine, Ran, Report};

/// How long a boot with its steps may take on a busy machine.
const WITHIN: Duration = Duration::from_secs(900);

/// A machine with the programs that most steps need.
fn with_programs(programs: &[&str]) -> Machine {
    let mut machine = Machine::new(prepared());
    for name in programs {
        machine.program(&program(name)).unwrap();
    }
    machine
}

/// Boots it and says meanwhile how far it is; why it did not come to its end otherwise.
fn run(machine: Machine, what: &str) -> Result<Ran, String> {
    // Each has two processors: more at once would only make all of them late.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    announce(&format!("vfio guest, {what}: booting"));
    let ran = machine.run(&program("vfio-init"), WITHIN, |report| {
        if let Report::Ended { step, how, took, .. } = report {
            let how = match how {
                Ending::Exited(0) => "done".to_owned(),
                other => format!("{other:?}"),
            };
            announce(&format!("vfio guest, {what}: {step}: {how} after {took:.1?}"));
        }
    });
    let ran = ran.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })?;
    announce(&format!("vfio guest, {what}: {:.1?} in all", ran.took));
    Ok(ran)
}
