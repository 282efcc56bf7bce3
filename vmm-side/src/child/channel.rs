//! The calls of one child, made on the callers' own threads.
//!
//! Callers share the tube; its lock is the queue. Answers are known by their numbers, and a caller
//! waits for its own while it holds the lock: never longer than a child may take to answer
//! ([`Deadlines::call`]). What this finds (a missed deadline, the end of the tube, nonsense)
//! condemns the child, and everybody behind in the queue learns that at once.
//!
//! A caller whose own deadline is shorter gives up alone: the answer that it no longer waits for is
//! remembered by its number and thrown away by whoever receives it. Signs of life, which the keeper
//! asks for, are such answers from the start.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipc::wire::call::{Call, Tagged};
use ipc::wire::common::{Failure, FailureKind, Ping, Shutdown};
use ipc::wire::faults::{Misbehave, Misbehaviour, Point};
use ipc::{Deadline, Handles, Tube, TubeError, lane};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fate::Fate;
use super::fault_hook::FaultHook;
use super::{Cause, Deadlines, Protocol};
use crate::limits::MAX_UNANSWERED;

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The child said no.
    Refused(Failure),
    /// The child is condemned.
    Lost {
        /// Whether this request had been sent to it by then, and it may have been at it.
        sent: bool,
    },
    /// The caller's deadline passed.
    TimedOut,
}

/// The tube and what is open on it.
pub(super) struct Line {
    pub(super) tube: Tube,
    next: u32,
    /// Requests whose answers nobody waits for, oldest first, and when the child is overdue with each. They
    /// may come in another order: a doorbell is answered when it is done.
    unanswered: VecDeque<(u32, Instant)>,
    /// When the child last answered anything.
    heard: Instant,
    /// When it was last asked for a sign of life.
    asked: Instant,
    pub(super) hook: FaultHook,
}

/// See the module.
pub(crate) struct Channel<P> {
    pub(super) line: Mutex<Line>,
    /// Beside the tube, where the child serves one.
    pub(super) lane: OnceLock<lane::Caller>,
    pub(super) fate: Arc<Fate>,
    pub(super) deadlines: Deadlines,
    /// Whether a fault plan may have something for a request.
    pub(super) has_faults: bool,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Channel<P> {
    pub(super) fn new(tube: Tube, fate: Arc<Fate>, deadlines: Deadlines, hook: FaultHook) -> Self {
        let now = Instant::now();
        let (unanswered, has_faults) = (VecDeque::new(), hook.has_faults());
        let line = Line { tube, next: 1, unanswered, heard: now, asked: now, hook };
        let (line, lane) = (Mutex::new(line), OnceLock::new());
        Self { line, lane, fate, deadlines, has_faults, protocol: PhantomData }
    }

    /// Sends `call` with `handles` beside it and waits for its answer.
    pub(crate) fn call<C: Call<P::Request>>(
        &self,
        call: &C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(C::Reply, Handles), Failed> {
        let Some(mut line) = self.line.try_lock_until(deadline.instant()) else {
            return Err(Failed::TimedOut);
        };
        let line = &mut *line;
        if self.fate.is_condemned() {
            return Err(Failed::Lost { sent: false });
        }
        if line.unanswered.len() >= MAX_UNANSWERED {
            return Err(Failed::TimedOut);
        }
        self.fate.note_request(call.name());
        let own = Deadline::after(self.deadlines.call);
        let until = own.min(deadline);
        for wrong in line.hook.begin(call.name()) {
            self.arrange(line, wrong, own);
        }
        line.hook.at(Point::Before, &self.fate);
        let id = line.number();
        let sent = line.tube.send(id, &Tagged::<P::Request, C>::new(call), handles, own);
        self.sent(sent)?;
        line.hook.at(Point::During, &self.fate);
        let reply = self.receive(line, id, until, own)?;
        line.heard = Instant::now();
        line.hook.at(Point::After, &self.fate);
        let (reply, handles) = reply;
        reply.map(|reply| (reply, handles)).map_err(Failed::Refused)
    }

    /// What became of sending a request.
    fn sent(&self, sent: Result<(), TubeError>) -> Result<(), Failed> {
        match sent {
            Ok(()) => Ok(()),
            Err(TubeError::Disconnected) => self.lose(Cause::Ended),
            Err(TubeError::TimedOut) => self.lose(Cause::Overdue("read a request")),
            Err(TubeError::Poisoned | TubeError::Frame(_)) => {
                self.lose(Cause::Broken("its tube is out of step".to_owned()))
            }
            // A request of ours that cannot be sent is the caller's to know, not a death.
            Err(
                error @ (TubeError::Codec(_) | TubeError::TooManyHandles(_) | TubeError::Io(_)),
            ) => {
                let message = format!("The request cannot be sent: {}", ipc::chain(&error));
                let kind = FailureKind::InvalidArgument;
                Err(Failed::Refused(Failure { kind, code: None, message }))
            }
        }
    }

    pub(super) fn lose<T>(&self, cause: Cause) -> Result<T, Failed> {
        self.fate.condemn(cause);
        Err(Failed::Lost { sent: true })
    }

    /// The answer to request `id`; others that come before it are those that nobody waits for.
    fn receive<R: DeserializeOwned>(
        &self,
        line: &mut Line,
        id: u32,
        until: Deadline,
        own: Deadline,
    ) -> Result<(Result<R, Failure>, Handles), Failed> {
        loop {
            let frame = match line.tube.receive_frame(until) {
                Ok(frame) => frame,
                Err(TubeError::TimedOut) if own.passed() => {
                    return self.lose(Cause::Overdue("answer"));
                }
                Err(TubeError::TimedOut) => {
                    line.unanswered.push_back((id, own.instant()));
                    return Err(Failed::TimedOut);
                }
                Err(TubeError::Disconnected) => return self.lose(Cause::Ended),
                Err(error) => return self.lose(Cause::Broken(ipc::chain(&error))),
            };
            if let Some(at) = line.unanswered.iter().position(|(open, _)| *open == frame.id) {
                line.unanswered.remove(at);
                continue;
            }
            if frame.id != id {
                let why = format!("reply {} that nobody asked for", frame.id);
                return self.lose(Cause::Broken(why));
            }
            return match frame.decode::<Result<R, Failure>>() {
                Ok(reply) => Ok((reply, frame.handles)),
                Err(error) => self.lose(Cause::Broken(ipc::chain(&error))),
            };
        }
    }

    /// Asks the child to do wrong at the next request. It answers before anything else.
    pub(super) fn arrange(&self, line: &mut Line, wrong: Misbehaviour, deadline: Deadline) {
        let id = line.number();
        let request = P::Request::from(Misbehave(wrong));
        let sent = line.tube.send(id, &request, &[], deadline);
        let arranged =
            self.sent(sent).and_then(|()| self.receive::<()>(line, id, deadline, deadline));
        match arranged {
            Ok((Ok(()), _)) => {}
            Ok((Err(refused), _)) => tracing::warn!("a fault was refused: {}", refused.message),
            Err(error) => tracing::warn!("a fault was not arranged: {error:?}"),
        }
    }

    /// Asks for a sign of life where it is due, and condemns a child that gave none in time. When to
    /// look again. Called by the keeper; a call in flight has a deadline of its own.
    pub(crate) fn check_life(&self) -> Duration {
        let silence = self.deadlines.silence;
        if self.lane.get().is_some_and(lane::Caller::is_overdue) {
            let _ = self.lose::<()>(Cause::Overdue("answer"));
            return silence;
        }
        let Some(mut line) = self.line.try_lock() else { return silence };
        let line = &mut *line;
        while let Some(overdue) = line.unanswered.iter().map(|(_, overdue)| *overdue).min() {
            let left = overdue.saturating_duration_since(Instant::now());
            match line.tube.receive_frame(Deadline::now()) {
                Ok(frame) => {
                    let at = line.unanswered.iter().position(|(open, _)| *open == frame.id);
                    if let Some(at) = at {
                        line.unanswered.remove(at);
                        line.heard = Instant::now();
                        continue;
                    }
                    let why = format!("reply {} that nobody asked for", frame.id);
                    let _ = self.lose::<()>(Cause::Broken(why));
                    return silence;
                }
                Err(TubeError::TimedOut) if left.is_zero() => {
                    let _ = self.lose::<()>(Cause::Overdue("give a sign of life"));
                    return silence;
                }
                Err(TubeError::TimedOut) => {
                    // Looked at again exactly when it is overdue, if that is sooner.
                    return silence.min(left);
                }
                Err(TubeError::Disconnected) => {
                    let _ = self.lose::<()>(Cause::Ended);
                    return silence;
                }
                Err(error) => {
                    let _ = self.lose::<()>(Cause::Broken(ipc::chain(&error)));
                    return silence;
                }
            }
        }
        let quiet = line.heard.max(line.asked).elapsed();
        if quiet < silence {
            return silence - quiet;
        }
        let id = line.number();
        line.asked = Instant::now();
        let sent = line.tube.send(id, &P::Request::from(Ping), &[], Deadline::now());
        match sent {
            Ok(()) => {
                let overdue = line.asked + self.deadlines.life;
                line.unanswered.push_back((id, overdue));
            }
            // It has not read what was sent before: silent, and counted from when it was asked.
            Err(TubeError::TimedOut) => {
                let _ = self.lose::<()>(Cause::Overdue("read a request"));
            }
            Err(error) => drop(self.sent(Err(error))),
        }
        silence.min(self.deadlines.life)
    }

    /// Asks the child to exit in order; whether that could be sent. Waits for a call in flight until
    /// `deadline`.
    pub(crate) fn shut_down(&self, deadline: Deadline) -> bool {
        let Some(mut line) = self.line.try_lock_until(deadline.instant()) else { return false };
        let id = line.number();
        line.tube.send(id, &P::Request::from(Shutdown), &[], deadline).is_ok()
    }
}

impl Line {
    /// Asks for what nobody waits for; `overdue` is when the child must have answered.
    pub(super) fn ask_aside(
        &mut self,
        request: &impl Serialize,
        handles: &[BorrowedFd<'_>],
        overdue: Instant,
    ) -> Result<(), TubeError> {
        let id = self.number();
        self.tube.send(id, request, handles, Deadline::at(overdue))?;
        self.unanswered.push_back((id, overdue));
        Ok(())
    }

    /// The number of the next request; 0 is the handshake's.
    fn number(&mut self) -> u32 {
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        id
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
