//! `cordon run`: a VMM with passed-through devices, from one command line. It starts `cordon serve` with
//! sockets in a folder of its own, waits until that is ready, runs the VMM with the arguments that name the
//! sockets, passes signals on to it, and ends with its status.
//!
//! However it ends, nothing is left: the server ends when its standard input closes, which the kernel does
//! even for a program that is killed; on Linux the VMM gets SIGTERM then; and a small process, started
//! first, removes the folder.
//!
//! ```text
//!  run ──pipe──▶ cordon serve ◀──sockets──▶ VMM ◀──signals── run
//!   └──pipe──▶ sweeper: removes the folder when run is gone
//! ```

mod commands;
mod sweeper;
mod vmm;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use console::{Interrupt, complain, exit};
use cordon_cli::event::Event;
use ipc::poll::{self, Source};
use ipc::{Deadline, PciAddress};
use rustix::process::{Pid, Signal, kill_process};

use self::commands::Commands;
use self::vmm::Vmm;
use crate::offered::offered;
use crate::scratch::Folder;
use crate::target::Target;
use crate::{Common, Failure, sys};

pub(crate) use self::sweeper::{SWEEPER, Sweeper, sweep};

/// How long a server may take to be ready: each function takes some milliseconds, on a busy machine seconds.
const READY: Duration = Duration::from_secs(60);
/// How long it may take to end, which it does within two seconds.
const END: Duration = Duration::from_secs(4);
/// How often it is looked whether the VMM has ended.
const LOOK: Duration = Duration::from_millis(20);

/// For the end of `cordon run --help`.
pub(crate) const HELP: &str = "\
Exit status:
    that of the VMM, or 128 and the number of the signal that ended it; else
    1  it was not run, or failed; one line on standard error says why
    2  the command line makes no sense
  129, 130, 143
       ended by SIGHUP, SIGINT or SIGTERM before the VMM ran, after cleaning up";

/// What is run with which devices.
#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    common: Common,
    /// A function to pass through, or with BB:DD every function of a device; repeat it for several.
    #[arg(long = "device", required = true, value_name = "BB:DD[.F]")]
    devices: Vec<Target>,
    /// How the VMM is told of its devices; by default, what its program is called.
    #[arg(long, value_enum)]
    vmm: Option<Vmm>,
    /// Keep a standby for each function process, which takes over within a millisecond.
    #[arg(long)]
    standby: bool,
    /// Trap every BAR access, so that a guest sees a device whose dext died as gone and back.
    #[arg(long)]
    trapped: bool,
    /// Print what would be run, as commands for a shell, and run nothing.
    #[arg(long)]
    dry_run: bool,
    /// The VMM and its arguments; what names the devices is appended.
    #[arg(last = true, required = true, value_name = "VMM")]
    command: Vec<OsString>,
}

impl RunOptions {
    fn vmm(&self) -> Result<Vmm, String> {
        self.vmm.map_or_else(|| Vmm::called(&self.command[0]), Ok)
    }

    /// The functions that are named, each of which the dext must offer.
    fn functions(&self) -> Result<Vec<PciAddress>, Failure> {
        let offered = offered(&self.common)?;
        let mut functions: Vec<PciAddress> = Vec::new();
        for device in &self.devices {
            for address in device.functions(&offered)? {
                if functions.contains(&address) {
                    return Err(format!("{address} is named twice").into());
                }
                if !offered.contains(&address) {
                    let dext = self.common.dext();
                    return Err(format!(
                        "{dext} offers no {address}: cordon devices lists what it does"
                    )
                    .into());
                }
                functions.push(address);
            }
        }
        Ok(functions)
    }
}

/// The VMM, or the command, ended otherwise than by success: so does this program, and says nothing.
#[derive(Debug, thiserror::Error)]
#[error("It ended with status {0}")]
pub(crate) struct VmmEnded(pub(crate) u8);

/// The program that a shell would run by this name.
///
/// # Errors
/// When there is none.
#[cfg_attr(target_os = "macos", allow(dead_code, reason = "there nothing is kept"))]
pub(crate) fn program_called(name: &std::ffi::OsStr) -> Result<std::path::PathBuf, String> {
    vmm::program(name, std::env::var_os("PATH").as_deref())
}

/// Runs it.
pub(crate) fn run(options: &RunOptions) -> Result<(), Failure> {
    let vmm = options.vmm()?;
    vmm.check(&options.command)?;
    // Whether the programs are there, before anything is made.
    options.common.config()?;
    let functions = options.functions()?;
    if options.dry_run {
        let folder = std::env::temp_dir().join(format!("cordon-run-{}", std::process::id()));
        let commands = Commands::of(options, &functions, &folder)?;
        for line in commands.script(&folder)? {
            console::say!("{}", line.display())?;
        }
        return Ok(());
    }
    let interrupt = Interrupt::catch()?;
    let folder = Folder::new("cordon-run")?;
    let _sweeper = Sweeper::start(folder.path())?;
    let commands = Commands::of(options, &functions, folder.path())?;
    let mut server = Server::start(&commands)?;
    server.ready(&interrupt)?;
    let mut command = commands.vmm.command();
    sys::end_with_parent(&mut command);
    let program = command.get_program().display().to_string();
    let child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    let status = Running { child, server: &mut server }.wait(&interrupt);
    server.end();
    drop(folder);
    match status? {
        0 => Ok(()),
        status => Err(VmmEnded(status).into()),
    }
}

/// A VMM that runs. Killed if it is not waited for.
struct Running<'r> {
    child: Child,
    server: &'r mut Server,
}

impl Running<'_> {
    /// Waits for its end; its status, as a shell has it.
    fn wait(mut self, interrupt: &Interrupt) -> Result<u8, Failure> {
        let mut told = false;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status_of(status));
            }
            if !told && let Some(status) = self.server.child.try_wait()? {
                told = true;
                complain(format_args!("cordon: the server of its devices ended: {status}"));
            }
            let raised =
                poll::wait(&[Source::readable(interrupt, ())], Some(Deadline::after(LOOK)))?;
            if !raised.is_empty() {
                self.pass_on(interrupt);
            }
        }
    }

    /// The VMM is not reaped, so its number is its own.
    fn pass_on(&self, interrupt: &Interrupt) {
        let _ = rustix::io::read(interrupt.as_fd(), &mut [0; 16]);
        if let Some(signal) = interrupt.signal() {
            let number = Signal::from_named_raw(i32::from(signal.status() - exit::SIGNAL));
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            if let (Some(pid), Some(signal)) = (pid, number) {
                let _ = kill_process(pid, signal);
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The status of a program that has ended, as a shell says it.
pub(crate) fn status_of(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| i32::from(exit::SIGNAL) + signal);
    status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED)
}

/// A `cordon serve` that ends with its standard input. Ended with the value, too.
struct Server {
    child: Child,
    input: Option<ChildStdin>,
    events: Receiver<Event>,
}

impl Server {
    fn start(commands: &Commands) -> Result<Self, Failure> {
        let mut command = commands.serve.command();
        // What a terminal sends is for the VMM; this is stopped after it.
        command.arg("--exit-with-stdin").process_group(0);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("cannot run cordon serve: {error}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (sender, events) = channel();
        let mut server = Self { child, input, events };
        let Some(output) = output else {
            server.end();
            return Err("cordon serve has no output".into());
        };
        // Reads all of it, whether anybody still wants to know.
        std::thread::Builder::new().name("events".to_owned()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    let _ = sender.send(event);
                }
            }
        })?;
        Ok(server)
    }

    /// Waits until everything is served.
    fn ready(&mut self, interrupt: &Interrupt) -> Result<(), Failure> {
        let end = Instant::now() + READY;
        loop {
            interrupt.check()?;
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Ready) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(
                        format!("cordon serve is not ready after {} s", READY.as_secs()).into()
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    // It has said why.
                    let status = self.child.wait()?;
                    return Err(format!("cordon serve did not get ready: {status}").into());
                }
            }
        }
    }

    /// Has it end in order.
    fn end(&mut self) {
        drop(self.input.take());
        let end = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
