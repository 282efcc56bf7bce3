//! A child process as this side sees it: its tube, how it ends, what is known of its end.
//!
//! Nobody's thread stands between a caller and the child: a call takes the tube, sends, and waits for
//! the answer on the caller's own thread (`channel`). Whoever finds that the child is dead, silent or
//! out of step *condemns* it; the thread that keeps it (`keeper`) reaps it and tells its
//! [`Death`]. The child is distrusted: whatever breaks the protocol ends it.
//!
//! ```text
//!           handshake, ready                 stop
//! Starting ─────────────────▶ Serving ─────────────────▶ Stopping
//!     │ failed, overdue,         │ overdue, end of file,     │ exited,
//!     │ end of file              │ exit, nonsense            │ overdue
//!     ▼                          ▼                           ▼
//!  condemned ──────────────▶ condemned ───────────────▶ reaped: a Death
//! ```

pub(crate) mod channel;
mod exit;
mod fate;
mod fault_hook;
mod handed;
mod lane;
pub(crate) mod launch;
pub(crate) mod start;
mod stderr;
mod trail;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipc::wire::call::Call;
use ipc::wire::common::{Failure, MEMORY_FAULT, Ping, Shutdown};
use ipc::wire::faults::Misbehave;
use ipc::wire::function::UseLane;
use ipc::wire::handshake::Role;
use ipc::{Deadline, Event, Handles, MemoryInbox, PciAddress};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::Escrow;
use crate::faults::Faults;
use crate::host::VfioGroup;
use crate::kept::Store;
use crate::limits::MAX_CHILDREN;
use crate::observer::{Happening, Limit, Observer, ProcessKind};
use crate::sys;
pub(crate) use channel::Channel;
pub use exit::{ClaimedCall, EndSignal, ExitStatus};
pub(crate) use fate::Fate;
pub(crate) use handed::Handed;
pub use launch::{Isolation, Launch, LaunchError, Process, Processes, Start};
pub use trail::Requested;

/// What this side and one kind of child say to each other.
pub trait Protocol: Send + Sync + 'static {
    /// What is asked of the child.
    type Request: Serialize + From<Ping> + From<Shutdown> + From<Misbehave>;
    /// What it says when it is ready.
    type Ready: DeserializeOwned + Send;
    /// Who it is.
    const ROLE: Role;
    /// Its subcommand of the `device-proc` program.
    const COMMAND: &'static str;

    /// The request that hands a lane over, where this kind serves one.
    fn use_lane(_call: UseLane) -> Option<Self::Request> {
        None
    }
}

/// What is said to a function process.
#[derive(Debug)]
pub struct FunctionProtocol;

impl Protocol for FunctionProtocol {
    type Request = ipc::wire::function::Request;
    type Ready = ipc::wire::function::Ready;
    const ROLE: Role = Role::Function;
    const COMMAND: &'static str = "function";

    fn use_lane(call: UseLane) -> Option<Self::Request> {
        Some(call.into())
    }
}

/// What is said to a connection process.
#[derive(Debug)]
pub struct ConnectionProtocol;

impl Protocol for ConnectionProtocol {
    type Request = ipc::wire::connection::Request;
    type Ready = ipc::wire::connection::Ready;
    const ROLE: Role = Role::Connection;
    const COMMAND: &'static str = "connection";
}

/// What is said to a lister process.
#[derive(Debug)]
pub struct ListerProtocol;

impl Protocol for ListerProtocol {
    type Request = ipc::wire::listing::Request;
    type Ready = ipc::wire::listing::Ready;
    const ROLE: Role = Role::Lister;
    const COMMAND: &'static str = "lister";
}

/// How long things may take. Durations of at least a millisecond.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Deadlines {
    /// From spawn to ready: 5 s by default.
    pub start: Duration,
    /// From sending a request to its answer, after which the child is killed: 3 s by default, so
    /// that another can answer within the 5 s after which QEMU gives up on a vfio-user server.
    pub call: Duration,
    /// From asking a child to stop to its end, after which it is killed: 400 ms by default. One that a
    /// signal stopped is killed at once.
    pub stop: Duration,
    /// How long a child may be silent before it is asked for a sign of life: 1 s by default.
    pub silence: Duration,
    /// From asking for a sign of life to its answer, after which the child is killed: 2 s by default.
    pub life: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(5),
            call: Duration::from_secs(3),
            stop: Duration::from_millis(400),
            silence: Duration::from_secs(1),
            life: Duration::from_secs(2),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Spec {
    /// How it is started: as a process, unless a test says otherwise.
    pub launch: Arc<dyn Launch>,
    /// Where it is written down.
    pub children: Arc<Children>,
    /// The `device-proc` program.
    pub program: PathBuf,
    /// Arguments before the subcommand: for a program that starts the real one.
    pub before: Vec<OsString>,
    /// Arguments after the subcommand.
    pub arguments: Vec<OsString>,
    /// Whether the child must be isolated, or is started without when that cannot be had.
    pub strict: bool,
    /// Whether a function process is handed a lane beside its tube.
    pub lane: bool,
    /// What it serves, for people: "01:00.0".
    pub subject: String,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Whether its death is expected and no warning.
    pub expendable: bool,
    /// What is to go wrong with it.
    pub faults: Option<Arc<Faults>>,
    /// The function that it is started for; none of a process for the whole dext.
    pub address: Option<PciAddress>,
    /// Who is told what happens to it.
    pub observer: Option<Observer>,
    /// What function processes are handed, where they open nothing themselves.
    pub(crate) handed: Option<Handed>,
    /// What a connection process takes over instead of opening its group.
    pub(crate) adopted: Option<Escrow>,
    /// What a connection process opens its group by, unless it takes one over.
    pub(crate) group: Option<Arc<VfioGroup>>,
    /// Who keeps a connection process's group for a next VMM.
    pub(crate) store: Option<Arc<Store>>,
}

impl Spec {
    /// The program without further arguments, confined, for `subject`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, subject: impl Into<String>) -> Self {
        Self {
            launch: Arc::new(Processes),
            children: Arc::default(),
            program: program.into(),
            before: Vec::new(),
            arguments: Vec::new(),
            strict: true,
            lane: ipc::spin::has_processors_for(2),
            subject: subject.into(),
            deadlines: Deadlines::default(),
            expendable: false,
            faults: None,
            address: None,
            observer: None,
            handed: None,
            adopted: None,
            group: None,
            store: None,
        }
    }

    /// Tells the observer, if there is one, what happened to the function.
    pub(crate) fn tell(&self, happening: impl FnOnce(PciAddress) -> Happening) {
        if let (Some(observer), Some(address)) = (&self.observer, self.address) {
            observer.put(happening(address));
        }
    }

    /// Tells that processes died too often, if that is why it is given up.
    pub(crate) fn tell_crash_loop(&self, kind: ProcessKind, death: &Death) {
        if let Cause::CrashLoop { deaths, window } = death.cause {
            let limit = Limit::Deaths { deaths, window };
            self.tell(|address| Happening::LimitReached { address, kind, limit });
        }
    }
}

/// The processes of one host, for VMMs that reap children and must know whose a process is.
#[derive(Debug, Default)]
pub struct Children(parking_lot::Mutex<std::collections::VecDeque<(u32, String)>>);

impl Children {
    fn add(&self, pid: u32, name: &str) {
        let mut all = self.0.lock();
        all.retain(|(known, _)| *known != pid);
        if all.len() == MAX_CHILDREN {
            all.pop_front();
        }
        all.push_back((pid, name.to_owned()));
    }

    /// Whose `pid` is, or was when it ran.
    pub(crate) fn name(&self, pid: u32) -> Option<String> {
        let all = self.0.lock();
        all.iter().find(|(known, _)| *known == pid).map(|(_, name)| name.clone())
    }
}

/// Why a child counts as dead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// It was asked to stop and did.
    Stopped,
    /// It could not start, and said why; or could not even be spawned.
    StartFailed(String),
    /// It did not answer, become ready or stop in time, and was killed.
    Overdue(&'static str),
    /// Its tube closed, or it exited, without being asked to.
    Ended,
    /// It broke the protocol and was killed.
    Broken(String),
    /// It was ended for one of another program to take its place.
    Upgraded,
    /// It and those that replaced it died too often.
    CrashLoop {
        /// How often.
        deaths: u32,
        /// Within this time.
        window: Duration,
    },
}

impl Cause {
    /// There is no room for what this side keeps of a child: its tube, events, a thread.
    pub(crate) fn no_room(error: std::io::Error) -> Self {
        let error = sys::SpawnError::new(sys::Step::Prepare, std::path::Path::new(""), error);
        Self::StartFailed(error.to_string())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "stopped"),
            Self::StartFailed(why) => write!(f, "did not start: {why}"),
            Self::Overdue(what) => write!(f, "did not {what} in time and was killed"),
            Self::Ended => write!(f, "died"),
            Self::CrashLoop { deaths, window } => {
                write!(f, "died {deaths} times within {window:?} and is not started again")
            }
            Self::Upgraded => write!(f, "was ended for one of another program"),
            Self::Broken(how) => write!(f, "broke the protocol and was killed: {how}"),
        }
    }
}

/// A child's death, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Whether it was stopped, by a signal from outside, when it was found not to answer.
    pub suspended: bool,
    /// The last line that it said on its standard error, fit for people.
    pub last_words: String,
    /// Of one that a forbidden system call ended (SIGSYS), which one it said that was. Absent where it said
    /// nothing: it need not.
    pub claimed_call: Option<ClaimedCall>,
    /// The last 64 requests that it was sent, oldest first, without their data: of a process that was
    /// observed ([`HostConfig::observer`](crate::HostConfig::observer)).
    pub requests: Vec<Requested>,
}

impl Death {
    pub(crate) fn new(process: String, cause: Cause) -> Self {
        let (exit, last_request) = (ExitStatus::Unknown, None);
        let (suspended, last_words, requests) = (false, String::new(), Vec::new());
        let claimed_call = None;
        Self {
            process,
            pid: 0,
            cause,
            exit,
            last_request,
            suspended,
            last_words,
            claimed_call,
            requests,
        }
    }

    /// Of the function process of `subject`.
    pub(crate) fn of_function(subject: &str, cause: Cause) -> Self {
        Self::new(process_name::<FunctionProtocol>(subject), cause)
    }

    /// Of the connection process of `subject`.
    pub(crate) fn of_connection(subject: &str, cause: Cause) -> Self {
        Self::new(process_name::<ConnectionProtocol>(subject), cause)
    }

    /// Whether it ended since the host wants a function back: so a connection process says by its exit status.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.exit.code() == Some(ipc::wire::common::REQUESTED.into())
    }

    /// Whether it came from outside, as far as that can be told: a signal that a process does not
    /// bring on itself, or a stop. Such a death does not count against the request that was in
    /// flight.
    #[must_use]
    pub fn is_from_outside(&self) -> bool {
        const OF_ITS_OWN: [i32; 9] = [
            libc::SIGSYS,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
            libc::SIGTRAP,
            libc::SIGXCPU,
            libc::SIGXFSZ,
        ];
        match (&self.cause, self.exit) {
            (Cause::Overdue(_), _) => self.suspended,
            (Cause::Ended, ExitStatus::Signal(signal)) => !OF_ITS_OWN.contains(&signal),
            (Cause::Stopped | Cause::Upgraded, _) => true,
            _ => false,
        }
    }
}

impl Death {
    /// Whether its last words say why it ended: by an exit status other than 0, as a loader does that finds no
    /// library; or by a signal of its own, if they are which memory it had a fault at, or that there was none left. A
    /// process that finds none ends itself by a call that its sandbox forbids.
    fn last_words_explain(&self) -> bool {
        /// How the runtime begins.
        const NO_MEMORY: &str = "memory allocation of ";
        match self.exit {
            ExitStatus::Code(status) => status != 0 && !self.last_words.is_empty(),
            ExitStatus::Signal(_) => {
                !self.is_from_outside()
                    && [MEMORY_FAULT, NO_MEMORY]
                        .iter()
                        .any(|says| self.last_words.starts_with(says))
            }
            ExitStatus::Unknown => false,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The {}", self.process)?;
        if self.pid != 0 {
            write!(f, " (pid {})", self.pid)?;
        }
        write!(f, " {}", self.cause)?;
        // One that told why it did not start ends with status 1, or is killed. Another was ended before
        // it could: by its loader, or for want of memory.
        let ended = matches!(self.exit, ExitStatus::Code(1) | ExitStatus::Signal(libc::SIGKILL));
        let told = match self.cause {
            Cause::Stopped | Cause::Upgraded => true,
            Cause::StartFailed(_) => ended || self.pid == 0,
            _ => self.pid == 0,
        };
        let explained = match self.cause {
            Cause::StartFailed(_) => !self.last_words.is_empty(),
            _ => self.last_words_explain(),
        };
        if !told && explained {
            write!(f, "; it said: {}", self.last_words)?;
        }
        if let Some(call) = self.claimed_call
            && !told
        {
            write!(f, "; by its own word the call was {call}")?;
        }
        if !told {
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
    /// The child is dead, or as good as dead: it is being reaped.
    #[error("{0}")]
    Dead(Arc<Death>),
    /// The caller's deadline passed first; the child may still carry the request out.
    #[error("The {process} did not answer {request} in time")]
    TimedOut {
        /// Which process.
        process: String,
        /// Which request.
        request: &'static str,
    },
}

/// A child that became ready.
pub(crate) struct Child<P: Protocol> {
    pub(crate) channel: Channel<P>,
    pub(crate) fate: Arc<Fate>,
    /// Where it sends memory that has no descriptor.
    memories: MemoryInbox,
}

impl<P: Protocol> Child<P> {
    /// Asks the child, on this thread, and waits for its answer: at most until `deadline`, and at
    /// most as long as a child may take.
    ///
    /// # Errors
    /// [`CallError`]; of a dead child once it is reaped.
    pub(crate) fn call<C: Call<P::Request>>(
        &self,
        call: &C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(C::Reply, Handles), CallError> {
        let called = self.channel.call(call, handles, deadline);
        called.map_err(|error| self.failed(error, call.name(), || self.fate.wait_for_death()))
    }

    /// Why `request` has no reply; of a lost child with its `death`.
    fn failed(
        &self,
        error: channel::Failed,
        request: &'static str,
        death: impl FnOnce() -> Arc<Death>,
    ) -> CallError {
        match error {
            channel::Failed::Refused(failure) => CallError::Refused(failure),
            channel::Failed::Lost { .. } => CallError::Dead(death()),
            channel::Failed::TimedOut => {
                CallError::TimedOut { process: self.fate.name().to_owned(), request }
            }
        }
    }

    /// Where the child sends memory that has no descriptor.
    pub(crate) fn memories(&self) -> &MemoryInbox {
        &self.memories
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.fate.pid()
    }

    /// The child's death, once it was reaped.
    pub(crate) fn death(&self) -> Option<Arc<Death>> {
        self.fate.death()
    }

    /// Readable once the child is dead.
    pub(crate) fn died(&self) -> &Event {
        self.fate.died()
    }
}

/// "function process of 01:00.0".
pub(crate) fn process_name<P: Protocol>(subject: &str) -> String {
    format!("{} process of {subject}", P::COMMAND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_children_are_remembered_the_last_ones() {
        let children = Children::default();
        let most = u32::try_from(MAX_CHILDREN).unwrap();
        (1..=most + 1).for_each(|pid| children.add(pid, "child"));
        assert_eq!((children.name(1), children.name(2)), (None, Some("child".to_owned())));
        assert!(children.name(most + 1).is_some());
        assert_eq!(children.0.lock().len(), MAX_CHILDREN);
    }

    #[test]
    fn a_kill_comes_from_outside_and_a_crash_does_not() {
        let death = |cause, exit| Death { exit, ..Death::of_function("01:00.0", cause) };
        let ended = |signal| death(Cause::Ended, ExitStatus::Signal(signal)).is_from_outside();
        assert!(ended(libc::SIGKILL) && ended(libc::SIGTERM));
        for signal in [libc::SIGSYS, libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS] {
            assert!(!ended(signal), "{signal}");
        }
        assert!(!death(Cause::Ended, ExitStatus::Code(1)).is_from_outside());
        assert!(!death(Cause::Broken("x".to_owned()), ExitStatus::Signal(9)).is_from_outside());
        let requested = i32::from(ipc::wire::common::REQUESTED);
        assert!(death(Cause::Ended, ExitStatus::Code(requested)).is_requested());
        assert!(!death(Cause::Ended, ExitStatus::Code(1)).is_requested());
        let mut hung = death(Cause::Overdue("answer"), ExitStatus::Signal(9));
        assert!(!hung.is_from_outside());
        hung.suspended = true;
        assert!(hung.is_from_outside());
    }
}
