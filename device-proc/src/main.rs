//! `device-proc`: one confined process, in the role that the command line says.

use std::io::Write as _;
use std::process::ExitCode;

use console::{exit, say};
use cordon_device_proc::options::{Options, RoleOptions};
use cordon_device_proc::{connection, doctor as findings, function, lister};

/// Prints what is found.
fn doctor(confine: Option<&str>) -> ExitCode {
    let found = match confine {
        None => findings::profiles(),
        Some(name) => match findings::ROLES.iter().find(|(known, _)| *known == name) {
            Some((name, role)) => findings::confine_and_ask(name, *role),
            None => vec![(false, format!("there is no role '{name}'"))],
        },
    };
    for (good, text) in &found {
        if say!("{} {text}", if *good { "ok   " } else { "WRONG" }).is_err() {
            return ExitCode::from(exit::UNWRITTEN);
        }
    }
    if found.iter().all(|(good, _)| *good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        // Standard error does not block: what does not fit is lost, and that is no reason to panic.
        .log_internal_errors(false)
        .init();
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    let ended = match options.role {
        RoleOptions::Connection { address, windows, common } => {
            connection::run(address, windows, &common)
        }
        RoleOptions::Function { address, standby, common } => {
            function::run(address, standby, &common)
        }
        RoleOptions::Lister { common } => lister::run(&common),
        RoleOptions::Doctor { confine } => return doctor(confine.as_deref()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "device-proc: {}", ipc::chain(&error));
            ExitCode::FAILURE
        }
    }
}
