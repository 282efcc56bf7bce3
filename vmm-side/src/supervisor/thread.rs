//! The supervisor's thread: carries out what [`super::state`] decides.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::Duration;

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::wire::common::Up;
use ipc::wire::faults::{Misbehaviour, Point};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Event, MemoryInbox, Tube, TubeError};

use super::mishap::Mishaps;
use super::murmur::Murmur;
use super::state::{Cause, Do, Happened, State};
use super::{Call, CallError, Command, Death, ExitStatus, Protocol, Shared, Spec};

use crate::faults::START;
use crate::sys::{self, Isolation, Process};
use crate::text::printable;

/// What the thread is given.
pub(super) struct Context<P: Protocol> {
    pub(super) spec: Spec,
    pub(super) inbox: Receiver<Command<P>>,
    pub(super) bell: Event,
    pub(super) shared: Arc<Shared>,
    pub(super) ready: SyncSender<Result<P::Ready, Arc<Death>>>,
    pub(super) died: Signaller,
    pub(super) memories: Arc<MemoryInbox>,
}

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// Commands from callers.
    Bell,
    /// A message from the child, or the end of its tube.
    Tube,
    /// The end of the process.
    Exit,
    /// Something on its standard error.
    Stderr,
}

/// A child that was spawned.
struct Child {
    process: Process,
    tube: Tube,
    murmur: Murmur,
}

/// The thread's state.
struct Thread<P: Protocol> {
    context: Context<P>,
    child: Child,
    state: State,
    waiting: VecDeque<Call<P>>,
    in_flight: Option<(u32, String, SyncSender<super::Answer<P>>)>,
    deadline: Option<Deadline>,
    tube_open: bool,
    next: u32,
    last_request: Option<String>,
    mishaps: Mishaps,
}

/// "function process of 01:00.0".
pub(super) fn process_name<P: Protocol>(subject: &str) -> String {
    format!("{} process of {subject}", P::COMMAND)
}

/// Spawns the child and looks after it until it is dead.
pub(super) fn run<P: Protocol>(context: Context<P>) {
    let child = match spawn::<P>(&context.spec, &context.memories) {
        Ok(child) => child,
        Err(why) => {
            let death = Arc::new(Death {
                process: process_name::<P>(&context.spec.subject),
                pid: 0,
                cause: Cause::StartFailed(why),
                exit: ExitStatus::Unknown,
                last_request: None,
            });
            let _ = context.shared.death.set(Arc::clone(&death));
            let _ = context.ready.send(Err(death));
            context.died.signal();
            return;
        }
    };
    let _ = context.shared.pid.set(child.process.pid());
    let deadline = Some(Deadline::after(context.spec.deadlines.start));
    let mut mishaps = Mishaps::new(context.spec.faults.clone());
    mishaps.begin(P::ROLE, &context.spec.subject, START);
    mishaps.at(Point::Before, &child.process);
    mishaps.at(Point::During, &child.process);
    let mut thread = Thread {
        context,
        child,
        state: State::Starting,
        waiting: VecDeque::new(),
        in_flight: None,
        deadline,
        tube_open: true,
        next: 1,
        last_request: None,
        mishaps,
    };
    thread.run();
}

fn spawn<P: Protocol>(spec: &Spec, inbox: &MemoryInbox) -> Result<Child, String> {
    let (tube, theirs) = Tube::pair().map_err(|error| error.to_string())?;
    let (stderr, writer) = sys::stderr_pipe().map_err(|error| error.to_string())?;
    let mut arguments = spec.before.clone();
    arguments.push(P::COMMAND.to_owned());
    arguments.extend_from_slice(&spec.arguments);
    let isolation = if spec.strict { Isolation::Required } else { Isolation::Preferred };
    let start = sys::Start {
        program: &spec.program,
        arguments: &arguments,
        stderr: writer.as_fd(),
        tube: theirs.as_fd(),
        isolation,
        inbox,
    };
    let process = sys::spawn(&start).map_err(|error| error.to_string())?;
    Ok(Child { process, tube, murmur: Murmur::new(stderr) })
}

impl<P: Protocol> Thread<P> {
    fn run(&mut self) {
        let deadline = Deadline::after(self.context.spec.deadlines.start);
        // A child that is not ours, or of another version, ends here; so does one that dies.
        if let Err(error) = self.child.tube.handshake(Role::Vmm, P::ROLE, deadline) {
            self.drain_stderr();
            self.happened(Happened::StartFailed(ipc::chain(&error)));
        }
        while !matches!(self.state, State::Dead(_)) {
            let tokens = self.wait();
            self.mishaps.on_time(&self.child.process);
            match tokens {
                Ok(tokens) if tokens.is_empty() => {
                    if self.deadline.is_some_and(|deadline| deadline.passed()) {
                        self.happened(Happened::Overdue);
                    }
                }
                Ok(tokens) => tokens.into_iter().for_each(|token| self.handle(token)),
                Err(error) => self.happened(Happened::Nonsense(format!("cannot wait: {error}"))),
            }
        }
    }

    fn wait(&self) -> std::io::Result<Vec<Token>> {
        let mut sources = vec![
            Source::readable(&self.context.bell, Token::Bell),
            Source::readable(&self.child.process, Token::Exit),
        ];
        if self.tube_open {
            sources.push(Source::readable(&self.child.tube, Token::Tube));
        }
        if let Some(stderr) = self.child.murmur.pipe() {
            sources.push(Source::readable(stderr, Token::Stderr));
        }
        poll::wait(&sources, self.mishaps.sooner(self.deadline))
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Bell => self.commands(),
            Token::Tube => self.message(),
            Token::Exit => {
                // What it said last is still in its tube.
                while self.tube_open && !matches!(self.state, State::Dead(_)) {
                    self.message();
                }
                self.happened(Happened::Exited);
            }
            Token::Stderr => self.drain_stderr(),
        }
    }

    fn commands(&mut self) {
        let _ = self.context.bell.clear();
        loop {
            match self.context.inbox.try_recv() {
                Ok(Command::Call(call)) => self.waiting.push_back(call),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.happened(Happened::StopRequested);
                    return;
                }
                Err(TryRecvError::Empty) => break,
            }
        }
        self.send_next();
    }

    /// Sends the next request when none is in flight. Its deadline begins now.
    fn send_next(&mut self) {
        if self.state != State::Ready || self.in_flight.is_some() {
            return;
        }
        self.deadline = None;
        let Some(call) = self.waiting.pop_front() else {
            return;
        };
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        let deadline = Deadline::after(self.context.spec.deadlines.call);
        let name = P::name(&call.request);
        self.last_request = Some(name.clone());
        for wrong in self.mishaps.begin(P::ROLE, &self.context.spec.subject, &name) {
            self.misbehave(wrong, deadline);
        }
        self.mishaps.at(Point::Before, &self.child.process);
        let handles: Vec<_> = call.handles.iter().map(|handle| handle.as_fd()).collect();
        let sent = self.child.tube.send(id, &call.request, &handles, deadline);
        self.mishaps.at(Point::During, &self.child.process);
        self.in_flight = Some((id, name, call.answer));
        self.deadline = Some(deadline);
        match sent {
            Ok(()) => {}
            // The death of the child answers the call.
            Err(TubeError::Disconnected) => self.happened(Happened::TubeClosed),
            Err(TubeError::TimedOut) => self.happened(Happened::Overdue),
            Err(error) => {
                // A request of ours that cannot be sent is the caller's to know, not a death.
                let failure = ipc::wire::common::Failure {
                    kind: ipc::wire::common::FailureKind::InvalidArgument,
                    code: None,
                    message: format!("The request cannot be sent: {error}"),
                };
                self.answer(Err(CallError::Refused(failure)));
            }
        }
    }

    /// Asks the child to do wrong at the next request. It answers before anything else.
    fn misbehave(&mut self, wrong: Misbehaviour, deadline: Deadline) {
        let Some(request) = P::misbehave(wrong) else { return };
        let asked = self.child.tube.send(0, &request, &[], deadline);
        let asked =
            asked.and_then(|()| self.child.tube.receive::<Up<P::Ready, P::Reply>>(deadline));
        if let Err(error) = asked {
            tracing::warn!("a fault was not arranged: {error}");
        }
    }

    /// Answers the request in flight and sends the next.
    fn answer(&mut self, answer: super::Answer<P>) {
        if let Some((_, _, sender)) = self.in_flight.take() {
            let _ = sender.send(answer);
        }
        self.send_next();
    }

    fn message(&mut self) {
        let received = self.child.tube.receive::<Up<P::Ready, P::Reply>>(Deadline::now());
        let received = match received {
            Ok(received) => received,
            Err(TubeError::TimedOut) => {
                // Nothing is left of a child that has ended.
                self.tube_open = !self.has_ended();
                return;
            }
            Err(TubeError::Disconnected) => {
                self.tube_open = false;
                return self.happened(Happened::TubeClosed);
            }
            Err(error) => return self.happened(Happened::Nonsense(ipc::chain(&error))),
        };
        match received.message {
            Up::Ready(ready) if received.handles.is_empty() && self.state == State::Starting => {
                self.happened(Happened::Ready);
                self.mishaps.at(Point::After, &self.child.process);
                if self.context.ready.send(Ok(ready)).is_err() {
                    self.happened(Happened::StopRequested);
                }
                self.send_next();
            }
            Up::StartFailed(failure) => {
                self.happened(Happened::StartFailed(printable(&failure.message)));
            }
            Up::Reply(reply) => self.reply(received.id, reply, received.handles),
            Up::Ready(_) => self.happened(Happened::Nonsense("ready out of place".to_owned())),
        }
    }

    fn reply(
        &mut self,
        id: u32,
        reply: Result<P::Reply, ipc::wire::common::Failure>,
        handles: ipc::Handles,
    ) {
        match &self.in_flight {
            Some((expected, _, _)) if *expected == id => {
                self.mishaps.at(Point::After, &self.child.process);
                self.answer(match reply {
                    Ok(reply) => Ok((reply, handles)),
                    Err(failure) => Err(CallError::Refused(failure)),
                });
            }
            // The reply to the shutdown request.
            None if self.state == State::Stopping && id == 0 => {}
            _ => self.happened(Happened::Nonsense(format!("reply {id} that nobody asked for"))),
        }
    }

    fn has_ended(&self) -> bool {
        poll::wait_readable(&self.child.process, Deadline::now()).unwrap_or(true)
    }

    fn happened(&mut self, happened: Happened) {
        let (next, actions) = self.state.on(happened);
        self.state = next;
        for action in actions {
            match action {
                Do::AnnounceReady => self.deadline = None,
                Do::SendShutdown => self.shut_down(),
                Do::KillAndReap => {
                    self.drain_stderr();
                    let exit = self.kill_and_reap();
                    self.set_death(exit);
                }
                Do::AnnounceDeath => self.announce_death(),
            }
        }
    }

    fn shut_down(&mut self) {
        let deadline = Deadline::after(self.context.spec.deadlines.stop);
        let _ = self.child.tube.send(0, &P::shutdown(), &[], deadline);
        self.deadline = Some(deadline);
    }

    /// A child whose tube closed gets a moment to end by itself, so that its own exit status is
    /// told, not ours.
    fn kill_and_reap(&mut self) -> ExitStatus {
        let grace = match self.state {
            State::Dead(Cause::Ended | Cause::Stopped | Cause::StartFailed(_)) => 200,
            _ => 0,
        };
        let grace = Deadline::after(Duration::from_millis(grace));
        if !poll::wait_readable(&self.child.process, grace).unwrap_or(false) {
            self.child.process.kill();
        }
        // A killed process ends unless the kernel holds it; then nobody can reap it.
        let patience = Deadline::after(Duration::from_secs(2));
        let ended = poll::wait_readable(&self.child.process, patience).unwrap_or(false);
        let exit = if ended { self.child.process.reap().into() } else { ExitStatus::Unknown };
        self.drain_stderr();
        exit
    }

    fn set_death(&self, exit: ExitStatus) {
        let State::Dead(cause) = &self.state else {
            return;
        };
        let death = Death {
            process: process_name::<P>(&self.context.spec.subject),
            pid: self.child.process.pid(),
            cause: cause.clone(),
            exit,
            last_request: self.last_request.clone(),
        };
        if *cause == Cause::Stopped || self.context.spec.expendable {
            tracing::debug!("{death}");
        } else {
            tracing::warn!("{death}");
        }
        let _ = self.context.shared.death.set(Arc::new(death));
    }

    fn announce_death(&mut self) {
        let Some(death) = self.context.shared.death.get().cloned() else {
            return;
        };
        let _ = self.context.ready.try_send(Err(Arc::clone(&death)));
        if let Some((_, _, sender)) = self.in_flight.take() {
            let _ = sender.send(Err(CallError::Dead(Arc::clone(&death))));
        }
        let arrived = std::iter::from_fn(|| self.context.inbox.try_recv().ok());
        let arrived = arrived.filter_map(|command| match command {
            Command::Call(call) => Some(call),
            Command::Stop => None,
        });
        for call in self.waiting.drain(..).chain(arrived) {
            let _ = call.answer.send(Err(CallError::Dead(Arc::clone(&death))));
        }
        self.context.died.signal();
    }

    fn drain_stderr(&mut self) {
        let (subject, pid) = (&self.context.spec.subject, self.child.process.pid());
        self.child.murmur.drain(&format_args!("{} {subject} [{pid}]", P::COMMAND));
    }
}
