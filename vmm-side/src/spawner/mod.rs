//! The spawner: a small process that starts the children of one that may start nothing any more.
//!
//! A program that parses what strangers send confines itself before they can reach it, and then can run
//! nothing and open nothing. But processes die and are replaced. So it starts a spawner first: a process
//! with one thread, which parses nothing but the messages of [`ipc::wire::spawn`], and starts the one
//! program that it was given, for the functions that it was given, with a command line that it writes
//! itself.
//!
//! ```text
//!  before     server ──start──▶ spawner ◀── Grant: program, dext, functions, sockets
//!  after      server (confined) ──Start { address, role }, descriptors──▶ spawner ──clone──▶ child
//!                    ◀────────────────── pid, pidfd ─────────────────────────┘           │
//!                    └──── parent: waits, kills; its end is the child's ◀────────────────┘
//! ```
//!
//! **Children are the server's**, not the spawner's: made with `CLONE_PARENT`, so that the server waits
//! for them as for its own, the kernel kills them with it, and they outlive a spawner that is killed. The
//! spawner has nothing to report later and keeps no state but the control groups it made.
//!
//! **A server that is taken over** gets no more of it than device processes of its own functions: what
//! it names must be in the grant, a request has no room for a path or an argument, how many processes
//! run is bounded, and what is no message ends the spawner, which harms nobody but the server.
//!
//! **Another program** can be given to a spawner whose grant says so ([`Spawner::add_program`]): as a
//! descriptor, since neither side looks at paths for the other, of a file that only root or the user who
//! started the spawner may write. The grant's own is held open from the beginning, and stays what it was when
//! its file is replaced.
//!
//! [`Spawner`] is the server's side, a [`Launch`]; [`run`] is the process.

mod arguments;
mod process;
mod programs;

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ipc::tube::Received;
use ipc::wire::handshake;
use ipc::wire::spawn::{Reply, Request};
use ipc::{Deadline, Handles, SocketFile, SocketFileError, Tube, TubeError};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

pub use ipc::wire::spawn::{Grant, User};
pub use process::run;

use crate::child::{ExitStatus, Launch, LaunchError, Process, Start};
use crate::{sys, text};

/// How long the spawner may take for one request: it makes a process within milliseconds, and gives one
/// up that takes five seconds.
const TIMEOUT: Duration = Duration::from_secs(8);
/// How often one that does not answer is looked at: it may be stopped.
const LOOK: Duration = Duration::from_millis(100);
/// How long it may take to end.
const END: Duration = Duration::from_millis(200);

/// Why there is no spawner, or it does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// It cannot be started.
    #[error("Cannot start the process that starts others")]
    Start(#[source] io::Error),
    /// It does not answer, or nonsense.
    #[error("The process that starts others does not answer")]
    Handshake(#[from] ipc::tube::HandshakeError),
    /// Its tube failed.
    #[error("The process that starts others is out of reach")]
    Tube(#[from] TubeError),
    /// It will not do it.
    #[error("{0}")]
    Refused(String),
}

/// The server's side of a spawner. Ended by [`Spawner::end`], or with the process that started it.
#[derive(Debug)]
pub struct Spawner {
    /// Nothing once it was ended, or broke the protocol.
    link: Mutex<Option<Link>>,
    pid: u32,
    pidfd: OwnedFd,
    program: Vec<u8>,
    sockets: Vec<Vec<u8>>,
    /// Children that were not dropped yet.
    running: Mutex<Vec<Weak<sys::Process>>>,
}

#[derive(Debug)]
struct Link {
    tube: Tube,
    last: u32,
}

impl Spawner {
    /// Runs `command`, which calls [`run`] with its standard input, and gives it `grant`. The thread
    /// that calls this must outlive every child.
    ///
    /// # Errors
    /// [`SpawnerError`].
    pub fn start(mut command: Command, grant: &Grant) -> Result<Self, SpawnerError> {
        let (ours, theirs) = Tube::pair().map_err(SpawnerError::Start)?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let child = command.spawn().map_err(SpawnerError::Start)?;
        // Ours is the only descriptor of its end of the tube once this is dropped.
        drop(command);
        let pid = child.id();
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| SpawnerError::Start(io::ErrorKind::NotFound.into()))?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|error| SpawnerError::Start(error.into()))?;
        let spawner = Self {
            link: Mutex::new(Some(Link { tube: ours, last: 0 })),
            pid,
            pidfd,
            program: grant.program.clone(),
            sockets: grant.sockets.clone(),
            running: Mutex::default(),
        };
        match spawner.greet(grant) {
            Ok(()) => Ok(spawner),
            Err(error) => {
                spawner.kill();
                Err(error)
            }
        }
    }

    fn greet(&self, grant: &Grant) -> Result<(), SpawnerError> {
        let deadline = Deadline::after(TIMEOUT);
        if let Some(link) = &mut *self.link.lock() {
            let (ours, theirs) = (handshake::Role::Vmm, handshake::Role::Spawner);
            link.tube.handshake(ours, theirs, deadline)?;
            link.tube.send(0, grant, &[], deadline)?;
            let reply = link.tube.receive::<Reply>(deadline)?;
            return match reply.message {
                Reply::Granted => Ok(()),
                Reply::Refused(why) => Err(SpawnerError::Refused(text::printable(&why))),
                _ => Err(SpawnerError::Refused(NONSENSE.to_owned())),
            };
        }
        Err(TubeError::Disconnected.into())
    }

    /// What this side has open for it.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let link = self.link.lock();
        let tube = link.iter().map(|link| link.tube.as_fd().as_raw_fd());
        tube.chain([self.pidfd.as_raw_fd()]).collect()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Listens at a path of the grant. The file is removed with the value, by the spawner.
    ///
    /// # Errors
    /// [`SocketFileError::Elsewhere`].
    pub fn listen(self: &Arc<Self>, path: &Path) -> Result<SocketFile, SocketFileError> {
        let refused = |why: String| SocketFileError::Elsewhere(why);
        let bytes = path.as_os_str().as_bytes();
        let number = self.sockets.iter().position(|one| one == bytes);
        let number = number.and_then(|number| u32::try_from(number).ok());
        let number = number.ok_or_else(|| {
            refused(format!("{} was not named when this program started", path.display()))
        })?;
        let (reply, handles) =
            self.ask(&Request::Listen(number), &[]).map_err(|error| refused(ipc::chain(&error)))?;
        match (reply, handles.one()) {
            (Reply::Listening, Ok(socket)) => {
                let spawner = Arc::clone(self);
                let remove = move || drop(spawner.ask(&Request::Remove(number), &[]));
                Ok(SocketFile::handed(socket, path.to_owned(), remove))
            }
            (Reply::Refused(why), _) => Err(refused(text::printable(&why))),
            _ => Err(refused(self.broke())),
        }
    }

    /// Has it take another program, by a descriptor of its file: the path by which it is started from here
    /// on, which is none of the file system's; `None` if it is the one that it has from the start. Whether it
    /// is one that may be run is looked at by the spawner.
    ///
    /// # Errors
    /// [`SpawnerError::Refused`] with what is wrong with it, or that there are too many.
    pub fn add_program(&self, file: BorrowedFd<'_>) -> Result<Option<PathBuf>, SpawnerError> {
        match self.ask(&Request::Program, &[file])?.0 {
            Reply::Program(0) => Ok(None),
            Reply::Program(number) => Ok(Some(programs::path(number))),
            Reply::Refused(why) => Err(SpawnerError::Refused(text::printable(&why))),
            _ => Err(SpawnerError::Refused(self.broke())),
        }
    }

    /// Has a program of [`Spawner::add_program`] started no more; nothing happens with another path.
    pub fn forget_program(&self, path: &Path) {
        if let Some(number) = programs::number(path) {
            let _ = self.ask(&Request::Forget(number), &[]);
        }
    }

    /// Kills every child that still runs.
    pub fn kill_children(&self) {
        for child in self.running.lock().iter().filter_map(Weak::upgrade) {
            child.kill();
        }
    }

    /// Ends it: how it ended, if it has already or does in time.
    pub fn end(&self) -> ExitStatus {
        drop(self.link.lock().take());
        self.wake();
        if !ipc::poll::wait_readable(&self.pidfd, Deadline::after(END)).unwrap_or(false) {
            self.kill();
        }
        self.reap()
    }

    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn reap(&self) -> ExitStatus {
        if !ipc::poll::wait_readable(&self.pidfd, Deadline::after(END)).unwrap_or(false) {
            return ExitStatus::Unknown;
        }
        let waited =
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = waited.ok().flatten();
        status.map_or(ExitStatus::Unknown, |status| {
            match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => ExitStatus::Unknown,
            }
        })
    }

    /// Waits for an answer, and has one go on that was stopped meanwhile.
    fn answer(&self, tube: &mut Tube, deadline: Deadline) -> Result<Received<Reply>, TubeError> {
        loop {
            match tube.receive::<Reply>(Deadline::after(LOOK).min(deadline)) {
                Err(TubeError::TimedOut) if !deadline.passed() => self.wake(),
                other => return other,
            }
        }
    }

    /// Has one go on that a signal stopped: nothing else would come of it, and it is the last process that
    /// is needed.
    fn wake(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::CONT);
    }

    /// It broke the protocol: it is asked nothing any more.
    fn broke(&self) -> String {
        drop(self.link.lock().take());
        self.kill();
        NONSENSE.to_owned()
    }

    /// One request and its answer; pidfds of children that did not come to run are reaped here.
    fn ask(
        &self,
        request: &Request,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Handles), SpawnerError> {
        let mut held = self.link.lock();
        let link = held.as_mut().ok_or(TubeError::Disconnected)?;
        link.last = link.last.wrapping_add(1);
        let id = link.last;
        let deadline = Deadline::after(TIMEOUT);
        self.wake();
        let sent = link.tube.send(id, request, handles, deadline);
        let received = sent.and_then(|()| self.answer(&mut link.tube, deadline));
        match received {
            Ok(received) if received.id == id => Ok((received.message, received.handles)),
            Ok(_) => {
                drop(held);
                Err(SpawnerError::Refused(self.broke()))
            }
            Err(error) => {
                // A late answer would be taken for that of the next request.
                drop(held);
                let _ = self.broke();
                Err(error.into())
            }
        }
    }
}

const NONSENSE: &str = "the process that starts others answered nonsense and was killed";

impl AsFd for Spawner {
    /// Readable once it has ended: nothing can be started any more.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Launch for Spawner {
    fn launch(&self, start: &Start<'_>) -> Result<Box<dyn Process>, LaunchError> {
        let granted = start.program.as_os_str().as_bytes() == self.program;
        let program = match programs::number(start.program) {
            Some(number) => number,
            // A lister is of no program of its own: any serves.
            None if granted || arguments::is_lister(start.arguments) => 0,
            None => {
                let program = start.program.display();
                let why = format!("a spawner starts no other program, such as {program}");
                return Err(LaunchError(why));
            }
        };
        let request = arguments::read(start.arguments, program).map_err(LaunchError)?;
        let asked = self.ask(&request, &[start.stderr, start.tube]);
        let (reply, mut handles) = asked.map_err(|error| LaunchError(ipc::chain(&error)))?;
        let started = match reply {
            Reply::Started { pid } => handles.next().map(|pidfd| sys::adopt(pid, pidfd)),
            Reply::Refused(why) => {
                handles.for_each(bury);
                return Err(LaunchError(text::printable(&why)));
            }
            _ => None,
        };
        handles.for_each(bury);
        let process = Arc::new(started.ok_or_else(|| LaunchError(self.broke()))?);
        let mut running = self.running.lock();
        running.retain(|one| one.strong_count() > 0);
        running.push(Arc::downgrade(&process));
        Ok(Box::new(process))
    }
}

/// Reaps a child that did not come to run.
fn bury(pidfd: OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    if ipc::poll::wait_readable(&pidfd, Deadline::after(END)).unwrap_or(false) {
        let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}
