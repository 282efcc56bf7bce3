//! `policy-trace COMMAND ARGUMENT…`: runs a command whose programs are those of `CORDON_BIN_DIR`, with every
//! confined process traced, and compares the rows of the system-call policy that were used with those that
//! there are. It fails when a row was not used by any role that has it, or when a process needed a call that no
//! row allows. How the command itself ended is told, and no more: traced, it is late.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
use elsewhere::run;
#[cfg(target_os = "linux")]
use linux::run;

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().expect("a command to run");
    run(std::process::Command::new(program).args(arguments))
}
