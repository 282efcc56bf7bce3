//! A second, confined process that waits for the first one's death.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ipc::Deadline;
use ipc::wire::function::Ready;

use super::Child;
use crate::supervisor::Spec;

enum Waiting {
    Nobody,
    /// It is being started.
    Starting,
    Ready(Box<(Child, Ready)>),
}

struct State {
    waiting: Waiting,
    closed: bool,
}

/// The place of a function's standby.
pub(super) struct Standby {
    spec: Spec,
    state: Mutex<State>,
    changed: Condvar,
}

impl Standby {
    /// Nobody waits yet; `spec` is that of the process that serves.
    pub(super) fn new(spec: &Spec) -> Self {
        let mut spec = spec.clone();
        spec.arguments.push("--standby".to_owned());
        // Whoever is replaced has been told of; one that dies while it waits is no loss.
        spec.expendable = true;
        let state = State { waiting: Waiting::Nobody, closed: false };
        Self { spec, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one, by a thread of its own, unless one is there.
    pub(super) fn warm(self: &Arc<Self>) {
        let mut state = self.state();
        if state.closed || !matches!(state.waiting, Waiting::Nobody) {
            return;
        }
        let standby = Arc::clone(self);
        let name = format!("standby {}", self.spec.subject);
        let started = std::thread::Builder::new().name(name).spawn(move || standby.start());
        match started {
            Ok(_) => state.waiting = Waiting::Starting,
            Err(error) => tracing::warn!("no standby for {}: {error}", self.spec.subject),
        }
    }

    fn start(&self) {
        let waiting = match Child::start(&self.spec) {
            Ok(started) => Waiting::Ready(Box::new(started)),
            Err(death) => {
                tracing::warn!("no standby: {death}");
                Waiting::Nobody
            }
        };
        let mut state = self.state();
        let unwanted = if state.closed {
            state.waiting = Waiting::Nobody;
            Some(waiting)
        } else {
            state.waiting = waiting;
            None
        };
        drop(state);
        drop(unwanted);
        self.changed.notify_all();
    }

    /// Whether one waits.
    pub(super) fn is_ready(&self) -> bool {
        matches!(&self.state().waiting, Waiting::Ready(started) if started.0.death().is_none())
    }

    /// Takes the one that waits, if there is one; waits for one that is being started.
    pub(super) fn take(&self, deadline: Deadline) -> Option<(Child, Ready)> {
        let mut state = self.state();
        while matches!(state.waiting, Waiting::Starting) {
            let left = deadline.remaining()?;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match std::mem::replace(&mut state.waiting, Waiting::Nobody) {
            Waiting::Ready(started) => Some(*started),
            Waiting::Nobody | Waiting::Starting => None,
        }
    }

    /// Ends the one that waits.
    pub(super) fn clear(&self) {
        drop(self.take(Deadline::after(self.spec.deadlines.start)));
    }

    /// Ends the one that waits; there will be no other.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.clear();
    }
}
