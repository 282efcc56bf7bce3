//! `cordon`: look at what the dext offers, inspect a function, see the whole path work.

mod control;
mod demo;
mod devices;
mod doctor;
mod ending;
mod failure;
mod faults;
mod inspect;
mod limits;
mod output;
mod programs;
mod rig;
mod scratch;
mod serve;
mod sys;
mod torture;

use std::ffi::{OsStr, OsString};
use std::path::{Display, Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use console::exit;
use console::log::Log;
use cordon_vmm::HostConfig;
use ipc::PciAddress;

use crate::failure::Failure;

/// PCI passthrough with every function in a sandboxed process of its own.
#[derive(Debug, Parser)]
#[command(version, about, after_help = exit::HELP)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the dext offers: address, ids, class, BARs, vectors, who claimed it.
    #[command(after_help = exit::HELP)]
    Devices {
        #[command(flatten)]
        common: Common,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// One function: config header and capabilities decoded, who has it, and what its `cordon serve`
    /// knows. Looking disturbs nobody; with --attach, a free function also shows its regions,
    /// interrupts, DMA, processes and their sandbox.
    #[command(after_help = exit::HELP)]
    Inspect {
        /// The function.
        address: PciAddress,
        #[command(flatten)]
        common: Common,
        /// The control socket of the `cordon serve` that has the function: shows what it knows.
        #[arg(long, value_name = "PATH")]
        control: Option<PathBuf>,
        /// Attach the function for the look, if it is free, and detach it again: meanwhile nobody else
        /// can.
        #[arg(long)]
        attach: bool,
        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Serve functions over vfio-user to VMMs that Cordon is not linked into, such as QEMU.
    #[command(after_help = exit::SERVICE_HELP)]
    Serve(serve::ServeOptions),
    /// Whether processes can be confined here, and what there is to try on a Mac.
    #[command(after_help = exit::HELP)]
    Doctor(doctor::DoctorOptions),
    /// Start a simulated device and drive it end to end as a VMM would. Needs no hardware.
    #[command(after_help = exit::HELP)]
    Demo(demo::DemoOptions),
    /// Strike function processes at random under verified I/O and interrupts on a simulated device.
    #[command(after_help = exit::HELP)]
    Torture(torture::TortureOptions),
}

/// Where the dext is and how processes are started.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Where the dext is: sim:PATH for a simulated one, iokit for the real one; sim@NAME:PATH or
    /// iokit@NAME for what it has beneath one root bridge of the host, where addresses are unique.
    #[arg(long, env = "CORDON_DEXT")]
    dext: OsString,
    /// The device-proc program; by default the one beside this program.
    #[arg(long, env = "CORDON_DEVICE_PROC")]
    device_proc: Option<PathBuf>,
    /// Refuse to start a process without a layer of its sandbox, or say which are missing.
    #[arg(long, value_enum, default_value_t = Sandbox::Strict)]
    sandbox: Sandbox,
    /// macOS: have sandbox-exec start every process with this profile, confined from its first
    /// instruction, instead of each confining itself. The default is tighter: see docs/macos.md.
    #[arg(long, value_name = "PROFILE")]
    sandbox_exec: Option<PathBuf>,
}

/// What to do about a missing layer of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sandbox {
    /// Refuse.
    Strict,
    /// Go on and report it.
    Relaxed,
}

impl Common {
    /// This dext, strictly confined.
    fn named(dext: &OsStr, device_proc: Option<PathBuf>) -> Self {
        Self { dext: dext.to_owned(), device_proc, sandbox: Sandbox::Strict, sandbox_exec: None }
    }

    /// Where the dext is, for people.
    fn dext(&self) -> Display<'_> {
        Path::new(&self.dext).display()
    }

    fn config(&self) -> Result<HostConfig, Failure> {
        let device_proc = programs::find("device-proc", self.device_proc.as_deref())?;
        Ok(HostConfig::new(device_proc, programs::endpoint(&self.dext)?)
            .with_strict(self.sandbox == Sandbox::Strict)
            .with_sandbox_exec(self.launcher()?))
    }

    fn launcher(&self) -> Result<Option<PathBuf>, Failure> {
        match &self.sandbox_exec {
            Some(_) if !cfg!(target_os = "macos") => {
                Err("--sandbox-exec is for macOS: here every process confines itself".into())
            }
            Some(profile) if !profile.is_file() => {
                Err(format!("there is no profile {}", profile.display()).into())
            }
            other => Ok(other.clone()),
        }
    }
}

/// What is logged: warnings, or everything if RUST_LOG asks for it.
fn level() -> tracing::Level {
    match std::env::var("RUST_LOG").as_deref() {
        Ok("debug" | "trace") => tracing::Level::DEBUG,
        _ => tracing::Level::WARN,
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Devices { common, json } => devices::run(&common, json),
        Command::Inspect { address, common, control, attach, json } => {
            inspect::run(address, &common, control.as_deref(), attach, json)
        }
        Command::Serve(options) => serve::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Torture(options) => torture::run(&options),
    }
}

fn main() -> ExitCode {
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    let log = Log::start(level());
    let Err(failure) = run(options.command) else { return ExitCode::SUCCESS };
    let (status, is_news) = failure::status(failure.as_ref());
    if is_news {
        log.line(&format!("cordon: {}", ipc::chain(failure.as_ref())));
    }
    ExitCode::from(status)
}
