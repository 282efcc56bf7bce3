//! Requests of a function: to whoever serves it, and again to whoever comes after that one.

use std::borrow::Borrow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use arc_swap::Guard;
use ipc::Deadline;
use ipc::event::Signaller;
use ipc::wire::call::Call;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{
    Access, InterruptAction, InterruptIndex, Interrupts, MAX_ASSIGN, Request,
};

use super::accesses::Timing;
use super::machine::FunctionState;
use super::{Current, FunctionShared, LAST_WORDS, Process};
use crate::child::{CallError, Death, channel};

impl FunctionShared {
    /// Asks whoever serves the function, and again whoever comes after it.
    pub(super) fn ask<C: Call<Request>>(
        &self,
        call: &C,
        deadline: Deadline,
    ) -> Result<C::Reply, CallError> {
        self.call(call, || Ok(Vec::new()), deadline)
    }

    /// Asks whoever serves the function, and again whoever comes after it, each with `handles`.
    pub(super) fn call<C: Call<Request>>(
        &self,
        call: &C,
        mut handles: impl FnMut() -> std::io::Result<Vec<OwnedFd>>,
        deadline: Deadline,
    ) -> Result<C::Reply, CallError> {
        self.call_each::<C, &C>(call.name(), || Ok((call, handles()?)), deadline)
    }

    /// Asks whoever serves the function, and again whoever comes after it, each for what `call` makes for
    /// it and with the handles that go beside.
    pub(super) fn call_each<C: Call<Request>, B: Borrow<C>>(
        &self,
        name: &'static str,
        mut call: impl FnMut() -> std::io::Result<(B, Vec<OwnedFd>)>,
        deadline: Deadline,
    ) -> Result<C::Reply, CallError> {
        let mut tries = Tries::new(name);
        loop {
            let current = self.serving(tries.after, deadline, name)?;
            let Some(Current { process, served }) = current.as_deref() else { continue };
            let (call, handles) = call().map_err(|error| no_descriptor(&error))?;
            let borrowed: Vec<_> = handles.iter().map(|handle| handle.as_fd()).collect();
            match process.channel.call(call.borrow(), &borrowed, deadline) {
                Ok((reply, _)) => return Ok(reply),
                Err(failed) => self.on_failed(process, failed, &mut tries)?,
            }
            tries.after = Some(*served);
        }
    }

    /// [`FunctionShared::ask`] for an access, which has a shorter way.
    pub(super) fn access(&self, access: &Access, deadline: Deadline) -> Result<u64, CallError> {
        let timing = self.accesses.begin();
        let done = self.access_timed(access, deadline, &timing);
        self.accesses.end(&timing);
        done
    }

    fn access_timed(
        &self,
        access: &Access,
        deadline: Deadline,
        timing: &Timing,
    ) -> Result<u64, CallError> {
        let mut tries = Tries::new(Call::<Request>::name(access));
        loop {
            let current = self.current.load();
            let found = current.as_deref().filter(|current| current.is_after(tries.after));
            let Some(Current { process, served }) = found else {
                timing.hold();
                self.wait_for_one(tries.after, deadline, tries.request)?;
                continue;
            };
            match process.channel.access(access, deadline, &timing.waits) {
                Ok(value) => return Ok(value),
                Err(failed) => self.on_failed(process, failed, &mut tries)?,
            }
            timing.hold();
            tries.after = Some(*served);
        }
    }

    /// Whether a request that `process` did not answer goes to whoever comes after it.
    fn on_failed(
        &self,
        process: &Process,
        failed: channel::Failed,
        tries: &mut Tries,
    ) -> Result<(), CallError> {
        match failed {
            channel::Failed::Refused(failure) => {
                let is_end = self.recovery.is_on() && are_last_words(&failure);
                if !is_end || !ends_soon(process) {
                    return Err(CallError::Refused(failure));
                }
            }
            channel::Failed::TimedOut => return Err(self.timed_out(tries.request)),
            channel::Failed::Lost { .. } if !self.recovery.is_on() => {
                return Err(CallError::Dead(process.fate.wait_for_death()));
            }
            // Condemned over somebody else's request, or before this one was sent.
            channel::Failed::Lost { sent: false } => {}
            channel::Failed::Lost { sent: true } => {
                let death = process.fate.wait_for_death();
                if !death.is_from_outside() && std::mem::replace(&mut tries.blamed, true) {
                    return Err(CallError::Refused(self.blame(tries.request, &death)));
                }
            }
        }
        Ok(())
    }

    /// A request that ended two processes is not sent to a third.
    fn blame(&self, request: &'static str, death: &Death) -> Failure {
        let message = format!(
            "Function {}: {request} ended the process that carried it out, twice: {death}",
            self.address
        );
        tracing::warn!("{message}");
        Failure { kind: FailureKind::Io, code: None, message }
    }

    pub(super) fn timed_out(&self, request: &'static str) -> CallError {
        let process = format!("function process of {}", self.spec.subject);
        CallError::TimedOut { process, request }
    }

    /// Whoever serves the function, of a later generation than `after`; waits for it.
    fn serving(
        &self,
        after: Option<u64>,
        deadline: Deadline,
        request: &'static str,
    ) -> Result<Guard<Option<Arc<Current>>>, CallError> {
        loop {
            let current = self.current.load();
            if current.as_ref().is_some_and(|current| current.is_after(after)) {
                return Ok(current);
            }
            self.wait_for_one(after, deadline, request)?;
        }
    }

    /// Waits until somebody serves the function, of a later generation than `after`.
    pub(super) fn wait_for_one(
        &self,
        after: Option<u64>,
        deadline: Deadline,
        request: &'static str,
    ) -> Result<(), CallError> {
        let mut state = self.state.lock();
        loop {
            match state.machine.state() {
                FunctionState::Dead(death)
                | FunctionState::Away(death)
                | FunctionState::Returning(death) => {
                    return Err(CallError::Dead(Arc::clone(death)));
                }
                FunctionState::Serving | FunctionState::Adopting | FunctionState::Recovering => {}
            }
            if state.current().is_some_and(|current| current.is_after(after)) {
                return Ok(());
            }
            if self.changed.wait_until(&mut state, deadline.instant()).timed_out() {
                return Err(self.timed_out(request));
            }
        }
    }

    /// Assigns signallers, or takes them away; kept for whoever serves the function next, also
    /// while nobody does.
    pub(super) fn assign(
        &self,
        index: InterruptIndex,
        start: u16,
        signallers: Vec<Option<Signaller>>,
    ) -> Result<(), CallError> {
        let signallers: Vec<_> = signallers.into_iter().map(|one| one.map(Arc::new)).collect();
        // Before it is asked: a process that dies right after must not take it along.
        let before = self.journal().assign(index, start, &signallers);
        let deadline = self.usual();
        let signal = self.has_to_catch_up(index, start, &signallers);
        let done = assign(index, start, &signallers, signal, |call, handles| {
            self.call(call, || duplicate(handles), deadline)
        });
        match done {
            Ok(()) => self.caught_up(index, start, &signallers),
            Err(CallError::Refused(_)) => self.journal().restore(before),
            Err(CallError::Dead(_)) if self.is_away() => return Ok(()),
            Err(_) => {}
        }
        done
    }

    /// Whether vectors are set up for the first time of a function that went on while nobody could be woken: one may
    /// have come meanwhile. INTx is a level, which the kernel tells of when it is connected anew if the device asserts
    /// it; a signal beside that would be one that the VMM may have masked.
    fn has_to_catch_up(
        &self,
        index: InterruptIndex,
        start: u16,
        signallers: &[Option<Arc<Signaller>>],
    ) -> bool {
        let messages = self.caught_up.as_ref().filter(|_| index != InterruptIndex::Intx);
        let Some(caught_up) = messages else { return false };
        let caught_up = caught_up.lock();
        let mut set_up = (start..).zip(signallers).filter(|(_, one)| one.is_some());
        set_up.any(|(vector, _)| !caught_up.contains(&(index, vector)))
    }

    /// These were signalled once.
    fn caught_up(&self, index: InterruptIndex, start: u16, signallers: &[Option<Arc<Signaller>>]) {
        if let Some(caught_up) = &self.caught_up {
            let set_up = (start..).zip(signallers).filter(|(_, one)| one.is_some());
            caught_up.lock().extend(set_up.map(|(vector, _)| (index, vector)));
        }
    }

    /// Changes the interrupt setup otherwise.
    pub(super) fn act(
        &self,
        index: InterruptIndex,
        action: InterruptAction,
    ) -> Result<(), CallError> {
        // Before it is asked: a process that dies right after must not take it along.
        let masked = match action {
            InterruptAction::Mask => self.journal().mask(index, true),
            InterruptAction::Unmask => self.journal().mask(index, false),
            _ => None,
        };
        let disable = action == InterruptAction::Disable;
        if disable {
            self.journal().disable(index);
        }
        let is_kept = disable || masked.is_some();
        let done = self.ask(&Interrupts { index, action }, self.usual());
        match (done, masked) {
            (Err(CallError::Dead(_)), _) if is_kept && self.is_away() => Ok(()),
            (Err(refused @ CallError::Refused(_)), Some(before)) => {
                self.journal().restore(before);
                Err(refused)
            }
            (done, _) => done,
        }
    }
}

impl Current {
    /// Whether it came later than generation `after`.
    fn is_after(&self, after: Option<u64>) -> bool {
        after.is_none_or(|after| self.served > after)
    }
}

/// How often a request was tried so far.
struct Tries {
    request: &'static str,
    /// The last generation that it was sent to.
    after: Option<u64>,
    /// A process ended over it.
    blamed: bool,
}

impl Tries {
    fn new(request: &'static str) -> Self {
        Self { request, after: None, blamed: false }
    }
}

/// Assigns in pieces that fit beside one message each; with `signal`, each vector is signalled then.
pub(super) fn assign(
    index: InterruptIndex,
    start: u16,
    signallers: &[Option<Arc<Signaller>>],
    signal: bool,
    mut call: impl FnMut(&Interrupts, &[&Signaller]) -> Result<(), CallError>,
) -> Result<(), CallError> {
    let mut first = start;
    for part in signallers.chunks(MAX_ASSIGN) {
        let present = part.iter().map(Option::is_some).collect();
        let handles: Vec<&Signaller> = part.iter().flatten().map(Arc::as_ref).collect();
        let action = InterruptAction::Assign { start: first, present, signal };
        call(&Interrupts { index, action }, &handles)?;
        first = first.saturating_add(u16::try_from(part.len()).unwrap_or(u16::MAX));
    }
    Ok(())
}

/// Whether a process says that its dext is gone, after which it ends.
fn are_last_words(failure: &Failure) -> bool {
    failure.kind == FailureKind::Lost
}

/// Whether a process ends within [`LAST_WORDS`].
fn ends_soon(process: &Process) -> bool {
    ipc::poll::wait_readable(process.died(), Deadline::after(LAST_WORDS)).unwrap_or(false)
}

fn duplicate(signallers: &[&Signaller]) -> std::io::Result<Vec<OwnedFd>> {
    signallers.iter().map(|one| one.as_fd().try_clone_to_owned()).collect()
}

pub(super) fn no_descriptor(error: &std::io::Error) -> CallError {
    let message = format!("No descriptor left to send: {error}");
    CallError::Refused(Failure { kind: FailureKind::NoSpace, code: None, message })
}
