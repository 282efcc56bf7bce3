//! Carries out what a fault plan says of one child, at the calls of its channel: whatever route a
//! request takes, it passes here. See [`crate::faults`].

use std::sync::Arc;
use std::time::Duration;

use ipc::Deadline;
use ipc::wire::faults::{Misbehaviour, Point, Wrong};
use ipc::wire::handshake::Role;

use super::fate::Fate;
use crate::faults::{Due, Faults, What};

/// A fault whose time is yet to come.
pub(super) struct Later {
    when: Deadline,
    due: Due,
    faults: Arc<Faults>,
}

/// The faults of one child that are due at the request in flight.
pub(super) struct FaultHook {
    faults: Option<Arc<Faults>>,
    role: Role,
    subject: String,
    due: Vec<Due>,
}

impl FaultHook {
    pub(super) fn new(faults: Option<Arc<Faults>>, role: Role, subject: String) -> Self {
        Self { faults, role, subject, due: Vec::new() }
    }

    /// Whether there is a plan at all.
    pub(super) fn has_faults(&self) -> bool {
        self.faults.is_some()
    }

    /// A request is about to be sent: what the child is to be asked to do wrong at it.
    pub(super) fn begin(&mut self, request: &str) -> Vec<Misbehaviour> {
        let Some(faults) = &self.faults else { return Vec::new() };
        self.due = faults.at(self.role, &self.subject, request);
        self.due.iter().filter_map(misbehaviour).collect()
    }

    /// The request is at `point`.
    pub(super) fn at(&mut self, point: Point, fate: &Fate) {
        let Some(faults) = self.faults.as_ref().filter(|_| !self.due.is_empty()) else { return };
        for due in self.due.extract_if(.., |due| due.when == point) {
            if due.after_ms > 0 {
                let when = Deadline::after(Duration::from_millis(due.after_ms));
                fate.later.lock().push(Later { when, due, faults: Arc::clone(faults) });
                fate.wake();
            } else {
                strike(&due, faults, fate);
            }
        }
    }
}

/// Those whose time has come strike; when the next one's comes.
pub(crate) fn strike_later(fate: &Fate) -> Option<Deadline> {
    let mut later = fate.later.lock();
    let now: Vec<_> = later.extract_if(.., |one| one.when.passed()).collect();
    let next = later.iter().map(|one| one.when).min();
    drop(later);
    for one in now {
        strike(&one.due, &one.faults, fate);
    }
    next
}

fn strike(due: &Due, faults: &Faults, fate: &Fate) {
    match due.what {
        What::Kill => fate.process().kill(),
        What::Stop => fate.process().suspend(),
        What::Delay(ms) => std::thread::sleep(Duration::from_millis(ms)),
        // The child does these itself, at the same point.
        What::Hang | What::Garbage | What::Truncated | What::Closed | What::Selector { .. } => {}
    }
    faults.fired(due, fate.pid());
}

fn misbehaviour(due: &Due) -> Option<Misbehaviour> {
    let wrong = match due.what {
        What::Hang => Wrong::Hang,
        What::Garbage => Wrong::Garbage,
        What::Truncated => Wrong::Truncated,
        What::Closed => Wrong::Closed,
        What::Selector { selector, code } => Wrong::Selector { selector, code },
        What::Kill | What::Stop | What::Delay(_) => return None,
    };
    Some(Misbehaviour { point: due.when, wrong })
}
