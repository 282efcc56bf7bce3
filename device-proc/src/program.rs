//! The program: one process in the role that its command line says. `device-proc` runs it as it is,
//! `faulty-device-proc` with hooks that do wrong.

use std::io::Write as _;
use std::process::ExitCode;

use ipc::wire::common::REQUESTED;

use crate::hooks::Hooks;
use crate::log::Log;
use crate::options::{Command, USAGE};
use crate::start::RoleError;
use crate::{connection, doctor as findings, function, lister};

/// The exit status of a process that ended in order.
pub(crate) const DONE: u8 = 0;
/// The exit status of one that did not.
pub(crate) const FAILED: u8 = 1;
/// The exit status for an error.
pub(crate) fn status(error: &RoleError) -> u8 {
    match error {
        RoleError::Requested(_) => REQUESTED,
        _ => FAILED,
    }
}

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
        Command::Connection { address, holding, common } => {
            connection::run(address, holding, &common, hooks)
        }
        Command::Function { address, serving, common } => {
            function::run(address, serving, &common, hooks)
        }
        Command::Lister { address, common } => lister::run(address, &common),
        Command::Doctor { report: Some(name), .. } => findings::report(&name),
        Command::Doctor { confine, ask, report: None } => return doctor(confine.as_deref(), ask),
        Command::Help => return print(USAGE),
        Command::Version => return print(concat!("device-proc ", env!("CARGO_PKG_VERSION"), "\n")),
    };
    match ended {
        Ok(()) => ExitCode::from(DONE),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "device-proc: {}", ipc::chain(&error));
            ExitCode::from(status(&error))
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(UNWRITTEN),
    }
}

/// Prints what is found. Confined, it then stays for as long as standard input is open, to be asked
/// about.
fn doctor(confine: Option<&str>, ask: Option<u32>) -> ExitCode {
    let found = match (confine, ask) {
        (None, None) => findings::profiles(),
        (None, Some(pid)) => findings::ask(pid),
        (Some(name), _) => match findings::ROLES.iter().find(|(known, _)| *known == name) {
            Some((name, role)) => {
                // A person's shell started this, by way of cordon: what that leaves open is not ours.
                crate::sys::close_inherited();
                findings::confine(name, *role)
            }
            None => vec![(false, format!("there is no role '{name}'"))],
        },
    };
    let mut output = std::io::stdout().lock();
    let mut print = |line: &str| writeln!(output, "{line}").and_then(|()| output.flush());
    for (good, text) in &found {
        if print(&format!("{} {text}", if *good { "ok   " } else { "WRONG" })).is_err() {
            return ExitCode::from(UNWRITTEN);
        }
    }
    if confine.is_some() {
        // An empty line: there is nothing more to come.
        if print("").is_err() {
            return ExitCode::from(UNWRITTEN);
        }
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    }
    if found.iter().all(|(good, _)| *good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
