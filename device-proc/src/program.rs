//! The program: one process in the role that its command line says. `device-proc` runs it as it is,
//! `faulty-device-proc` with hooks that do wrong.

use std::io::Write as _;
use std::process::ExitCode;

use crate::hooks::Hooks;
use crate::log::Log;
use crate::options::{Command, USAGE};
use crate::{connection, doctor as findings, function, lister};

/// The exit status of a process that ended in order.
pub(crate) const DONE: u8 = 0;
/// The exit status of one that did not.
pub(crate) const FAILED: u8 = 1;
/// The exit status for a command line that cannot be.
pub(crate) const BAD_USAGE: u8 = 2;
/// The exit status when standard output cannot be written.
pub(crate) const UNWRITTEN: u8 = 74;

/// Runs to the end; the exit status says whether it ended in order.
pub fn run(hooks: &mut dyn Hooks) -> ExitCode {
    // Nobody else in this process sets one.
    let _ = tracing::subscriber::set_global_default(Log::new(std::io::stderr()));
    let command = match Command::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "device-proc: {error} (see --help)");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let ended = match command {
        Command::Connection { address, windows, common } => {
            connection::run(address, windows, &common, hooks)
        }
        Command::Function { address, serving, common } => {
            function::run(address, serving, &common, hooks)
        }
        Command::Lister { common } => lister::run(&common),
        Command::Doctor { confine } => return doctor(confine.as_deref()),
        Command::Help => return print(USAGE),
        Command::Version => return print(concat!("device-proc ", env!("CARGO_PKG_VERSION"), "\n")),
    };
    match ended {
        Ok(()) => ExitCode::from(DONE),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "device-proc: {}", ipc::chain(&error));
            ExitCode::from(FAILED)
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(UNWRITTEN),
    }
}

/// Prints what is found.
fn doctor(confine: Option<&str>) -> ExitCode {
    let found = match confine {
        None => findings::profiles(),
        Some(name) => match findings::ROLES.iter().find(|(known, _)| *known == name) {
            Some((name, role)) => findings::confine_and_ask(name, *role),
            None => vec![(false, format!("there is no role '{name}'"))],
        },
    };
    let mut output = std::io::stdout().lock();
    for (good, text) in &found {
        if writeln!(output, "{} {text}", if *good { "ok   " } else { "WRONG" }).is_err() {
            return ExitCode::from(UNWRITTEN);
        }
    }
    if found.iter().all(|(good, _)| *good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
