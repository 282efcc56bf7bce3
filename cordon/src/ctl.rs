//! `cordon ctl`: asks a running `cordon serve` by its control socket, whose protocol is in
//! `docs/control.md`. Text for people, or the answer's object for programs.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use console::{OutputError, say};
use cordon_cli::protocol::{Command, Listed, PlannedFault, Served, ServerInfo, Upgrade};
use cordon_vmm::faults::Fault;
use ipc::PciAddress;
use rustix::fs::{CWD, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::control::{self, AskError};
use crate::failure::Usage;
use crate::{Failure, inspect, output};

/// How long an upgrade may take: a few seconds for each function, and for a device to come back.
const UPGRADE: Duration = Duration::from_secs(600);

/// Whom to ask, and what for.
#[derive(Debug, Args)]
pub(crate) struct CtlOptions {
    /// The control socket of the `cordon serve`: what it was given as --control.
    #[arg(long, global = true, value_name = "PATH", env = "CORDON_CONTROL")]
    control: Option<PathBuf>,
    /// Print the server's answer as one JSON object instead of text; also an error.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Every function that the server was started for: where it is, its socket, what its client sees.
    List,
    /// All that the server knows of a function, its processes and DMA; without one, of itself.
    Inspect {
        /// The function; left out, the server itself.
        #[arg(value_name = "BB:DD.F")]
        device: Option<PciAddress>,
    },
    /// Detach a function: its client is sent away, its socket removed, the device free for others.
    Detach {
        /// The function.
        #[arg(value_name = "BB:DD.F")]
        device: PciAddress,
    },
    /// Attach a function that was detached, at the socket that it had.
    Attach {
        /// The function.
        #[arg(value_name = "BB:DD.F")]
        device: PciAddress,
    },
    /// Attach a function anew that was given up; a client that is left is sent away.
    Revive {
        /// The function.
        #[arg(value_name = "BB:DD.F")]
        device: PciAddress,
    },
    /// What is to go wrong, of a server that was started with --plan or --fault, and what did.
    Faults {
        /// Arm another fault, as function,request=BarWrite,nth=3,when=during,kill; repeat it
        /// for several. Requests are counted from now.
        #[arg(long, value_name = "FAULT")]
        arm: Vec<Fault>,
        /// Have a fault fire no more, by its number in the list; repeat it for several.
        #[arg(long, value_name = "NUMBER")]
        disarm: Vec<usize>,
    },
    /// Counters as Prometheus reads them: deaths, recoveries, DMA, what clients caused.
    Metrics,
    /// Have every function served by another device-proc while guests run; a guest waits for its next trapped
    /// access as long as for a standby. A program that cannot serve them all changes nothing.
    Upgrade {
        /// The program; only its owner may be able to write it, and that is root or the user who started the
        /// server. Without it, what is now where the server's own was when it started: after a package was
        /// installed, that of the new one.
        #[arg(long, value_name = "FILE", conflicts_with = "original")]
        program: Option<PathBuf>,
        /// The program that the server was started with, also if its file was replaced: a roll-back.
        #[arg(long)]
        original: bool,
        /// Also replace connection processes now: to guests a surprise removal and return, which loses what is
        /// in flight. Otherwise each is replaced when the last function of its device is detached, or when it
        /// dies.
        #[arg(long)]
        connections: bool,
    },
}

/// Asks and prints.
pub(crate) fn run(options: CtlOptions) -> Result<(), Failure> {
    let Some(path) = options.control else {
        return Err(Usage(
            "a server is asked by its socket: --control <PATH> is missing".to_owned(),
        )
        .into());
    };
    let text = |address: PciAddress| address.to_string();
    let mut file = None;
    let mut limit = control::TIMEOUT;
    let command = match options.command {
        CtlCommand::List => Command::List {},
        CtlCommand::Inspect { device } => Command::Inspect { device: device.map(text) },
        CtlCommand::Detach { device } => Command::Detach { device: text(device) },
        CtlCommand::Attach { device } => Command::Attach { device: text(device) },
        CtlCommand::Revive { device } => Command::Revive { device: text(device) },
        CtlCommand::Faults { arm, disarm } => {
            let arm = arm.iter().map(ToString::to_string).collect();
            Command::Faults { arm, disarm }
        }
        CtlCommand::Metrics => Command::Metrics {},
        CtlCommand::Upgrade { program, original, connections } => {
            let installed = match program {
                None if !original => match control::inspect_server(&path) {
                    Ok(server) => server.device_proc.map(PathBuf::from),
                    Err(error) => {
                        if options.json {
                            output::json(&as_value(&error))?;
                        }
                        return Err(error.into());
                    }
                },
                program => program,
            };
            file = installed.as_deref().map(open).transpose()?;
            limit = UPGRADE;
            Command::Upgrade { connections }
        }
    };
    let beside: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
    let answer = control::ask_with(&path, command, &beside, limit);
    if options.json {
        let shown = match &answer {
            Ok(value) => value.clone(),
            Err(error) => as_value(error),
        };
        output::json(&shown)?;
    }
    let answer = answer?;
    if options.json { Ok(()) } else { print(answer) }
}

/// Opens a program: the server can open nothing, so it is given the file.
fn open(path: &Path) -> Result<OwnedFd, Failure> {
    // Whatever is there, it is not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
    Ok(opened.map_err(|error| format!("cannot open the program {}: {error}", path.display()))?)
}

/// An error as an object.
fn as_value(error: &AskError) -> Value {
    let code = match error {
        AskError::NoServer { .. } => "no-server".into(),
        AskError::NotOurs { .. } => "not-understood".into(),
        AskError::Refused(refused) => refused.code.to_string(),
    };
    serde_json::json!({ "type": "error", "code": code, "message": error.to_string() })
}

fn print(answer: Value) -> Result<(), Failure> {
    let kind = answer["type"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "functions" => {
            for one in read::<Vec<Listed>>(answer["functions"].clone())? {
                listed(&one)?;
            }
        }
        "server" => {
            let server = read::<ServerInfo>(answer)?;
            say!("cordon {}, process {}", server.cordon, server.confinement.process)?;
            say!("    confined: {}", server.confinement)?;
            if let Some(program) = &server.device_proc {
                say!("    device processes are of {program}")?;
            }
        }
        "function" => {
            let served = read::<Served>(answer)?;
            say!("{}", served.address)?;
            inspect::print_served(&served)?;
        }
        "detached" | "attached" | "revived" => listed(&read::<Listed>(answer)?)?,
        "metrics" => {
            for line in answer["text"].as_str().unwrap_or_default().lines() {
                say!("{line}")?;
            }
        }
        "upgraded" => upgraded(&read::<Upgrade>(answer)?)?,
        "faults" => {
            let all = read::<Vec<PlannedFault>>(answer["faults"].clone())?;
            if all.is_empty() {
                say!("no fault is planned")?;
            }
            all.iter().try_for_each(fault)?;
        }
        // One of a later version.
        _ => output::json(&answer)?,
    }
    Ok(())
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    Ok(serde_json::from_value(value)
        .map_err(|error| format!("the answer makes no sense: {error}"))?)
}

fn listed(one: &Listed) -> Result<(), OutputError> {
    let client = one.client.map_or_else(String::new, |client| format!("; {client}"));
    let companion = one.companion_socket.as_ref();
    let companion = companion.map_or_else(String::new, |path| format!(", companion at {path}"));
    say!("{} {} at {}{companion}{client}", one.address, one.state, one.socket)
}

fn upgraded(upgrade: &Upgrade) -> Result<(), OutputError> {
    for one in &upgrade.functions {
        let (program, took) = (&upgrade.program, one.microseconds);
        say!(
            "{} served by process {} of program {program}, after {took} us",
            one.address,
            one.process
        )?;
    }
    if upgrade.connections > 0 {
        say!("connection processes replaced: {}", upgrade.connections)?;
    }
    if !upgrade.left.is_empty() {
        let left = upgrade.left.join(", ");
        say!("the connection process of {left} goes on with its program until it is detached")?;
    }
    Ok(())
}

fn fault(one: &PlannedFault) -> Result<(), OutputError> {
    let became = match (one.fired, one.disarmed) {
        (Some(pid), _) => format!("fired at process {pid}"),
        (None, true) => "disarmed".to_owned(),
        (None, false) => format!("armed, {} requests seen", one.seen),
    };
    say!("{} {}: {became}", one.number, one.fault)
}
