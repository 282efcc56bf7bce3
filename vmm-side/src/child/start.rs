//! From spawn to ready, in steps that never block: its keeper may have others to look after.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use ipc::event::Signaller;
use ipc::poll::Source;
use ipc::wire::call::Call;
use ipc::wire::common::Failure;
use ipc::wire::faults::Point;
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, MemoryInbox, Tube, TubeError};

use super::channel::Channel;
use super::fate::Fate;
use super::fault_hook::{FaultHook, strike_later};
use super::launch::Isolation;
use super::stderr::StderrForwarder;
use super::{CallError, Cause, Child, Death, Protocol, Spec, Start, process_name};
use crate::faults::START;
use crate::host::VfioGroup;
use crate::sys;
use crate::text::printable;

/// A child and what its keeper alone has of it.
pub(crate) struct Kept<P: Protocol> {
    pub(crate) child: Arc<Child<P>>,
    stderr: StderrForwarder,
    who: String,
    expendable: bool,
}

/// What a keeper waits for on behalf of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildToken {
    /// The end of the process.
    Exit,
    /// Something on its standard error.
    Stderr,
    /// Something on the tube of one that starts.
    Tube,
}

impl<P: Protocol> Kept<P> {
    /// What to wait for, with `token` around it.
    pub(crate) fn sources<'k, T>(&'k self, token: fn(ChildToken) -> T) -> Vec<Source<'k, T>> {
        let mut sources =
            vec![Source::readable_fd(self.child.fate.process().as_fd(), token(ChildToken::Exit))];
        if let Some(stderr) = self.stderr.pipe() {
            sources.push(Source::readable(stderr, token(ChildToken::Stderr)));
        }
        sources
    }

    /// Passes on what it said on its standard error.
    pub(crate) fn forward_stderr(&mut self) {
        self.stderr.forward(&self.who);
    }

    /// Ends it for `cause`, unless it is condemned already; how it died.
    pub(crate) fn end(mut self, cause: Cause) -> Arc<Death> {
        let fate = Arc::clone(&self.child.fate);
        let not_started = matches!(cause, Cause::StartFailed(_));
        fate.condemn(cause);
        if not_started {
            // The system or its loader may have ended it, and what these say comes last.
            fate.wait_for_end();
        }
        self.reap(self.expendable)
    }

    /// Asks the child as its keeper, who waits for no death but reaps it here; see [`Child::call`].
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) fn call<C: Call<P::Request>>(
        &mut self,
        call: &C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<C::Reply, CallError> {
        self.call_with(call, handles, deadline).map(|(reply, _)| reply)
    }

    /// [`Kept::call`] with what comes beside the answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) fn call_with<C: Call<P::Request>>(
        &mut self,
        call: &C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(C::Reply, Handles), CallError> {
        let child = Arc::clone(&self.child);
        let called = child.channel.call(call, handles, deadline);
        called.map_err(|error| child.failed(error, call.name(), || self.reap(false)))
    }

    /// How a child died that is condemned, with what it said last.
    fn reap(&mut self, expendable: bool) -> Arc<Death> {
        let fate = Arc::clone(&self.child.fate);
        self.forward_stderr();
        fate.note_last_words(self.stderr.last(), self.stderr.forbidden());
        let death = fate.reap(expendable);
        self.forward_stderr();
        death
    }

    /// Whether the process has ended, reaped or not.
    pub(crate) fn has_ended(&self) -> bool {
        let process = self.child.fate.process().as_fd();
        ipc::poll::wait_readable(&process, Deadline::now()).unwrap_or(true)
    }

    /// It serves from here on: its death is news.
    pub(crate) fn is_relied_on(&mut self) {
        self.expendable = false;
    }

    /// Faults whose time has come strike; when the next one's comes.
    pub(crate) fn strike_later(&self) -> Option<Deadline> {
        strike_later(&self.child.fate)
    }
}

/// What a child that starts says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Greeting,
    Ready,
}

/// A child that was spawned and is not ready yet.
pub(crate) struct Starting<P: Protocol> {
    pub(crate) kept: Kept<P>,
    expected: Expected,
    /// Whether it is handed a lane as soon as it is ready.
    lane: bool,
    /// Whether the system must call it confined before it is trusted.
    strict: bool,
    pub(crate) deadline: Deadline,
}

/// How far a child that starts came.
pub(crate) enum Progress<R> {
    /// Its next message is yet to come.
    NotYet,
    /// It is ready, and says so.
    Ready(R),
    /// It does not start, for this reason.
    Failed(Cause),
}

impl<P: Protocol> Starting<P> {
    /// Spawns a child; `wake` is how others wake its keeper.
    ///
    /// # Errors
    /// The [`Death`] of one that could not even be spawned.
    pub(crate) fn spawn(spec: &Spec, wake: Signaller) -> Result<Self, Arc<Death>> {
        let failed = |why: String| {
            let cause = Cause::StartFailed(why);
            Arc::new(Death::new(process_name::<P>(&spec.subject), cause))
        };
        let no_room = |error: std::io::Error| {
            Arc::new(Death::new(process_name::<P>(&spec.subject), Cause::no_room(error)))
        };
        let deadline = Deadline::after(spec.deadlines.start);
        let (mut tube, theirs) = Tube::pair().map_err(no_room)?;
        let (stderr, writer) = sys::stderr_pipe().map_err(no_room)?;
        let memories = MemoryInbox::new().map_err(no_room)?;
        let mut arguments = spec.before.clone();
        arguments.push(P::COMMAND.into());
        arguments.extend_from_slice(&spec.arguments);
        if sys::has_left_network() {
            arguments.push("--network=inherited".into());
        }
        let group = spec.group.as_ref();
        // Functions of a group that was left are opened by its file, and those that have files of their own by these.
        let is_sent = |group: &&Arc<VfioGroup>| spec.adopted.is_none() || group.is_of_devices();
        let group = group.filter(|group| P::ROLE == Role::Connection && is_sent(group));
        if group.is_some() {
            arguments.push("--handed".into());
        }
        let start = Start {
            program: &spec.program,
            arguments: &arguments,
            stderr: writer.as_fd(),
            tube: theirs.as_fd(),
            isolation: if spec.strict { Isolation::Required } else { Isolation::Preferred },
            inbox: &memories,
        };
        let process = spec.launch.launch(&start).map_err(|error| failed(error.to_string()))?;
        spec.children.add(process.pid(), &process_name::<P>(&spec.subject));
        let who = format!("{} {} [{}]", P::COMMAND, spec.subject, process.pid());
        let (name, observed) = (process_name::<P>(&spec.subject), spec.observer.is_some());
        let fate = Arc::new(Fate::new(name, process, wake, observed).map_err(no_room)?);
        let mut hook = FaultHook::new(spec.faults.clone(), P::ROLE, spec.subject.clone());
        hook.begin(START);
        hook.at(Point::Before, &fate);
        hook.at(Point::During, &fate);
        // One that is gone already is seen to be by its end of file.
        let _ = tube.introduce(Role::Vmm, deadline);
        if let Some(handed) = spec.handed.as_ref().filter(|_| P::ROLE == Role::Function) {
            let _ = handed.send(&mut tube, deadline);
        }
        if let Some(escrow) = spec.adopted.as_ref().filter(|_| P::ROLE == Role::Connection) {
            let _ = escrow.send(&mut tube, deadline);
        }
        if let Some(group) = group {
            let _ = group.send(&mut tube, deadline);
        }
        let channel = Channel::new(tube, Arc::clone(&fate), spec.deadlines, hook);
        let child = Arc::new(Child { channel, fate, memories });
        let kept =
            Kept { child, stderr: StderrForwarder::new(stderr), who, expendable: spec.expendable };
        Ok(Self {
            kept,
            expected: Expected::Greeting,
            lane: spec.lane,
            strict: spec.strict,
            deadline,
        })
    }

    /// What to wait for, with `token` around it, on `tube` from [`Starting::tube`].
    pub(crate) fn sources<'k, T>(
        &'k self,
        tube: &'k impl std::os::fd::AsFd,
        token: fn(ChildToken) -> T,
    ) -> Vec<Source<'k, T>> {
        let mut sources = self.kept.sources(token);
        sources.push(Source::readable(tube, token(ChildToken::Tube)));
        sources
    }

    /// Its tube, to wait for; nobody else uses it yet.
    pub(crate) fn tube(&self) -> parking_lot::MappedMutexGuard<'_, Tube> {
        let line = self.kept.child.channel.line.lock();
        parking_lot::MutexGuard::map(line, |line| &mut line.tube)
    }

    /// It is not confined as the system has it.
    fn unconfined(&self, why: String) -> Result<(), String> {
        let said = format!("It says that it is confined, and the system does not: {why}");
        if self.strict {
            return Err(said);
        }
        tracing::warn!("{}: {said}", self.kept.who);
        Ok(())
    }

    /// How far it has come by now: by what came on its tube, its end, and the time.
    pub(crate) fn advance(&mut self) -> Progress<P::Ready> {
        // Looked at first: what it said last is still in its tube.
        let ended = self.kept.has_ended();
        match self.receive() {
            // The tube may still be open where a process that is being started holds its other end for a moment.
            Progress::NotYet if ended && self.expected == Expected::Greeting => {
                let gone = ipc::tube::HandshakeError::Tube(TubeError::Disconnected);
                Progress::Failed(Cause::StartFailed(ipc::chain(&gone)))
            }
            Progress::NotYet if ended => Progress::Failed(Cause::Ended),
            Progress::NotYet if self.deadline.passed() => {
                Progress::Failed(Cause::Overdue("become ready"))
            }
            progress => progress,
        }
    }

    /// Takes what came on its tube.
    fn receive(&mut self) -> Progress<P::Ready> {
        let line = &mut *self.kept.child.channel.line.lock();
        if self.expected == Expected::Greeting {
            match line.tube.meet(Role::Vmm, P::ROLE, Deadline::now()) {
                Ok(_) => self.expected = Expected::Ready,
                Err(ipc::tube::HandshakeError::Tube(TubeError::TimedOut)) => {
                    return Progress::NotYet;
                }
                // A child that is not ours, or of another version.
                Err(error) => return Progress::Failed(Cause::StartFailed(ipc::chain(&error))),
            }
        }
        match line.tube.receive::<Result<P::Ready, Failure>>(Deadline::now()) {
            Ok(received) if !received.handles.is_empty() => {
                Progress::Failed(Cause::Broken("descriptors came out of place".to_owned()))
            }
            Ok(received) => match received.message {
                Ok(ready) => {
                    let confined = self.kept.child.fate.process().confinement();
                    if let Err(why) = confined.or_else(|why| self.unconfined(why)) {
                        return Progress::Failed(Cause::StartFailed(why));
                    }
                    line.hook.at(Point::After, &self.kept.child.fate);
                    if self.lane {
                        self.kept.child.channel.open_lane(line);
                    }
                    Progress::Ready(ready)
                }
                Err(failure) => Progress::Failed(Cause::StartFailed(printable(&failure.message))),
            },
            Err(TubeError::TimedOut) => Progress::NotYet,
            Err(TubeError::Disconnected) => Progress::Failed(Cause::Ended),
            Err(error) => Progress::Failed(Cause::Broken(ipc::chain(&error))),
        }
    }
}
