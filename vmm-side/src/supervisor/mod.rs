//! One child process and the one thread that owns it: spawn, handshake, requests in order, death.
//!
//! ```text
//!            spawn            handshake, ready
//!   (none) ─────────▶ Starting ─────────────▶ Ready ──stop──▶ Stopping
//!                        │                      │                │
//!                        │ failed, overdue,     │ overdue, end   │ exited,
//!                        │ end of file          │ of file, exit  │ overdue
//!                        ▼                      ▼                ▼
//!                      Dead ◀──────────────── Dead ◀────────── Dead
//! ```
//!
//! What happens in which state is decided by [`state`], which does no I/O; this module carries it
//! out. The thread waits in one place, over tokens; callers hand it requests and wait for the
//! answer, which always comes: from the child, or as [`CallError::Dead`] when the child is dead.
//! A child that does not answer the request in flight within the deadline is killed and counts as
//! dead. It distrusts the child: whatever breaks the protocol ends the child.

mod mishap;
mod murmur;
pub mod state;
mod thread;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::wire::common::Failure;
use ipc::wire::faults::Misbehaviour;
use ipc::wire::handshake::Role;
use ipc::{Event, Handles, MemoryInbox};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::faults::Faults;
use crate::sys;
pub use state::Cause;

/// What the VMM side and one kind of child say to each other.
pub trait Protocol: 'static {
    /// What is asked of the child.
    type Request: Serialize + fmt::Debug + Send;
    /// What it answers.
    type Reply: DeserializeOwned + Send;
    /// What it says when it is ready.
    type Ready: DeserializeOwned + Send;
    /// Who it is.
    const ROLE: Role;
    /// Its subcommand of the `device-proc` program.
    const COMMAND: &'static str;
    /// The request that ends it in order.
    fn shutdown() -> Self::Request;
    /// The request to do wrong at the next one, where there is one.
    fn misbehave(_: Misbehaviour) -> Option<Self::Request> {
        None
    }
    /// The name of a request, for people.
    fn name(request: &Self::Request) -> String {
        let text = format!("{request:?}");
        text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
    }
}

/// How long things may take. Durations of at least a millisecond.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From spawn to ready: 5 s by default.
    pub start: Duration,
    /// From sending a request to its answer, after which the child is killed: 3 s by default, so
    /// that another can answer within the 5 s after which QEMU gives up on a vfio-user server.
    pub call: Duration,
    /// From asking a child to stop to its end, after which it is killed: 1 s by default.
    pub stop: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(5),
            call: Duration::from_secs(3),
            stop: Duration::from_secs(1),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The `device-proc` program.
    pub program: PathBuf,
    /// Arguments before the subcommand: for a program that starts the real one.
    pub before: Vec<String>,
    /// Arguments after the subcommand.
    pub arguments: Vec<String>,
    /// Whether the child must be isolated, or is started without when that cannot be had.
    pub strict: bool,
    /// What it serves, for people: "01:00.0".
    pub subject: String,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Whether its death is expected and no warning.
    pub expendable: bool,
    /// What is to go wrong with it.
    pub faults: Option<Arc<Faults>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Nobody knows.
    Unknown,
}

impl From<sys::Exit> for ExitStatus {
    fn from(exit: sys::Exit) -> Self {
        match exit {
            sys::Exit::Status(code) => Self::Code(code),
            sys::Exit::Signal(signal) => Self::Signal(signal),
            sys::Exit::Unknown => Self::Unknown,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(libc::SIGSYS) => write!(f, "signal 31: a forbidden system call"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "unknown exit status"),
        }
    }
}

/// A child's death, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Which process: "function process of 01:00.0".
    pub process: String,
    /// Its id; 0 if it never ran.
    pub pid: u32,
    /// Why it counts as dead.
    pub cause: Cause,
    /// How it ended, once it was reaped.
    pub exit: ExitStatus,
    /// The request that was in flight, or the last one that was answered.
    pub last_request: Option<String>,
}

impl Death {
    /// A function process that ended, nobody knows how.
    pub(crate) fn of_function(subject: &str) -> Self {
        Self {
            process: format!("function process of {subject}"),
            pid: 0,
            cause: Cause::Ended,
            exit: ExitStatus::Unknown,
            last_request: None,
        }
    }
}

impl Death {
    /// A connection process that ended, nobody knows how.
    pub(crate) fn of_connection(subject: &str) -> Self {
        Self { process: format!("connection process of {subject}"), ..Self::of_function(subject) }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The {}", self.process)?;
        if self.pid != 0 {
            write!(f, " (pid {})", self.pid)?;
        }
        write!(f, " {}", self.cause)?;
        if self.pid != 0 && !matches!(self.cause, Cause::Stopped | Cause::StartFailed(_)) {
            write!(f, " ({})", self.exit)?;
        }
        if let Some(request) = &self.last_request {
            write!(f, "; last request {request}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Death {}

/// Why a call has no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The child said no.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The child is dead.
    #[error("{0}")]
    Dead(Arc<Death>),
}

type Answer<P> = Result<(<P as Protocol>::Reply, Handles), CallError>;

/// What callers tell the thread.
enum Command<P: Protocol> {
    Call(Call<P>),
    Stop,
}

/// A request and where its answer goes.
struct Call<P: Protocol> {
    request: P::Request,
    handles: Vec<OwnedFd>,
    answer: SyncSender<Answer<P>>,
}

/// What callers and the thread share.
#[derive(Debug, Default)]
struct Shared {
    death: OnceLock<Arc<Death>>,
    pid: OnceLock<u32>,
}

/// A child process. Dropping it stops the child in order, or kills it.
pub struct Supervisor<P: Protocol> {
    commands: Sender<Command<P>>,
    bell: Signaller,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    finished: Mutex<Receiver<()>>,
    died: Event,
    deadlines: Deadlines,
    subject: String,
    memories: Arc<MemoryInbox>,
}

impl<P: Protocol> Supervisor<P> {
    /// Starts the child and waits until it is ready.
    ///
    /// # Errors
    /// The [`Death`] of a child that did not become ready: the program is missing, the dext said
    /// no, a layer of the sandbox is missing, or it took too long.
    pub fn start(spec: &Spec) -> Result<(Self, P::Ready), Arc<Death>> {
        let broken = |error: std::io::Error| {
            Arc::new(Death {
                process: thread::process_name::<P>(&spec.subject),
                pid: 0,
                cause: Cause::StartFailed(format!("cannot be started: {error}")),
                exit: ExitStatus::Unknown,
                last_request: None,
            })
        };
        let memories = Arc::new(MemoryInbox::new().map_err(broken)?);
        let bell = Event::new().map_err(broken)?;
        let ring = bell.signaller().map_err(broken)?;
        let died = Event::new().map_err(broken)?;
        let tell_death = died.signaller().map_err(broken)?;
        let (commands, inbox) = channel();
        let (ready_sender, ready) = sync_channel(1);
        let (finished_sender, finished) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let context = thread::Context {
            spec: spec.clone(),
            inbox,
            bell,
            shared: Arc::clone(&shared),
            ready: ready_sender,
            died: tell_death,
            memories: Arc::clone(&memories),
        };
        // The child dies with the thread that spawned it, so that thread must outlive it: the
        // supervisor's own.
        let run = move || {
            thread::run::<P>(context);
            let _ = finished_sender.send(());
        };
        let name = format!("{} {}", P::COMMAND, spec.subject);
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(broken)?;
        let supervisor = Self {
            commands,
            bell: ring,
            shared,
            thread: Mutex::new(Some(thread)),
            finished: Mutex::new(finished),
            died,
            deadlines: spec.deadlines,
            subject: spec.subject.clone(),
            memories,
        };
        match ready.recv() {
            Ok(Ok(ready)) => Ok((supervisor, ready)),
            Ok(Err(death)) => Err(death),
            Err(_) => Err(supervisor.death_or_lost()),
        }
    }

    /// Asks the child and waits for its answer, or for its death.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, request: P::Request, handles: Vec<OwnedFd>) -> Answer<P> {
        let (answer, reply) = sync_channel(1);
        let call = Command::Call(Call { request, handles, answer });
        if self.commands.send(call).is_err() {
            return Err(CallError::Dead(self.death_or_lost()));
        }
        self.bell.signal();
        reply.recv().unwrap_or_else(|_| Err(CallError::Dead(self.death_or_lost())))
    }

    /// [`Supervisor::call`] for a request that nothing comes beside, in either direction: what did
    /// come is closed.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn ask(&self, request: P::Request) -> Result<P::Reply, CallError> {
        Ok(self.call(request, Vec::new())?.0)
    }

    /// How long things may take.
    pub(crate) fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// Where the child sends memory that has no descriptor.
    pub(crate) fn memories(&self) -> &MemoryInbox {
        &self.memories
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid.get().copied().unwrap_or(0)
    }

    /// The child's death, once it is dead.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        self.shared.death.get().cloned()
    }

    /// Readable once the child is dead.
    #[must_use]
    pub fn died(&self) -> &Event {
        &self.died
    }

    /// Stops the child in order, or kills it when it does not stop in time; how it ended.
    pub fn stop(&self) -> Arc<Death> {
        let _ = self.commands.send(Command::Stop);
        self.bell.signal();
        // The thread needs the deadline, a kill and a reap; much longer means that it is gone.
        let patience = self.deadlines.stop + self.deadlines.call + Duration::from_secs(2);
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        match finished.recv_timeout(patience) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(thread) = thread
                    && thread.join().is_err()
                {
                    tracing::error!("the supervisor thread of {} panicked", self.subject);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("the supervisor thread of {} hangs", self.subject);
            }
        }
        self.death_or_lost()
    }

    fn death_or_lost(&self) -> Arc<Death> {
        self.death().unwrap_or_else(|| {
            Arc::new(Death {
                process: thread::process_name::<P>(&self.subject),
                pid: self.pid(),
                cause: Cause::Broken("lost its supervisor".to_owned()),
                exit: ExitStatus::Unknown,
                last_request: None,
            })
        })
    }
}

impl<P: Protocol> Drop for Supervisor<P> {
    fn drop(&mut self) {
        self.stop();
    }
}
