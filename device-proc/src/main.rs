//! `device-proc`: one confined process, in the role that the command line says.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use device_proc::options::{Options, RoleOptions};
use device_proc::{connection, function, lister};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        // Standard error does not block: what does not fit is lost, and that is no reason to panic.
        .log_internal_errors(false)
        .init();
    let ended = match Options::parse().role {
        RoleOptions::Connection { address, common } => connection::run(address, &common),
        RoleOptions::Function { address, standby, common } => {
            function::run(address, standby, &common)
        }
        RoleOptions::Lister { common } => lister::run(&common),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "device-proc: {}", ipc::chain(&error));
            ExitCode::FAILURE
        }
    }
}
