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
use console::progress::Progress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use crate::Result;

/// How long a child may take to end once it was told to.
const GRACE: Duration = Duration::from_secs(4);
/// How long a child that says nothing runs before it is shown that it does.
const QUIET: Duration = Duration::from_secs(1);

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
            if let Some(status) = self.until(None, true)? {
                return Ok(status);
            }
            check()?;
        }
    }

    /// As [`Running::wait`], for one that says nothing for long: shows meanwhile that it goes on.
    fn wait_shown(&mut self, what: &str) -> Result<ExitStatus> {
        let (began, mut progress) = (Instant::now(), None);
        loop {
            if let Some(status) = self.until(Some(Instant::now() + QUIET), true)? {
                return Ok(status);
            }
            check()?;
            progress.get_or_insert_with(|| Progress::new(what, began)).tick();
        }
    }

    /// Waits until it ends, `end` comes, or this program is told to end, where that is heeded.
    fn until(&mut self, end: Option<Instant>, heeds_signals: bool) -> Result<Option<ExitStatus>> {
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
            if heeds_signals {
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
            let ended = self.until(Some(Instant::now() + GRACE), false);
            // Also whatever it started and left behind.
            if self.group || !matches!(ended, Ok(Some(_))) {
                self.signal(Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

/// A command that is run by another one, as by `nice`: with its arguments, variables and folder.
pub(crate) fn through(by: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(folder) = inner.get_current_dir() {
        command.current_dir(folder);
    }
    command
}

/// Runs a command to its end.
pub(crate) fn status(what: &str, command: &mut Command) -> Result<ExitStatus> {
    Running::start(what, command)?.wait()
}

/// Runs a command to its end that says nothing while all is well, and may take long: what it does is shown.
///
/// What it prints on standard error is passed on as it comes. If it fails, the error has the reasons of that:
/// whoever reads the last line of a long run should not have to look for them.
pub(crate) fn quiet(what: &str, command: &mut Command) -> Result {
    let mut running = Running::start(what, command.stderr(Stdio::piped()))?;
    let errors = running.child.stderr.take().ok_or("it has no standard error")?;
    let (status, reasons) = std::thread::scope(|scope| {
        let read = scope.spawn(move || pass_on(errors, std::io::stderr()));
        let status = running.wait_shown(what);
        // What it started holds the pipe too.
        drop(running);
        (status, read.join().unwrap_or_default())
    });
    let status = status?;
    if status.success() {
        return Ok(());
    }
    let reasons: String = reasons.iter().map(|line| format!("; {line}")).collect();
    Err(format!("{what} failed: {status}{reasons}").into())
}

/// Most lines of what a failed command printed that its error repeats.
const REASONS: usize = 6;
/// Most characters of such a line.
const REASON: usize = 240;

/// Passes on what a command prints on standard error. The lines that say what is wrong, and the one after each,
/// which says where or why.
fn pass_on(errors: impl std::io::Read, mut to: impl std::io::Write) -> Vec<String> {
    use std::io::BufRead as _;
    let (mut reasons, mut follows) = (Vec::new(), false);
    for line in std::io::BufReader::new(errors).split(b'\n') {
        let Ok(line) = line else { break };
        // Nobody may be there to read it any more; the command is not to notice.
        let _ = to.write_all(&[&line[..], b"\n"].concat());
        let line = String::from_utf8_lossy(&line);
        let says = line.starts_with("error") || line.contains("No space left");
        if (says || follows) && reasons.len() < REASONS {
            reasons.push(line.trim().chars().take(REASON).collect());
        }
        follows = says;
    }
    reasons
}

/// A command that runs beside what is done meanwhile, with its output kept for later. Dropping it ends it.
pub(crate) struct Beside {
    what: &'static str,
    running: Running,
    output: std::fs::File,
}

impl Beside {
    /// Starts one.
    pub(crate) fn start(what: &'static str, command: &mut Command) -> Result<Self> {
        let output = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        Ok(Self { what, running: Running::start(what, command)?, output })
    }

    /// Goes on unless it has ended by now and failed: then what it printed is printed.
    pub(crate) fn check(mut self) -> Result<Self> {
        if self.running.child.try_wait()?.is_some_and(|status| !status.success()) {
            self.finish()?;
            return Err("it failed, and then did not".into());
        }
        Ok(self)
    }

    /// Waits for its end, and prints what it printed; an error if it failed.
    pub(crate) fn finish(mut self) -> Result {
        use std::io::{BufRead as _, Seek as _};
        let status = self.running.wait_shown(self.what)?;
        self.output.rewind()?;
        // Not all at once: it may have printed much.
        for line in std::io::BufReader::new(&self.output).split(b'\n') {
            console::say!("{}", String::from_utf8_lossy(&line?))?;
        }
        if status.success() {
            Ok(())
        } else {
            Err(format!("{} failed: {status}", self.what).into())
        }
    }
}

/// Runs a command to its end; what it printed on standard output and standard error.
pub(crate) fn output(what: &str, command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(what, command)?;
    let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
    let read = |pipe: Option<_>| std::thread::spawn(move || read_all(pipe));
    let stdout = read(stdout.map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let stderr = read(stderr.map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let status = running.wait_shown(what);
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
    line: impl FnMut(&str) -> Result + Send,
) -> Result<ExitStatus> {
    read_lines(what, command, line, Running::wait)
}

/// As [`lines`], of which nothing is printed and which may take long: what it does is shown.
pub(crate) fn quiet_lines(
    what: &str,
    command: &mut Command,
    line: impl FnMut(&str) -> Result + Send,
) -> Result<ExitStatus> {
    read_lines(what, command, line, |running| running.wait_shown(what))
}

fn read_lines(
    what: &str,
    command: &mut Command,
    mut line: impl FnMut(&str) -> Result + Send,
    wait: impl FnOnce(&mut Running) -> Result<ExitStatus>,
) -> Result<ExitStatus> {
    use std::io::BufRead as _;
    let mut running = Running::start(what, command.stdout(Stdio::piped()))?;
    let output = running.child.stdout.take().ok_or("it has no output")?;
    std::thread::scope(|scope| {
        let read = scope.spawn(move || -> Result {
            std::io::BufReader::new(output).lines().try_for_each(|text| line(&text?))
        });
        let status = wait(&mut running);
        drop(running);
        let read = read.join().map_err(|_| "reading the output panicked")?;
        let status = status?;
        read?;
        Ok(status)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_are_the_lines_that_say_so_and_where_not_all_that_is_printed() {
        let printed =
            b"warning: unused\n  --> a.rs:1\nerror[E0308]: mismatched types\n  --> b.rs:2\n   |\n\
            error: could not compile\n";
        let reasons = ["error[E0308]: mismatched types", "--> b.rs:2", "error: could not compile"];
        assert_eq!(pass_on(&printed[..], std::io::sink()), reasons);
        let full = b"ld: write: No space left on device\n";
        assert_eq!(pass_on(&full[..], std::io::sink()), ["ld: write: No space left on device"]);
        assert_eq!(pass_on(&b"error: x\n".repeat(100)[..], std::io::sink()).len(), REASONS);
    }
}
