//! Another process for the function: a new one or a standby, set up as the one before it was; and all of it
//! anew for a device that was away.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use ipc::Deadline;
use ipc::wire::function::{InterruptAction, Interrupts, Ready, TakeOver};

use super::calls::assign;
use super::keep::{Failed, FunctionKeeper, How};
use crate::child::start::Kept;
use crate::child::{CallError, Cause, Death, FunctionProtocol, Spec};
use crate::error::{DeviceError, ErrorKind};
use crate::keeper::StartError;
use crate::observer::{Happening, Limit, ProcessKind, Successor};
use crate::recovery::Backoff;
use crate::text::printable;

/// How long a connection process may take to say whether its device is there; it is asked again.
const LOOK: Duration = Duration::from_millis(200);

/// Pauses while the dext cleans up: a caller waits.
fn backoff(first: Duration) -> Backoff {
    Backoff::new(first, Duration::from_millis(50))
}

impl FunctionKeeper {
    /// A new process with the journal replayed, or the standby.
    pub(super) fn replace(&mut self) -> Result<(Kept<FunctionProtocol>, How), Failed> {
        let deadline = Deadline::after(self.shared.recovery.timeout);
        let spec = self.successor(&self.spec);
        match self.keeper.take_standby() {
            Ok(Some((mut kept, ready))) => match self.take_over(&mut kept, &ready, deadline) {
                Ok(()) => return Ok((kept, How::Replaced(Successor::Standby))),
                Err(error) => {
                    let death = self.keeper.end_in_order(kept);
                    let Failed::Death(why) = error else { return Err(error) };
                    tracing::warn!("the standby did not take over: {why}; {death}");
                    self.spec.tell(|address| Happening::StandbyLost { address, death });
                }
            },
            Ok(None) => {}
            Err(_) => return Err(Failed::Stopped),
        }
        let started = self.start(&spec, deadline)?;
        Ok((started.0, How::Replaced(Successor::Spawned)))
    }

    /// Starts a process as `spec` says, until one serves or there is no point in going on.
    fn start(
        &self,
        spec: &Spec,
        deadline: Deadline,
    ) -> Result<(Kept<FunctionProtocol>, Ready), Failed> {
        let mut backoff = backoff(Duration::from_millis(1));
        loop {
            // An attempt that fails is no news: the last one is told.
            let death = match self.keeper.start_as(spec) {
                Ok((mut kept, ready)) => {
                    let replayed = if ready.is_as(&self.shared.ready) {
                        let replayed = self.replay(&mut kept);
                        replayed.map_err(|error| {
                            self.tell_lost(&kept, &error);
                            self.not_replayed(error)
                        })
                    } else {
                        Err(self.other_device())
                    };
                    match replayed {
                        Ok(()) => {
                            kept.is_relied_on();
                            return Ok((kept, ready));
                        }
                        Err(death) => {
                            self.keeper.end_in_order(kept);
                            death
                        }
                    }
                }
                Err(StartError::Died(death)) => {
                    // Perhaps since the device is gone: the process that holds the claim then ends.
                    let until = Deadline::after(LOOK).min(deadline);
                    self.shared.connection.look(self.shared.address, until);
                    death
                }
                Err(StartError::Stopped) => return Err(Failed::Stopped),
            };
            // The dext may still be cleaning up after the dead one.
            self.pause_or_give_up(&mut backoff, deadline, death)?;
        }
    }

    /// Whether a process that has no interrupts yet is the same function's.
    pub(super) fn is_same(&self, ready: &Ready) -> bool {
        let as_if_set_up = Ready { vectors: self.shared.ready.vectors, ..ready.clone() };
        as_if_set_up.is_as(&self.shared.ready)
    }

    /// The standby sets the interrupts up as soon as the dext has cleaned up after the dead one.
    pub(super) fn take_over(
        &self,
        kept: &mut Kept<FunctionProtocol>,
        ready: &Ready,
        deadline: Deadline,
    ) -> Result<(), Failed> {
        let mut backoff = backoff(Duration::from_micros(100));
        if !self.is_same(ready) {
            return Err(Failed::Death(self.other_device()));
        }
        loop {
            let child = Arc::clone(&kept.child);
            let taken = self.keeper.with_in_hand(&child, || kept.call(&TakeOver, &[], deadline));
            let death = match taken {
                Ok(vectors) if vectors == self.shared.ready.vectors => {
                    let replayed = self.replay(kept);
                    return replayed.map_err(|error| Failed::Death(self.not_replayed(error)));
                }
                Ok(_) => return Err(Failed::Death(self.other_device())),
                Err(CallError::Dead(death)) => return Err(Failed::Death(death)),
                Err(refused) => self.not_replayed(refused),
            };
            self.pause(&mut backoff, deadline, death)?;
        }
    }

    /// Waits a little, and longer the next time. An error when there is no point in going on.
    fn pause(
        &self,
        backoff: &mut Backoff,
        deadline: Deadline,
        death: Arc<Death>,
    ) -> Result<(), Failed> {
        if !self.is_linked() {
            return Err(Failed::Lost);
        }
        if deadline.passed() {
            return Err(Failed::Death(death));
        }
        if !self.keeper.pause(backoff.pause()) && self.keeper.is_stopped() {
            return Err(Failed::Stopped);
        }
        Ok(())
    }

    /// [`FunctionKeeper::pause`] of who can only give up once the time is over.
    fn pause_or_give_up(
        &self,
        backoff: &mut Backoff,
        deadline: Deadline,
        death: Arc<Death>,
    ) -> Result<(), Failed> {
        if self.is_linked() && deadline.passed() {
            let (kind, limit) =
                (ProcessKind::Function, Limit::Timeout(self.shared.recovery.timeout));
            self.spec.tell(|address| Happening::LimitReached { address, kind, limit });
        }
        self.pause(backoff, deadline, death)
    }

    /// The function comes back through another connection process: claimed, reset so that it
    /// forgets every address it was told, given its memory, and served by a new process.
    pub(super) fn come_back(&mut self) -> Result<Kept<FunctionProtocol>, Failed> {
        let deadline = Deadline::after(self.shared.recovery.timeout);
        let mut backoff = backoff(Duration::from_millis(1));
        let claimed = loop {
            match self.shared.connection.attach(self.shared.address) {
                Ok(claimed) => break claimed,
                // The dext may still be cleaning up after the connection process that died.
                Err(error) => {
                    let death = self.not_back("claiming", &error);
                    self.pause_or_give_up(&mut backoff, deadline, death)?;
                }
            }
        };
        if claimed.identity != self.shared.ready.identity
            || claimed.bars != self.shared.ready.known.bars
        {
            return Err(Failed::Death(self.other_device()));
        }
        // Without a reset it could still reach what it was told of before.
        if let Err(why) = super::is_resettable(&claimed.identity) {
            return Err(Failed::GivenUp(self.death(format!("resetting failed: {why}"))));
        }
        let (address, connection) = (self.shared.address, Arc::clone(&self.shared.connection));
        self.step("resetting", connection.reset(address))?;
        self.step("mapping guest memory", self.shared.container.rejoin(address, &connection))?;
        if let Some(handed) = &self.spec.handed {
            handed.set(claimed.handed);
        }
        // It looks for itself: nothing is known of a device that was away.
        let spec = Spec { expendable: true, ..self.spec.clone() };
        let (kept, ready) = self.start(&spec, deadline)?;
        self.known = ready.known;
        self.shared.guard.restart();
        if let Err(failed) =
            self.step("restoring windows", self.shared.windows.restore(claimed.windows))
        {
            self.keeper.end_in_order(kept);
            return Err(failed);
        }
        tracing::info!("{}: back", self.shared.spec.subject);
        Ok(kept)
    }

    fn step(&self, what: &str, done: Result<(), DeviceError>) -> Result<(), Failed> {
        done.map_err(|error| match error.kind() {
            ErrorKind::Gone => Failed::Lost,
            _ => Failed::Death(self.not_back(what, &error)),
        })
    }

    fn death(&self, why: String) -> Arc<Death> {
        Arc::new(Death::of_function(&self.shared.spec.subject, Cause::StartFailed(why)))
    }

    fn not_back(&self, what: &str, error: &DeviceError) -> Arc<Death> {
        self.death(format!("{what} failed: {error}"))
    }

    fn other_device(&self) -> Arc<Death> {
        self.death("it is another device".to_owned())
    }

    /// Tells of a process that was ready and died while it was set up: what it was sent is a guest's.
    fn tell_lost(&self, kept: &Kept<FunctionProtocol>, error: &CallError) {
        // It may be the connection process that died.
        if let CallError::Dead(death) = error
            && death.pid == kept.child.pid()
        {
            self.shared.state.lock().deaths.add(death);
            self.tell_died(death);
        }
    }

    fn not_replayed(&self, error: CallError) -> Arc<Death> {
        match error {
            CallError::Dead(death) => death,
            CallError::Refused(failure) => self.death(printable(&failure.message)),
            CallError::TimedOut { .. } => self.death(error.to_string()),
        }
    }

    /// Sets the interrupts up as they were and signals each vector in use once; a masked INTx is
    /// signalled when it is unmasked.
    fn replay(&self, kept: &mut Kept<FunctionProtocol>) -> Result<(), CallError> {
        let child = Arc::clone(&kept.child);
        self.keeper.with_in_hand(&child, || {
            let deadline = self.shared.usual();
            let journal = self.shared.journal().clone();
            let memory = journal.memory.values().cloned();
            self.shared.replay_companion(kept, journal.companion, memory, deadline)?;
            let Some((index, signallers)) = journal.interrupts() else { return Ok(()) };
            let masked = journal.is_masked();
            assign(index, 0, signallers, !masked, |call, handles| {
                let handles: Vec<_> = handles.iter().map(|handle| handle.as_fd()).collect();
                kept.call(call, &handles, deadline)
            })?;
            if !masked {
                return Ok(());
            }
            let mask = Interrupts { index, action: InterruptAction::Mask };
            kept.call(&mask, &[], deadline)?;
            let count = u16::try_from(signallers.len()).unwrap_or(u16::MAX);
            let action = InterruptAction::Trigger { start: 0, count };
            kept.call(&Interrupts { index, action }, &[], deadline)
        })
    }
}
