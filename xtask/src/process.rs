//! Child processes: each ends when this program is told to end, and with it whatever it started.
//!
//! A child is the leader of a process group of its own, so that a signal from the terminal reaches
//! only this program, which passes it on to the whole group. One that needs the terminal stays in
//! the foreground, and is ended alone.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use console::Interrupt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use crate::Result;

/// How long a child may take to end once it was told to.
const GRACE: Duration = Duration::from_secs(4);

/// The signals of this program.
struct Signals {
    interrupt: Interrupt,
    /// A byte whenever a child ended.
    ended: UnixStream,
}

static SIGNALS: OnceLock<Signals> = OnceLock::new();

/// Catches signals from here on. Before any child is started.
pub(crate) fn catch_signals() -> Result {
    let (ended, write) = UnixStream::pair()?;
    ended.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, write)?;
    let signals = Signals { interrupt: Interrupt::catch()?, ended };
    SIGNALS.set(signals).map_err(|_| "signals are caught already")?;
    Ok(())
}

fn signals() -> Result<&'static Signals> {
    Ok(SIGNALS.get().ok_or("signals are not caught yet")?)
}

/// Goes on only while this program was not told to end.
pub(crate) fn check() -> Result {
    Ok(signals()?.interrupt.check()?)
}

/// A running child. Dropping it ends it.
pub(crate) struct Running {
    child: Child,
    /// Whether it has a process group of its own.
    group: bool,
}

impl Running {
    /// Starts one in the background.
    pub(crate) fn start(what: &str, command: &mut Command) -> Result<Self> {
        Self::spawn(what, command.process_group(0), true)
    }

    /// Starts one that has the terminal.
    pub(crate) fn start_in_foreground(what: &str, command: &mut Command) -> Result<Self> {
        Self::spawn(what, command, false)
    }

    fn spawn(what: &str, command: &mut Command, group: bool) -> Result<Self> {
        check()?;
        let child = command.spawn().map_err(|error| format!("{what}: {error}"))?;
        Ok(Self { child, group })
    }

    /// Waits for it to end by itself, or ends it when this program is told to end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.until(None)? {
                return Ok(status);
            }
            check()?;
        }
    }

    /// Waits until it ends, this program is told to end, or `end` comes.
    fn until(&mut self, end: Option<Instant>) -> Result<Option<ExitStatus>> {
        let Signals { interrupt, ended } = signals()?;
        loop {
            // Before the look, so that an end after it is not missed.
            while rustix::io::read(ended, &mut [0; 64]).is_ok_and(|count| count > 0) {}
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let mut sources = vec![PollFd::new(ended, PollFlags::IN)];
            if end.is_none() {
                if interrupt.signal().is_some() {
                    return Ok(None);
                }
                sources.push(PollFd::new(interrupt, PollFlags::IN));
            }
            let timeout = left.map(Timespec::try_from).transpose()?;
            match poll(&mut sources, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        let _ = if self.group {
            rustix::process::kill_process_group(pid, signal)
        } else {
            rustix::process::kill_process(pid, signal)
        };
    }

    /// Whether it is still there.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What ends with its standard input does so now.
        drop(self.child.stdin.take());
        if self.is_running() {
            self.signal(Signal::TERM);
            let ended = self.until(Some(Instant::now() + GRACE));
            // Also whatever it started and left behind.
            if self.group || !matches!(ended, Ok(Some(_))) {
                self.signal(Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end.
pub(crate) fn status(what: &str, command: &mut Command) -> Result<ExitStatus> {
    Running::start(what, command)?.wait()
}

/// Runs a command to its end; what it printed on standard output and standard error.
pub(crate) fn output(what: &str, command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(what, command)?;
    let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
    let read = |pipe: Option<_>| std::thread::spawn(move || read_all(pipe));
    let stdout = read(stdout.map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let stderr = read(stderr.map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let status = running.wait();
    // What it started holds the pipes too.
    drop(running);
    let joined = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    let (stdout, stderr) = (joined(stdout), joined(stderr));
    Ok(Output { status: status?, stdout, stderr })
}

fn read_all(pipe: Option<Box<dyn std::io::Read + Send>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
    bytes
}

/// Runs a command to its end, with `line` called for each line that it prints on standard output.
pub(crate) fn lines(
    what: &str,
    command: &mut Command,
    mut line: impl FnMut(&str) -> Result + Send,
) -> Result<ExitStatus> {
    use std::io::BufRead as _;
    let mut running = Running::start(what, command.stdout(Stdio::piped()))?;
    let output = running.child.stdout.take().ok_or("it has no output")?;
    std::thread::scope(|scope| {
        let read = scope.spawn(move || -> Result {
            std::io::BufReader::new(output).lines().try_for_each(|text| line(&text?))
        });
        let status = running.wait();
        drop(running);
        let read = read.join().map_err(|_| "reading the output panicked")?;
        let status = status?;
        read?;
        Ok(status)
    })
}
