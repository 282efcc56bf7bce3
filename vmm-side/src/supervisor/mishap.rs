//! Carries out what a fault plan says of one child: see [`crate::faults`].

use std::sync::Arc;
use std::time::Duration;

use ipc::Deadline;
use ipc::wire::faults::{Misbehaviour, Point, Wrong};
use ipc::wire::handshake::Role;

use crate::faults::{Due, Faults, What};
use crate::sys::Process;

/// The faults that are due at the request in flight, and those that come later.
#[derive(Default)]
pub(super) struct Mishaps {
    faults: Option<Arc<Faults>>,
    due: Vec<Due>,
    later: Vec<(Deadline, Due)>,
}

impl Mishaps {
    pub(super) fn new(faults: Option<Arc<Faults>>) -> Self {
        Self { faults, ..Self::default() }
    }

    /// A request is about to be sent: what the child is to be asked to do wrong at it.
    pub(super) fn begin(&mut self, role: Role, subject: &str, request: &str) -> Vec<Misbehaviour> {
        let Some(faults) = &self.faults else { return Vec::new() };
        self.due = faults.at(role, subject, request);
        self.due.iter().filter_map(misbehaviour).collect()
    }

    /// The request is at `point`.
    pub(super) fn at(&mut self, point: Point, process: &Process) {
        if self.due.is_empty() {
            return;
        }
        let now = self.due.extract_if(.., |due| due.when == point).collect::<Vec<_>>();
        for due in now {
            if due.after_ms > 0 {
                let when = Deadline::after(Duration::from_millis(due.after_ms));
                self.later.push((when, due));
            } else {
                self.strike(&due, process);
            }
        }
    }

    /// Those whose time has come.
    pub(super) fn on_time(&mut self, process: &Process) {
        let now = self.later.extract_if(.., |(when, _)| when.passed()).collect::<Vec<_>>();
        for (_, due) in now {
            self.strike(&due, process);
        }
    }

    /// The sooner of `deadline` and the next that comes later.
    pub(super) fn sooner(&self, deadline: Option<Deadline>) -> Option<Deadline> {
        let left = |deadline: &Deadline| deadline.remaining().unwrap_or_default();
        self.later.iter().map(|(when, _)| *when).chain(deadline).min_by_key(left)
    }

    fn strike(&self, due: &Due, process: &Process) {
        match due.what {
            What::Kill => process.kill(),
            What::Stop => process.suspend(),
            What::Delay(ms) => std::thread::sleep(Duration::from_millis(ms)),
            // The child does these itself, at the same point.
            What::Hang | What::Garbage | What::Truncated | What::Closed | What::Selector { .. } => {
            }
        }
        if let Some(faults) = &self.faults {
            faults.fired(due, process.pid());
        }
    }
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
