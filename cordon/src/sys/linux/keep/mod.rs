//! `cordon keep`: one thread that waits for the command, for what it sends, for the kernel wanting a device back that
//! is kept, and for a signal.
//!
//! It runs as whoever starts it and trusts the command no further than with itself: what that has it hold is bounded,
//! and nobody else is heard, since a message says which process sent it. It opens nothing of what it is given. It gains
//! no privileges, nor does the command, and nobody can trace it.
//!
//! ```text
//!            killed, crashed              again, with what is kept
//! Running ────────────────────▶ Waiting ───────────────────────────▶ Running
//!    │ status 0, a signal          │ a signal, too often
//!    └─────────────┬───────────────┘
//!                  ▼
//!       everything closed, its status
//! ```

mod command;
mod messages;
mod shelf;

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use console::{Interrupt, exit};
use ipc::Deadline;
use ipc::poll::{self, Source};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use self::messages::Heard;
use self::shelf::Shelf;
use crate::Failure;
use crate::keep::KeepOptions;
use crate::run::{Sweeper, VmmEnded, program_called, status_of};
use crate::scratch::Folder;

/// Between the end of a command and the next start; twice as long after each in a row that was not killed, up to the
/// longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A command that ran for so long was not started in vain.
const RUN: Duration = Duration::from_secs(60);
/// How long a command may take to end that was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// Messages that are read before anything else is looked at: more than a socket of this kind holds, so that what the
/// command sent last is among them.
const IN_A_ROW: usize = 1024;

/// Keeps what the command gives until it ends in order.
pub(crate) fn keep(options: &KeepOptions) -> Result<(), Failure> {
    let program = program_called(&options.command[0])?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let inherited = inherited()?;
    let interrupt = Interrupt::catch()?;
    let folder = Folder::new("cordon-keep")?;
    let _sweeper = Sweeper::start(folder.path())?;
    let path = folder.path().join("notify");
    let socket = messages::bind(&path)?;
    let shelf = Shelf::new(options.time());
    let mut keeper = Keeper { options, program, path, socket, interrupt, shelf, inherited };
    let status = keeper.run();
    drop(keeper);
    drop(folder);
    match status? {
        0 => Ok(()),
        status => Err(VmmEnded(status).into()),
    }
}

/// Numbers of open descriptors, beside the standard streams, that programs inherit which this one runs.
fn inherited() -> Result<Vec<RawFd>, Failure> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        numbers.extend(number.filter(|number| *number > 2 && crate::sys::inherited::is(*number)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Interrupt,
    Socket,
    Ended,
    /// The kernel wants back what the shelf has at this place.
    Request(usize),
}

struct Keeper<'o> {
    options: &'o KeepOptions,
    program: PathBuf,
    path: PathBuf,
    socket: UnixDatagram,
    interrupt: Interrupt,
    shelf: Shelf,
    /// Numbers of what the command inherits beside the standard streams, until that was warned of.
    inherited: Vec<RawFd>,
}

/// Starts in a row, of which none lasted.
struct InARow {
    restarts: u32,
    /// When the first one of them was over.
    since: Instant,
    /// The last pause after one that was not killed.
    pause: Option<Duration>,
}

impl InARow {
    fn new() -> Self {
        Self { restarts: 0, since: Instant::now(), pause: None }
    }

    /// One more; the pause before it.
    fn next(&mut self, was_killed: bool) -> Duration {
        self.restarts = self.restarts.saturating_add(1);
        if was_killed {
            return PAUSE;
        }
        let pause = self.pause.map_or(PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
        *self.pause.insert(pause)
    }
}

impl Keeper<'_> {
    /// Starts the command as often as it has to be; the status of the last one.
    fn run(&mut self) -> Result<u8, Failure> {
        let mut row = InARow::new();
        loop {
            let began = Instant::now();
            let started = command::start(self.options, &self.program, &self.path, &self.shelf);
            let child = match started {
                Ok(child) => child,
                // It could be started before, and what is kept is too much to lose over that.
                Err(why) if row.restarts > 0 && !self.has_enough(&row) => {
                    tracing::warn!("{why}; it is tried again");
                    self.pause(row.next(false))?;
                    continue;
                }
                Err(why) => return Err(why),
            };
            let status = self.run_once(child)?;
            let code = status_of(status);
            if status.success() || !self.has_crashed(status) {
                return Ok(code);
            }
            if row.restarts == 0 || began.elapsed() >= RUN {
                row = InARow::new();
            }
            let (command, kept) = (self.program.display(), self.shelf.len());
            if self.has_enough(&row) {
                let restarts = row.restarts;
                tracing::warn!(
                    "{command}: {status}, and was started {restarts} times again: given up"
                );
                return Ok(code);
            }
            tracing::warn!("{command}: {status}; it is started again, with {kept} descriptors");
            self.shelf.orphan();
            self.pause(row.next(status.signal() == Some(Signal::KILL.as_raw())))?;
        }
    }

    /// Whether it was started often enough, and what is kept was kept for long enough.
    fn has_enough(&self, row: &InARow) -> bool {
        let is_kept_on = !self.shelf.is_empty() && row.since.elapsed() < self.options.time();
        row.restarts >= self.options.restarts && !is_kept_on
    }

    /// Whether a command ended otherwise than it wanted to.
    fn has_crashed(&self, status: ExitStatus) -> bool {
        match status.signal().map(Signal::from_named_raw) {
            Some(Some(Signal::HUP | Signal::INT | Signal::PIPE | Signal::TERM)) => false,
            Some(_) => true,
            // One that has nothing stored has given everything back, and said why.
            None => !self.shelf.is_empty(),
        }
    }

    fn run_once(&mut self, mut child: Child) -> Result<ExitStatus, Failure> {
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty());
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.end(&mut child, Signal::KILL);
                return Err(error.into());
            }
        };
        loop {
            match self.wait(Some(&ended), self.shelf.until()) {
                Ok(tokens) if tokens.contains(&Token::Ended) => {
                    // What it sent is there, and is the last of it.
                    self.hear(pid);
                    return Ok(child.wait()?);
                }
                Ok(tokens) => {
                    if tokens.contains(&Token::Socket) {
                        self.hear(pid);
                    }
                }
                Err(failure) => {
                    // Told to end, or nothing can be waited for any more.
                    self.shelf.clear();
                    let signal = self.interrupt.signal().map(|one| one.status() - exit::SIGNAL);
                    let signal = signal.and_then(|one| Signal::from_named_raw(i32::from(one)));
                    self.end(&mut child, signal.unwrap_or(Signal::TERM));
                    return Err(failure);
                }
            }
        }
    }

    /// A moment between two instances, in which what is kept is looked after.
    fn pause(&mut self, pause: Duration) -> Result<(), Failure> {
        let until = Deadline::after(pause);
        while !until.passed() {
            let next = self.shelf.until().map_or(until, |expires| expires.min(until));
            self.wait(None, Some(next))?;
        }
        Ok(())
    }

    /// Waits for the end of a command and what it sends, for a signal, and for what the shelf waits for, which is
    /// done here.
    fn wait(
        &mut self,
        ended: Option<&OwnedFd>,
        until: Option<Deadline>,
    ) -> Result<Vec<Token>, Failure> {
        let mut sources = vec![Source::readable(&self.interrupt, Token::Interrupt)];
        if let Some(ended) = ended {
            sources.push(Source::readable(ended, Token::Ended));
            sources.push(Source::readable(&self.socket, Token::Socket));
        }
        let requests = self.shelf.requests();
        sources.extend(requests.map(|(at, fd)| Source::readable(fd, Token::Request(at))));
        let tokens: Vec<Token> = poll::wait(&sources, until)?.into_iter().collect();
        drop(sources);
        self.interrupt.check()?;
        for token in &tokens {
            if let Token::Request(at) = token {
                // One at a time: places change.
                self.shelf.give_back(*at);
                break;
            }
        }
        self.shelf.expire();
        Ok(tokens)
    }

    /// Takes the messages of the command's that are there.
    fn hear(&mut self, pid: Pid) {
        for _ in 0..IN_A_ROW {
            match messages::hear(&self.socket, pid) {
                Heard::Message(message) => self.shelf.obey(message),
                Heard::LeftOut => {}
                Heard::Nothing => break,
            }
        }
        self.warn_of_inherited();
    }

    /// What is kept is passed on from number 3 on, as the protocol has it: over whatever the command inherited there.
    fn warn_of_inherited(&mut self) {
        if self.shelf.is_empty() || self.inherited.is_empty() {
            return;
        }
        let numbers = std::mem::take(&mut self.inherited);
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        tracing::warn!(
            "the command inherits descriptor {}, and stores some: what is kept is passed on from number 3 on, so that \
             it has others there when it is started again",
            numbers.join(", ")
        );
    }

    /// Has a command end, and sees that it does. What it says of that is read, so that it need not wait, and not heeded.
    fn end(&self, child: &mut Child, signal: Signal) {
        let (pid, until) = (Pid::from_child(child), Instant::now() + GRACE);
        let _ = kill_process(pid, signal);
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            let more = |_: &usize| !matches!(messages::hear(&self.socket, pid), Heard::Nothing);
            let _ = (0..IN_A_ROW).take_while(more).count();
            std::thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!("the command did not end within {} s: killed", GRACE.as_secs());
        let _ = child.kill();
        let _ = child.wait();
    }
}
