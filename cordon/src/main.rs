//! `cordon`: look at what the dext offers, inspect a function, see the whole path work.

mod control;
mod ctl;
mod demo;
mod devices;
mod doctor;
mod ending;
mod failure;
mod faults;
mod generate;
mod host;
mod inspect;
mod keep;
mod limits;
mod logging;
mod names;
mod offered;
mod output;
mod programs;
mod report;
mod rig;
mod run;
mod scratch;
mod serve;
mod sys;
mod target;
mod torture;
mod vfio_fds;

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
#[command(name = "cordon", version, about, after_help = exit::HELP)]
struct Options {
    #[command(flatten)]
    log: logging::LogOptions,
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
        /// Also what the host itself has on its PCI buses, and the driver that each is bound to, where
        /// that can be known.
        #[arg(long)]
        all: bool,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// One function: config header and capabilities decoded, who has it, and what its `cordon serve`
    /// knows. Looking disturbs nobody; with --attach, a free function also shows its regions,
    /// interrupts, DMA, processes and their sandbox. Or one process: what confines it.
    #[command(after_help = exit::HELP)]
    Inspect {
        /// The function, as BB:DD.F; or a process id.
        #[arg(value_name = "BB:DD.F|PID")]
        what: Inspected,
        /// Where the dext is, of a function: sim:PATH, iokit, sim@NAME:PATH or iokit@NAME; or vfio.
        #[arg(long, env = "CORDON_DEXT")]
        dext: Option<OsString>,
        #[command(flatten)]
        how: How,
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
    ///
    /// Over Linux's VFIO, one that is run by `cordon keep` and killed goes on with its devices and clients.
    #[command(after_help = exit::SERVICE_HELP)]
    Serve(Box<serve::ServeOptions>),
    /// Ask a running `cordon serve` by its --control socket: what it serves, metrics, and to detach, attach, revive or
    /// upgrade functions.
    #[command(after_help = exit::CONTROL_HELP)]
    Ctl(ctl::CtlOptions),
    /// Run a VMM with functions passed through: starts `cordon serve`, tells the VMM of it, and cleans
    /// up when the VMM has ended.
    #[command(after_help = run::HELP)]
    Run(Box<run::RunOptions>),
    /// Run a command, hold the descriptors that it stores while it is dead, and start it again with them: a VMM that
    /// links cordon-vmm and is killed goes on with its devices (Linux's VFIO).
    #[command(after_help = keep::HELP)]
    Keep(keep::KeepOptions),
    /// Becomes the command of `cordon keep`; of no use by hand.
    #[command(name = keep::STARTER, hide = true)]
    KeepStart {
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Removes the folder of a `cordon run` that was killed; of no use by hand.
    #[command(name = run::SWEEPER, hide = true)]
    Sweeper {
        /// It is removed.
        folder: PathBuf,
    },
    /// A crash report that `cordon serve --crash-reports` wrote, as text.
    #[command(after_help = exit::HELP)]
    Report {
        /// The report: crash-00.json to crash-15.json of the folder.
        file: PathBuf,
    },
    /// Starts the device processes of `cordon serve`, which runs it; of no use by hand.
    #[command(name = sys::SPAWNER, hide = true)]
    Spawner,
    /// What stands between this machine and an attached device: each line ok, missing with its cure, or
    /// unknown.
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::DoctorOptions),
    /// Start a simulated device and drive it end to end as a VMM would. Needs no hardware.
    #[command(after_help = exit::HELP, after_long_help = demo::help())]
    Demo(demo::DemoOptions),
    /// Strike processes at random under verified I/O and interrupts on a simulated device.
    #[command(after_help = exit::HELP)]
    Torture(torture::TortureOptions),
    /// Write man pages and shell completions to a folder. For packagers.
    #[command(hide = true, after_help = exit::HELP)]
    Generate {
        /// Where to; made if it is not there.
        folder: PathBuf,
    },
}

/// Where the dext is and how processes are started.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Where the dext is: sim:PATH for a simulated one, iokit for the real one; sim@NAME:PATH or
    /// iokit@NAME for what it has beneath one root bridge of the host, where addresses are unique. Or vfio:
    /// what Linux has bound to vfio-pci.
    #[arg(long, env = "CORDON_DEXT")]
    dext: OsString,
    #[command(flatten)]
    how: How,
}

/// How processes are started.
#[derive(Clone, Debug, Args)]
struct How {
    /// The device-proc program; by default the one beside this program.
    #[arg(
        long,
        env = "CORDON_DEVICE_PROC",
        value_name = "FILE",
        help_heading = "Device processes"
    )]
    device_proc: Option<PathBuf>,
    /// What is done where a layer of the sandbox is missing.
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        default_value_t = Sandbox::Strict,
        help_heading = "Device processes"
    )]
    sandbox: Sandbox,
    /// macOS: have sandbox-exec start every process with this profile, confined from its first
    /// instruction, instead of each confining itself. The default is tighter: see docs/macos.md.
    #[arg(long, value_name = "PROFILE", help_heading = "Device processes")]
    sandbox_exec: Option<PathBuf>,
}

/// What is inspected.
#[derive(Clone, Copy, Debug)]
enum Inspected {
    Function(PciAddress),
    Process(u32),
}

impl std::str::FromStr for Inspected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(pid) = text.parse() {
            return Ok(Self::Process(pid));
        }
        let address = text.parse().map_err(|error| format!("{error}, and it is no process id"));
        address.map(Self::Function)
    }
}

/// What to do about a missing layer of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sandbox {
    /// Refuse to start the process.
    Strict,
    /// Start it without, and report what is missing.
    Relaxed,
}

impl Common {
    /// This dext, strictly confined.
    fn named(dext: &OsStr, device_proc: Option<PathBuf>) -> Self {
        let how = How { device_proc, sandbox: Sandbox::Strict, sandbox_exec: None };
        Self { dext: dext.to_owned(), how }
    }

    /// Where the dext is, for people.
    fn dext(&self) -> Display<'_> {
        Path::new(&self.dext).display()
    }

    /// Whether functions are Linux's VFIO's.
    fn is_vfio(&self) -> bool {
        self.dext == "vfio"
    }

    fn config(&self) -> Result<HostConfig, Failure> {
        let device_proc = programs::find("device-proc", self.how.device_proc.as_deref())?;
        Ok(HostConfig::new(device_proc, programs::endpoint(&self.dext)?)
            .with_strict(self.how.sandbox == Sandbox::Strict)
            .with_sandbox_exec(self.how.launcher()?))
    }
}

impl How {
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

fn run(command: Command, prepared: Option<serve::Prepared>) -> Result<(), Failure> {
    match command {
        Command::Devices { common, all, json } => devices::run(&common, all, json),
        Command::Inspect {
            what: Inspected::Function(address),
            dext,
            how,
            control,
            attach,
            json,
        } => {
            // It was looked whether it is there.
            let common = Common { dext: dext.unwrap_or_default(), how };
            inspect::run(address, &common, control.as_deref(), attach, json)
        }
        Command::Inspect { what: Inspected::Process(pid), control, json, .. } => {
            inspect::process::run(pid, control.as_deref(), json)
        }
        Command::Serve(_) => match prepared {
            Some(prepared) => serve::run(prepared),
            // All that was asked for was to be told something.
            None => Ok(()),
        },
        Command::Ctl(options) => ctl::run(options),
        Command::Run(options) => run::run(&options),
        Command::Keep(options) => sys::keep(&options),
        // They have no log, and are run before there is one.
        Command::Spawner | Command::Sweeper { .. } | Command::KeepStart { .. } => Ok(()),
        Command::Doctor(options) => doctor::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Torture(options) => torture::run(&options),
        Command::Report { file } => report::run(&file),
        Command::Generate { folder } => generate::run(&folder),
    }
}

/// The name under which this program is `cordon serve`: tools that start backends of devices run a program,
/// and give it the options of their convention and nothing before them.
const BACKEND: &str = "cordon-serve";

/// The command line, with the command that the program's name stands for.
fn arguments() -> impl Iterator<Item = OsString> {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let is_backend =
        name.as_deref().is_some_and(|name| Path::new(name).file_name() == Some(BACKEND.as_ref()));
    name.into_iter().chain(is_backend.then(|| "serve".into())).chain(arguments)
}

fn main() -> ExitCode {
    let options = match console::parse_from::<Options>(arguments()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    if let Command::Inspect { what: Inspected::Function(_), dext: None, .. } = options.command {
        console::complain(
            "error: a function is inspected through a dext: --dext <DEXT> is missing",
        );
        return ExitCode::from(exit::USAGE);
    }
    let helper = match &options.command {
        Command::Spawner => Some(sys::spawner()),
        Command::Sweeper { folder } => Some(run::sweep(folder)),
        Command::KeepStart { command } => Some(keep::start(command).map(|never| match never {})),
        _ => None,
    };
    if let Some(ended) = helper {
        return match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                console::complain(format!("cordon: {}", ipc::chain(failure.as_ref())));
                ExitCode::from(exit::FAILED)
            }
        };
    }
    let filter = match options.log.filter(&options.command) {
        Ok(filter) => filter,
        Err(failure) => {
            console::complain(format!("error: {failure}"));
            return ExitCode::from(exit::USAGE);
        }
    };
    // A server is confined while there is no other thread, and the log has one.
    let prepared = match &options.command {
        Command::Serve(options) => serve::prepare(options).transpose(),
        _ => None,
    };
    let log = Log::start_with(filter, options.log.format());
    let ended = match prepared.transpose() {
        Ok(prepared) => run(options.command, prepared),
        Err(failure) => Err(failure),
    };
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    let (status, is_news) = failure::status(failure.as_ref());
    if is_news {
        log.line(&format!("cordon: {}", ipc::chain(failure.as_ref())));
    }
    ExitCode::from(status)
}
