//! `cordon`: look at what the dext offers, inspect a function, see the whole path work.

mod control;
mod demo;
mod devices;
mod doctor;
mod faults;
mod inspect;
mod limits;
mod output;
mod programs;
mod rig;
mod serve;
mod torture;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cordon_vmm::HostConfig;
use ipc::PciAddress;

/// PCI passthrough with every function in a sandboxed process of its own.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the dext offers: address, ids, class, BARs, vectors, who claimed it.
    Devices {
        #[command(flatten)]
        common: Common,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// One function: config header and capabilities decoded, regions, interrupts, DMA, processes,
    /// sandbox. A free function is attached for the look and detached again.
    Inspect {
        /// The function.
        address: PciAddress,
        #[command(flatten)]
        common: Common,
        /// The control socket of the `cordon serve` that has the function: shows what it knows.
        #[arg(long, value_name = "PATH")]
        control: Option<PathBuf>,
        /// Do not attach the function even if it is free.
        #[arg(long)]
        passive: bool,
        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Serve functions over vfio-user to VMMs that Cordon is not linked into, such as QEMU.
    Serve(serve::ServeOptions),
    /// Whether processes can be confined here, and what there is to try on a Mac.
    Doctor(doctor::DoctorOptions),
    /// Start a simulated device and drive it end to end as a VMM would. Needs no hardware.
    Demo(demo::DemoOptions),
    /// Strike function processes at random under verified I/O and interrupts on a simulated device.
    Torture(torture::TortureOptions),
}

/// Where the dext is and how processes are started.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Where the dext is: sim:PATH for a simulated one, iokit for the real one.
    #[arg(long, env = "CORDON_DEXT")]
    dext: String,
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

/// Why a command failed: one line for people.
type Failure = Box<dyn std::error::Error>;

impl Common {
    /// This dext, strictly confined.
    fn named(dext: &str, device_proc: Option<PathBuf>) -> Self {
        Self { dext: dext.to_owned(), device_proc, sandbox: Sandbox::Strict, sandbox_exec: None }
    }

    fn config(&self) -> Result<HostConfig, Failure> {
        let device_proc = programs::find("device-proc", self.device_proc.as_deref())?;
        Ok(HostConfig::new(device_proc, programs::endpoint(&self.dext)?)
            .with_strict(self.sandbox == Sandbox::Strict)
            .with_sandbox_exec(self.launcher()?))
    }
}

impl Common {
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

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(match std::env::var("RUST_LOG").as_deref() {
            Ok("debug" | "trace") => tracing::Level::DEBUG,
            _ => tracing::Level::WARN,
        })
        .with_target(false)
        .without_time()
        .init();
    let done = match options.command {
        Command::Devices { common, json } => devices::run(&common, json),
        Command::Inspect { address, common, control, passive, json } => {
            inspect::run(address, &common, control.as_deref(), passive, json)
        }
        Command::Serve(options) => serve::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Torture(options) => torture::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cordon: {}", ipc::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
