//! Roles as threads of this process over the fake backend, for tests of whoever starts processes.
//!
//! A [`Child`] is started by the command line of `device-proc`, speaks over a real tube, writes to a
//! real standard error, and can be waited for, stopped and killed as a process can. It is not
//! confined, and says so; in strict mode it refuses to start.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use cordon_backend::fake;
use cordon_backend::fake::{Fake, FakeProcess};
use ipc::Tube;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::{Misbehaviour, Point, Wrong};
use rustix::net::Shutdown;

use crate::hooks::{self, Hooks, Route};
use crate::log::Log;
use crate::options::{Command, Common};
use crate::start::{Confinement, RoleError};
use crate::{connection, function, lister, program};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with the exit status that the program would have had.
    Status(u8),
    /// It panicked.
    Panicked,
    /// It was killed.
    Killed,
}

/// A role that runs as a thread.
pub struct Child {
    number: u32,
    process: FakeProcess,
    end: Arc<End>,
    /// Hangs up once the child has ended.
    watched: UnixStream,
}

/// How a child ended, once it has.
struct End {
    state: Mutex<Running>,
    changed: Condvar,
}

/// What there is of a child that runs.
struct Running {
    /// Whether it is being killed: that is then how it ended, whatever its thread says.
    killed: bool,
    ended: Option<Ended>,
    /// Another handle of the role's end of the tube, to cut it. Dropped at the end, as a process's
    /// own are.
    tube: Option<OwnedFd>,
    /// Dropped at the end, which is how others see it.
    alive: Option<UnixStream>,
}

impl End {
    fn state(&self) -> MutexGuard<'_, Running> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has ended; the first end is the one that counts.
    fn ended(&self, how: Ended) {
        let mut state = self.state();
        if state.ended.is_none() && state.killed == (how == Ended::Killed) {
            state.ended = Some(how);
            (state.tube, state.alive) = (None, None);
        }
        self.changed.notify_all();
    }
}

impl Child {
    /// Starts a role over `fake`. `arguments` are those of `device-proc`, the role first; where the
    /// backend is and which descriptor the tube has is said there for nothing. `number` stands for
    /// the process id.
    ///
    /// # Errors
    /// When the system has no descriptors or threads left.
    pub fn start(
        fake: &Fake,
        number: u32,
        arguments: &[OsString],
        tube: OwnedFd,
        stderr: OwnedFd,
    ) -> io::Result<Self> {
        let (alive, watched) = UnixStream::pair()?;
        let running = Running {
            killed: false,
            ended: None,
            tube: Some(tube.try_clone()?),
            alive: Some(alive),
        };
        let state = Mutex::new(running);
        let end = Arc::new(End { state, changed: Condvar::new() });
        let process = fake.process();
        let child = Self { number, process: process.clone(), end: Arc::clone(&end), watched };
        let arguments: Vec<OsString> = arguments.to_vec();
        let thread = std::thread::Builder::new().name(format!("device-proc {number}"));
        thread.spawn(move || {
            let runs = AssertUnwindSafe(|| run(&process, arguments, tube, stderr, &end));
            let ended = std::panic::catch_unwind(runs);
            end.ended(ended.map_or(Ended::Panicked, Ended::Status));
        })?;
        Ok(child)
    }

    /// What stands for its process id.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Kills it, whatever it does: what it held of the backend is released, and its tube cut, when this
    /// returns. Its thread ends when it sees that.
    pub fn kill(&self) {
        // Whatever its thread does meanwhile, it answers nothing and releases nothing by itself.
        self.process.suspend();
        {
            let mut state = self.end.state();
            state.killed = true;
            if let Some(tube) = &state.tube {
                let _ = rustix::net::shutdown(tube, Shutdown::Both);
            }
        }
        self.process.kill();
        self.end.ended(Ended::Killed);
    }

    /// Stops it where it is, for good: it answers nothing and delivers nothing until it is killed.
    pub fn suspend(&self) {
        self.process.suspend();
    }

    /// Whether it was stopped, and not killed since.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.process.is_suspended()
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.end.state().ended
    }

    /// Waits for its end.
    #[must_use]
    pub fn reap(&self) -> Ended {
        let mut state = self.end.state();
        loop {
            if let Some(ended) = state.ended {
                return ended;
            }
            state = self.end.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl AsFd for Child {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

/// The program, on this thread; its exit status.
fn run(
    process: &FakeProcess,
    arguments: Vec<OsString>,
    tube: OwnedFd,
    stderr: OwnedFd,
    end: &End,
) -> u8 {
    let mut stderr = File::from(stderr);

    let Ok(log) = stderr.try_clone() else { return program::FAILED };
    let command = match Command::parse(arguments) {
        Ok(command) => command,
        Err(error) => {
            let _ = writeln!(stderr, "device-proc: {error}");
            return program::BAD_USAGE;
        }
    };
    let served = || serve(process, command, Tube::from_fd(tube));
    match tracing::subscriber::with_default(Log::new(log), served) {
        Ok(()) => program::DONE,
        Err(error) => {
            // Who is killed has no last words.
            if !end.state().killed {
                let _ = writeln!(stderr, "device-proc: {}", ipc::chain(&error));
            }
            program::status(&error)
        }
    }
}

fn serve(process: &FakeProcess, command: Command, tube: Tube) -> Result<(), RoleError> {
    let confinement = |common: &Common| Confinement::Thread(common.sandbox.into());
    let mut hooks = ThreadHooks { process: process.clone(), armed: None };
    match command {
        Command::Connection { address, holding, common } => {
            let confinement = confinement(&common);
            connection::serve_on(tube, process, address, holding, confinement, &mut hooks)
        }
        Command::Function { address, serving, common } => {
            let confinement = confinement(&common);
            function::serve_on(tube, process, address, serving, confinement, &mut hooks)
        }
        Command::Lister { address, common } => {
            lister::serve_on(tube, process, address, confinement(&common))
        }
        // They have no role, and no use for a tube.
        Command::Doctor { .. } | Command::Help | Command::Version => Ok(()),
    }
}

/// Does wrong as a process would, as far as a thread can.
struct ThreadHooks {
    process: FakeProcess,
    armed: Option<Misbehaviour>,
}

impl Hooks for ThreadHooks {
    fn arm(&mut self, misbehaviour: Misbehaviour) -> Result<(), Failure> {
        if matches!(misbehaviour.wrong, Wrong::Selector { .. }) {
            let message = "The fake backend has no selectors: see Fake::fail".to_owned();
            return Err(Failure { kind: FailureKind::NotSupported, code: None, message });
        }
        self.armed = Some(misbehaviour);
        Ok(())
    }

    fn at(&mut self, point: Point, route: Route<'_>) -> bool {
        let mut answered = false;
        if let Some(misbehaviour) = self.armed.take_if(|armed| armed.point == point) {
            match misbehaviour.wrong {
                Wrong::Hang => self.process.suspend(),
                Wrong::Closed => {
                    let _ = rustix::net::shutdown(route.tube(), Shutdown::Both);
                    self.process.suspend();
                }
                ref wrong => answered = hooks::send_nonsense(wrong, point, route),
            }
        }
        self.process.wait_while_suspended();
        // Who is killed says nothing any more, in a lane either.
        answered || self.process.is_killed()
    }
}

#[cfg(test)]
mod tests;
