//! `dext-sim`: a simulated VFIOUserPCIDriver and the PCI devices behind it.
//!
//! A program of its own, because the real dext is another process too: it outlives its clients
//! and cleans up after them. It speaks the dext's selectors with the same checks, codes, limits
//! and order of cleaning up. Nobody can trap a store to shared memory, so the simulated devices
//! poll their registers. It distrusts every client; when it dies, its clients see end of file.
//!
//! It is a library so that the fuzz targets can be its clients without a process; the product is the
//! `dext-sim` program.

mod config_space;
mod connection;
mod control;
mod dart;
mod device;
mod faults;
mod function;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hardware;
mod interrupts;
mod limits;
mod memory;
mod methods;
mod options;
mod server;
mod sys;
mod threads;
mod user_client;

use std::process::ExitCode;
use std::sync::Arc;

use console::log::Log;
use console::{OutputError, exit, say};
use ipc::tube::Listener;
use ipc::wire::common::Identity;
use parking_lot::Mutex;

use crate::device::Model;
use crate::faults::Faults;
use crate::function::Function;
use crate::hardware::Hardware;
use crate::limits::Admissions;
use crate::memory::Budget;
use crate::options::{DeviceSpec, Options};
use crate::server::Registry;

type Failure = Box<dyn std::error::Error>;

/// The program: takes its command line, and serves until it is told to end.
#[must_use]
pub fn main() -> ExitCode {
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    let log = Log::start(tracing::Level::INFO);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<OutputError>() => ExitCode::from(exit::UNWRITTEN),
        Err(error) => {
            log.line(&format!("dext-sim: {}", ipc::chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let faults = Arc::new(Faults::new(&options.faults));
    let mut functions = Vec::new();
    for (id, spec) in (0x1_0000_0001..).zip(&options.devices) {
        let duplicate = functions.iter().any(|f: &Arc<Function>| {
            f.address() == spec.address && f.root_bridge == spec.root_bridge
        });
        if duplicate {
            return Err(format!("device {} is given twice", spec.address).into());
        }
        let beside = options.devices.iter().filter(|one| {
            one.address.same_device(spec.address) && one.root_bridge == spec.root_bridge
        });
        let multi = beside.count();
        functions.push(build(id, spec, multi > 1, options, &faults)?);
    }
    let admissions = Admissions::new(limits::raise_descriptors(), functions.len())?;
    let registry = Arc::new(Registry::new(functions, admissions));
    let listener = Listener::bind(&options.socket)?;
    let control = match &options.control {
        Some(path) => Some(control::start(path, Arc::clone(&registry), faults)?),
        None => None,
    };
    say!("ready {}", options.socket.display())?;
    let served = server::serve(&listener, &registry, options.exit_with_stdin);
    if let Some(control) = control {
        control.remove();
    }
    Ok(served?)
}

/// One function and the thread that runs its device.
fn build(
    id: u64,
    spec: &DeviceSpec,
    multi_function: bool,
    options: &Options,
    faults: &Arc<Faults>,
) -> Result<Arc<Function>, Failure> {
    let mut shape = device::shape(&spec.kind);
    shape.multi_function = multi_function;
    shape.serial = 0x00c0_d000_0000_0000 | id;
    let identity = Identity {
        address: spec.address,
        vendor: shape.vendor,
        device: shape.device,
        class: shape.class,
    };
    let hardware = Arc::new(Hardware::new(&shape, options.dart, faults)?);
    let mut model = device::model(&spec.kind, id)
        .map_err(|error| format!("device {}: {error}", spec.address))?;
    model.reset(&hardware);
    let model: Arc<Mutex<Box<dyn Model>>> = Arc::new(Mutex::new(model));
    device::start(spec.address, Arc::clone(&hardware), Arc::clone(&model))?;
    let memory = Budget::of_one_in(options.devices.len());
    let function = Function::new(id, identity, hardware, Arc::clone(faults), memory, model);
    Ok(Arc::new(function.beneath(spec.root_bridge.clone())))
}
