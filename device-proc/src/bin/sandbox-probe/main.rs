//! `sandbox-probe`: confines itself exactly as a role of `device-proc` does, then tries one
//! forbidden thing and says how it went by its exit status: [`REFUSED`] or [`SUCCEEDED`]. Most
//! attempts never return, since the filter kills the process.
//!
//! A program of its own, so that the product's program holds none of this.
#![expect(unsafe_code, reason = "it makes system calls that no library would")]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::ffi::{c_int, c_long};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use console::{exit, say};
use cordon_device_proc::options::{Common, Windows};
use cordon_device_proc::{connection, function, start};
use ipc::PciAddress;
use ipc::wire::handshake::Role;
#[cfg(target_os = "linux")]
use linux::ATTEMPTS;
#[cfg(target_os = "macos")]
use macos::ATTEMPTS;

/// The attempt came back with an error.
const REFUSED: c_int = 3;
/// The attempt worked.
const SUCCEEDED: c_int = 99;
/// There is no such attempt.
const UNKNOWN: c_int = 4;

/// Tries one forbidden thing from inside the sandbox.
#[derive(Parser)]
#[command(version, about)]
struct Options {
    #[command(subcommand)]
    role: RoleOptions,
}

#[derive(Subcommand)]
enum RoleOptions {
    /// As a connection process.
    Connection(Attempt),
    /// As a function process.
    Function(Attempt),
    /// Without any confinement, to show that the attempts are real.
    Unconfined {
        /// What to try.
        #[arg(long)]
        attempt: String,
        /// A process to meddle with.
        #[arg(long)]
        victim: i32,
    },
    /// Print the names of all attempts.
    List,
}

#[derive(Args)]
struct Attempt {
    #[arg(long)]
    address: PciAddress,
    #[command(flatten)]
    common: Common,
    /// What to try.
    #[arg(long)]
    attempt: String,
    /// A process to meddle with.
    #[arg(long)]
    victim: i32,
}

/// What an attempt works with.
struct Target {
    victim: c_long,
    tube: c_long,
}

/// An attempt: its name and what it does. Negative is an error.
type Entry = (&'static str, fn(&Target) -> c_long);

fn main() -> ExitCode {
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    match options.role {
        RoleOptions::List => {
            let mut names = ATTEMPTS.iter().map(|(name, _)| *name);
            match names.try_for_each(|name| say!("{name}")) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(exit::UNWRITTEN),
            }
        }
        RoleOptions::Unconfined { attempt, victim } => {
            attempt_and_exit(&attempt, &Target { victim: victim.into(), tube: -1 })
        }
        RoleOptions::Function(attempt) => confined(&attempt, Role::Function),
        RoleOptions::Connection(attempt) => confined(&attempt, Role::Connection),
    }
}

/// Starts as the role does, says that it is ready, and tries; what the role holds is held meanwhile.
fn confined(attempt: &Attempt, role: Role) -> ExitCode {
    let Attempt { address, common, .. } = attempt;
    let target = Target { victim: attempt.victim.into(), tube: common.tube_fd.into() };
    let ended = if role == Role::Function {
        start::run(
            common,
            role,
            |tube| function::prepare(*address, false, common, tube),
            |_, _held| attempt_and_exit(&attempt.attempt, &target),
        )
    } else {
        start::run(
            common,
            role,
            |tube| connection::prepare(*address, Windows::Handed, common, tube),
            |_, _held| attempt_and_exit(&attempt.attempt, &target),
        )
    };
    drop(ended);
    ExitCode::FAILURE
}

fn attempt_and_exit(name: &str, target: &Target) -> ! {
    let Some((_, run)) = ATTEMPTS.iter().find(|(known, _)| *known == name) else {
        std::process::exit(UNKNOWN);
    };
    let code = if run(target) < 0 { REFUSED } else { SUCCEEDED };
    // No clean-up: an attempt may have left the process in any state.
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
