//! Another program for a function process that works.
//!
//! In two steps, each an order to the function's thread ([`super::keep`]): a process of the other program
//! is started and *prepared* beside the one that serves, as a standby is, and then *takes over*. Until
//! then nothing has changed for anybody, so a program that does not start, speaks no common version of the
//! protocol or finds another device costs nothing. The process that served ends in order: the request that
//! it is at is answered first, and whoever comes meanwhile waits for the other, as after a death. One
//! that cannot take over is rolled back by what replaces a dead process.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ipc::PciAddress;

use super::Function;
use super::keep::{Failed, FunctionKeeper, How};
use super::machine::{Action, FunctionEvent, FunctionState};
use crate::child::{Death, Spec};

/// Why a function goes on with the program it had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// A process of the other program did not become ready.
    #[error("{0}")]
    NotStarted(Arc<Death>),
    /// It found another device than the one that is served.
    #[error("the other program finds another device there")]
    OtherDevice,
    /// Nobody serves the function, or it is being replaced: its device is away, or it was given up.
    #[error("nobody serves it now")]
    NotServed,
    /// Dead processes are not replaced here, so one that did not take over could not be either.
    #[error("recovery is off")]
    NoRecovery,
    /// Its process could not take over; the program that it had serves again.
    #[error("it could not take over, and the former program serves again: {0}")]
    RolledBack(Arc<Death>),
    /// It was called off, since another function's could not be prepared or took over its place.
    #[error("it was called off")]
    CalledOff,
    /// What keeps the function was busy for too long, with replacing processes that died.
    #[error("its processes are being replaced, and that takes too long")]
    Overdue,
    /// The function is being detached.
    #[error("it is being detached")]
    Stopped,
}

/// A function process that was replaced by one of another program.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Upgraded {
    /// Of which function.
    pub address: PciAddress,
    /// The process that serves now.
    pub pid: u32,
    /// From when requests waited until they were served.
    pub took: Duration,
}

/// A program, and what it is told before the subcommand.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) program: PathBuf,
    pub(crate) before: Vec<OsString>,
}

/// Where what became of an order is told.
pub(super) type Answer<T> = SyncSender<Result<T, UpgradeError>>;

/// Something that the function's thread is to do.
enum Order {
    Prepare(Program, Answer<()>),
    TakeOver(Arc<Turn>, Answer<Upgraded>),
    CallOff,
}

/// Whether an order is carried out: whoever is first of the thread that begins it and the caller that gives
/// it up has decided, so that none is carried out of which its caller believes that it is not.
#[derive(Default)]
struct Turn(AtomicBool);

impl Turn {
    /// Takes the decision; false: the other side has.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Orders that the function's thread has not seen.
#[derive(Default)]
pub(super) struct Orders {
    open: VecDeque<Order>,
    closed: bool,
}

impl Orders {
    /// None is obeyed from here on; whoever waits for an answer learns that.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.open.clear();
    }
}

/// A candidate that is being prepared, or is ready.
pub(super) struct Preparing {
    spec: Spec,
    answer: Option<Answer<()>>,
}

impl Function {
    /// Has a process of another program prepared; told when that is done.
    pub(crate) fn prepare_upgrade(&self, program: Program) -> Receiver<Result<(), UpgradeError>> {
        let (answer, told) = sync_channel(1);
        self.order(Order::Prepare(program, answer));
        told
    }

    /// Has the prepared process take over, and waits until it serves or the former program does again: for
    /// `to_begin` until the function's thread begins with it, and for `to_end` from then on. An order that
    /// is not begun in time is not carried out later: the prepared process ends.
    pub(crate) fn take_upgrade(
        &self,
        to_begin: Duration,
        to_end: Duration,
    ) -> Result<Upgraded, UpgradeError> {
        let (answer, receiver) = sync_channel(1);
        let turn = Arc::new(Turn::default());
        self.order(Order::TakeOver(Arc::clone(&turn), answer));
        match receiver.recv_timeout(to_begin) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(UpgradeError::Stopped),
            Err(RecvTimeoutError::Timeout) if turn.take() => Err(UpgradeError::Overdue),
            Err(RecvTimeoutError::Timeout) => told(&receiver, to_end),
        }
    }

    /// Ends a process that was prepared.
    pub(crate) fn call_upgrade_off(&self) {
        self.order(Order::CallOff);
    }

    /// An order that is dropped answers [`UpgradeError::Stopped`]: see [`told`].
    fn order(&self, order: Order) {
        let mut orders = self.shared.orders.lock();
        if !orders.closed {
            orders.open.push_back(order);
            self.shared.ordered.signal();
        }
    }
}

/// What became of an order; one that takes longer than `limit` is overdue, and is to be called off.
pub(crate) fn told<T>(
    told: &Receiver<Result<T, UpgradeError>>,
    limit: Duration,
) -> Result<T, UpgradeError> {
    told.recv_timeout(limit).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => UpgradeError::Overdue,
            RecvTimeoutError::Disconnected => UpgradeError::Stopped,
        })
    })
}

impl FunctionKeeper {
    /// Carries out what was ordered. An error: the function is stopped.
    pub(super) fn obey(&mut self) -> Result<(), ()> {
        loop {
            let Some(order) = self.shared.orders.lock().open.pop_front() else { return Ok(()) };
            match order {
                Order::Prepare(program, answer) => self.prepare(program, answer),
                Order::TakeOver(turn, answer) if turn.take() => self.take_upgrade(&answer)?,
                // Its caller gave it up, and tells that nothing has changed.
                Order::TakeOver(..) => self.drop_candidate(&UpgradeError::Overdue),
                Order::CallOff => self.drop_candidate(&UpgradeError::CalledOff),
            }
        }
    }

    fn prepare(&mut self, program: Program, answer: Answer<()>) {
        self.drop_candidate(&UpgradeError::CalledOff);
        let refused = if !self.shared.recovery.is_on() {
            Some(UpgradeError::NoRecovery)
        } else if !matches!(
            self.shared.state.lock().machine.state(),
            FunctionState::Serving | FunctionState::Adopting
        ) {
            Some(UpgradeError::NotServed)
        } else {
            let Program { program, before } = program;
            let spec = Spec { program, before, ..self.spec.clone() };
            match self.keeper.try_candidate(&self.standby(&spec)) {
                Ok(()) => {
                    self.preparing = Some(Preparing { spec, answer: Some(answer) });
                    return;
                }
                Err(death) => Some(UpgradeError::NotStarted(death)),
            }
        };
        let _ = answer.send(refused.map_or(Ok(()), Err));
    }

    /// The candidate is ready, or is not going to be.
    pub(super) fn after_candidate(&mut self, ready: Result<(), Arc<Death>>) {
        let fit = match ready {
            Err(death) => Err(UpgradeError::NotStarted(death)),
            Ok(()) if self.keeper.candidate().is_some_and(|ready| self.is_same(ready)) => Ok(()),
            Ok(()) => Err(UpgradeError::OtherDevice),
        };
        match fit {
            Ok(()) => {
                let answer = self.preparing.as_mut().and_then(|preparing| preparing.answer.take());
                let _ = answer.map(|answer| answer.send(Ok(())));
            }
            Err(error) => self.drop_candidate(&error),
        }
    }

    /// Ends the candidate, if there is one, and tells whoever waits for it why.
    pub(super) fn drop_candidate(&mut self, why: &UpgradeError) {
        self.keeper.drop_candidate();
        if let Some(answer) = self.preparing.take().and_then(|preparing| preparing.answer) {
            let _ = answer.send(Err(why.clone()));
        }
    }

    fn take_upgrade(&mut self, answer: &Answer<Upgraded>) -> Result<(), ()> {
        let (preparing, candidate) = (self.preparing.take(), self.keeper.take_candidate());
        let (spec, mut kept, ready) = match (preparing, candidate) {
            (Some(Preparing { spec, .. }), Some(Ok((kept, ready)))) => (spec, kept, ready),
            (_, Some(Err(death))) => {
                let _ = answer.send(Err(UpgradeError::NotStarted(death)));
                return Ok(());
            }
            (_, other) => {
                if let Some(Ok((kept, _))) = other {
                    self.keeper.end_in_order(kept);
                }
                let _ = answer.send(Err(UpgradeError::NotServed));
                return Ok(());
            }
        };
        let noticed = Instant::now();
        let action = self.shared.change(|state| state.machine.on(FunctionEvent::Upgrade));
        if action != Action::HandOver {
            self.keeper.end_in_order(kept);
            let _ = answer.send(Err(UpgradeError::NotServed));
            return Ok(());
        }
        self.keeper.end();
        let deadline = ipc::Deadline::after(self.shared.recovery.timeout);
        let why = match self.take_over(&mut kept, &ready, deadline) {
            Ok(()) => {
                kept.is_relied_on();
                let (address, pid) = (self.shared.address, kept.child.pid());
                // A standby of the former program would be a roll-back at the next death.
                self.keeper.drop_standby();
                self.spec = spec;
                self.serve(kept, How::Upgraded, noticed);
                self.stand_by();
                let _ = answer.send(Ok(Upgraded { address, pid, took: noticed.elapsed() }));
                return Ok(());
            }
            Err(failed) => {
                self.keeper.end_in_order(kept);
                match failed {
                    Failed::Death(why) | Failed::GivenUp(why) => Some(why),
                    Failed::Lost | Failed::Stopped => None,
                }
            }
        };
        let replaced = self.replace();
        let next = self.settle(replaced, noticed)?;
        self.follow(next, noticed)?;
        let error = why.map_or(UpgradeError::NotServed, UpgradeError::RolledBack);
        let _ = answer.send(Err(error));
        Ok(())
    }
}
