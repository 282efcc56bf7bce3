//! `faulty-device-proc`: the roles and the command line of `device-proc`, in a process that does
//! wrong when its VMM side says so. For tests of whoever must survive that.
//!
//! A program of its own, so that the product's program holds none of this.

mod misbehave;
mod sys;

use std::process::ExitCode;

use cordon_device_proc::program;

fn main() -> ExitCode {
    program::run(&mut misbehave::Misbehave::default())
}
