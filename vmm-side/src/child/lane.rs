//! Accesses of a function process by its lane, on the callers' own threads and several at once.
//!
//! The lane is handed over as soon as the process is ready, by a request whose answer nobody waits for.
//! An access that finds no free slot, or a process without a lane, goes by the tube. A deadline, an end
//! and nonsense mean what they mean there.

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::time::Instant;

use ipc::lane::{Caller, LaneError, Wait};
use ipc::wire::call::Call as _;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::Point;
use ipc::wire::function::{Access, Request, UseLane};
use ipc::{Deadline, spin};

use super::channel::{Channel, Failed, Line};
use super::{Cause, FunctionProtocol, Protocol};

impl<P: Protocol> Channel<P> {
    /// Gives the child a lane, if its kind serves one. Without descriptors or memory it goes without.
    pub(super) fn open_lane(&self, line: &mut Line) {
        let Some(request) = P::use_lane(UseLane { looks: spin::has_processors_for(2) }) else {
            return;
        };
        let (caller, handles) = match Caller::new() {
            Ok(made) => made,
            Err(error) => {
                tracing::debug!("{}: {}", self.fate.name(), ipc::chain(&error));
                return;
            }
        };
        let overdue = Instant::now() + self.deadlines.call;
        // One that is gone already is seen to be by whoever asks it next.
        if line.ask_aside(&request, &handles.borrowed(), overdue).is_ok() {
            let _ = self.lane.set(caller);
        }
    }
}

impl Channel<FunctionProtocol> {
    /// Has `access` carried out, by the lane where that can be. When it begins to wait goes into `waits`, unless
    /// something is there.
    pub(crate) fn access(
        &self,
        access: &Access,
        deadline: Deadline,
        waits: &Cell<Option<Instant>>,
    ) -> Result<u64, Failed> {
        let Some(lane) = self.lane.get() else {
            self.fate.note_access(access);
            return self.by_tube(access, deadline, waits);
        };
        if self.fate.is_condemned() {
            return Err(Failed::Lost { sent: false });
        }
        if !self.has_faults {
            self.fate.note_access(access);
            return self.by_lane(lane, access, deadline, waits, || {});
        }
        // One request at a time, as faults count them.
        let Some(mut line) = self.line.try_lock_until(deadline.instant()) else {
            return Err(Failed::TimedOut);
        };
        self.fate.note_access(access);
        let name = access.name();
        let own = Deadline::after(self.deadlines.call);
        for wrong in line.hook.begin(name) {
            self.arrange(&mut line, wrong, own);
        }
        line.hook.at(Point::Before, &self.fate);
        let during = || line.hook.at(Point::During, &self.fate);
        let outcome = self.by_lane(lane, access, deadline, waits, during)?;
        line.hook.at(Point::After, &self.fate);
        Ok(outcome)
    }

    fn by_tube(
        &self,
        access: &Access,
        deadline: Deadline,
        waits: &Cell<Option<Instant>>,
    ) -> Result<u64, Failed> {
        if waits.get().is_none() {
            waits.set(Some(Instant::now()));
        }
        self.call(access, &[], deadline).map(|(value, _)| value)
    }

    fn by_lane(
        &self,
        lane: &Caller,
        access: &Access,
        deadline: Deadline,
        waits: &Cell<Option<Instant>>,
        published: impl FnOnce(),
    ) -> Result<u64, Failed> {
        let own = Cell::new(None);
        let wait = || {
            let now = Instant::now();
            if waits.get().is_none() {
                waits.set(Some(now));
            }
            let overdue = now + self.deadlines.call;
            own.set(Some(Deadline::at(overdue)));
            let until = deadline.min(Deadline::at(overdue));
            Wait { died: self.fate.died().as_fd(), until, overdue }
        };
        match lane.call(access, published, || self.fate.is_condemned(), wait) {
            Ok(outcome) => outcome.map_err(Failed::Refused),
            Err(LaneError::Full) => self.by_tube(access, deadline, waits),
            Err(LaneError::Dead { begun }) => Err(Failed::Lost { sent: begun }),
            Err(LaneError::TimedOut { begun }) if own.get().is_some_and(Deadline::passed) => {
                self.fate.condemn(Cause::Overdue("answer"));
                Err(Failed::Lost { sent: begun })
            }
            Err(LaneError::TimedOut { .. }) => Err(Failed::TimedOut),
            Err(LaneError::Nonsense) => {
                self.lose(Cause::Broken("an outcome in the lane that is none".to_owned()))
            }
            Err(LaneError::Wait(error)) => {
                let message = format!("Cannot wait for {}: {error}", self.fate.name());
                Err(Failed::Refused(Failure { kind: FailureKind::Io, code: None, message }))
            }
        }
    }
}

/// What a process did last, where that was an access: its number in [`name`].
pub(super) fn number(access: &Access) -> u8 {
    let is_bar = !matches!(access.space, ipc::wire::function::Space::Config);
    1 + u8::from(access.write) + 2 * u8::from(is_bar)
}

/// The name of access `number` of [`number`].
pub(super) fn name(number: u8) -> Option<&'static str> {
    let spaces = [ipc::wire::function::Space::Config, ipc::wire::function::Space::Bar(0)];
    let kinds = spaces.map(|space| [Access::read(space, 0, 1), Access::write(space, 0, 1, 0)]);
    let kind = kinds.as_flattened().get(usize::from(number.checked_sub(1)?))?;
    Some(ipc::wire::call::Call::<Request>::name(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::wire::function::Space;

    #[test]
    fn an_access_is_known_by_its_number() {
        for (access, expected) in [
            (Access::read(Space::Config, 0, 4), "ConfigRead"),
            (Access::write(Space::Config, 0, 4, 1), "ConfigWrite"),
            (Access::read(Space::Bar(2), 0, 4), "BarRead"),
            (Access::write(Space::Bar(2), 0, 4, 1), "BarWrite"),
        ] {
            assert_eq!(name(number(&access)), Some(expected));
        }
        assert_eq!((name(0), name(5)), (None, None));
    }
}
