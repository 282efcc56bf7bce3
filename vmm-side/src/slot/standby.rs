//! A second, confined process that waits for the first one's death.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipc::Deadline;
use ipc::event::Signaller;
use ipc::wire::function::Ready;

use super::Child;
use crate::supervisor::Spec;

/// Pauses before further attempts; after the last one the next death is replaced without.
const ATTEMPTS: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(20), Duration::from_millis(100)];

enum Waiting {
    Nobody,
    /// It is being started.
    Starting,
    Ready(Arc<Child>, Box<Ready>),
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
    /// Signalled when one begins to wait.
    news: Signaller,
}

impl Standby {
    /// Nobody waits yet; `spec` is that of the process that serves.
    pub(super) fn new(spec: &Spec, news: Signaller) -> Self {
        let mut spec = spec.clone();
        spec.arguments.push("--standby".to_owned());
        // Whoever is replaced has been told of; one that dies while it waits is no loss.
        spec.expendable = true;
        let state = State { waiting: Waiting::Nobody, closed: false };
        Self { spec, state: Mutex::new(state), changed: Condvar::new(), news }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one, by a thread of its own, unless one is there.
    /// One that died while it waited is replaced, after a while: nobody is in a hurry.
    pub(super) fn warm(self: &Arc<Self>) {
        let mut state = self.state();
        let pause = match &state.waiting {
            Waiting::Nobody => Duration::ZERO,
            Waiting::Ready(child, _) if child.death().is_some() => Duration::from_millis(100),
            Waiting::Starting | Waiting::Ready(..) => return,
        };
        if state.closed {
            return;
        }
        state.waiting = Waiting::Nobody;
        let standby = Arc::clone(self);
        let name = format!("standby {}", self.spec.subject);
        let started = std::thread::Builder::new().name(name).spawn(move || standby.start(pause));
        match started {
            Ok(_) => state.waiting = Waiting::Starting,
            Err(error) => tracing::warn!("no standby for {}: {error}", self.spec.subject),
        }
    }

    fn start(&self, pause: Duration) {
        let mut waiting = Waiting::Nobody;
        for pause in std::iter::once(pause).chain(ATTEMPTS) {
            std::thread::sleep(pause);
            if self.state().closed {
                break;
            }
            match Child::start(&self.spec) {
                Ok((child, ready)) => {
                    waiting = Waiting::Ready(Arc::new(child), Box::new(ready));
                    break;
                }
                Err(death) => tracing::warn!("no standby: {death}"),
            }
        }
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
        self.news.signal();
    }

    /// Who waits.
    pub(super) fn waiting(&self) -> Option<Arc<Child>> {
        match &self.state().waiting {
            Waiting::Ready(child, _) => Some(Arc::clone(child)),
            Waiting::Nobody | Waiting::Starting => None,
        }
    }

    /// Takes the one that waits, if there is one; waits for one that is being started.
    pub(super) fn take(&self, deadline: Deadline) -> Option<(Arc<Child>, Ready)> {
        let mut state = self.state();
        while matches!(state.waiting, Waiting::Starting) {
            let left = deadline.remaining()?;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match std::mem::replace(&mut state.waiting, Waiting::Nobody) {
            Waiting::Ready(child, ready) => Some((child, *ready)),
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
