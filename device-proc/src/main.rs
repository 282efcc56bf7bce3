//! `device-proc`: one confined process, in the role that the command line says.

use std::process::ExitCode;

use cordon_device_proc::hooks::NoHooks;
use cordon_device_proc::{panics, program};

fn main() -> ExitCode {
    panics::exit_on_panic();
    program::run(&mut NoHooks)
}
