//! How `cordon serve` stops: in order, and if that takes too long by killing its child processes, so
//! that it is gone within two seconds whatever happens.
//!
//! ```text
//! signal ──▶ in order ──1.5 s──▶ children killed, sockets removed, exit
//!                │ done                          │
//!                ▼                               ▼
//!            status 0                        status 70
//! ```
//!
//! What a keeper has is given up before children are killed: one that was told to end is not to be gone on with.
//!
//! What is slow is bounded below that: a client that is in the middle of a message is left at once, one
//! whose device does not answer after 200 ms, and detaching kills a process that is stopped at once and
//! one that does not answer after at most a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use console::{Interrupt, Signal, exit};
use cordon_cli::event::Event;
use cordon_vmm::kept::Store;
use ipc::{Deadline, SocketFile};

use super::sink::Sink;
use crate::Failure;
use crate::sys::Confined;

/// How long stopping in order may take: 200 ms for clients to leave and a second to detach. The rest of the two seconds is for a machine on which
/// others want to run as well.
const IN_ORDER: Duration = Duration::from_millis(1500);
/// How long whoever reads the events may hold up the end.
pub(super) const WRITING: Duration = Duration::from_millis(100);

#[derive(Default)]
struct StopShared {
    /// Sockets whose files are to be removed when it does not stop in order.
    files: Mutex<Vec<Weak<SocketFile>>>,
    finished: AtomicBool,
    forced: AtomicBool,
}

impl StopShared {
    fn files(&self) -> MutexGuard<'_, Vec<Weak<SocketFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether and how the program is to stop.
pub(super) struct Stop {
    interrupt: Interrupt,
    shared: Arc<StopShared>,
}

impl Stop {
    /// Catches signals from here on.
    pub(super) fn catch(
        sink: &Sink,
        confined: &Arc<Confined>,
        store: Option<Arc<Store>>,
    ) -> Result<Self, Failure> {
        let shared = Arc::<StopShared>::default();
        let interrupt = Interrupt::catch()?;
        let (held, sink, confined) = (Arc::clone(&shared), sink.clone(), Arc::clone(confined));
        interrupt.when_raised(move |urgency| {
            urgency.grace(IN_ORDER);
            if held.finished.load(Ordering::Acquire) {
                return;
            }
            held.forced.store(true, Ordering::Release);
            sink.tell(&Event::Forced);
            // It would start this program again, for an end with a status of its own and something kept.
            if let Some(store) = &store
                && !store.give_up_all(Deadline::after(WRITING))
            {
                tracing::warn!("the keeper could not be told to close all that it has");
            }
            // What is started in their place meanwhile is killed by the end of this program.
            confined.kill_children();
            for file in held.files().iter().filter_map(Weak::upgrade) {
                file.remove();
            }
            let _ = sink.flush(WRITING);
            std::process::exit(exit::FORCED.into());
        })?;
        Ok(Self { interrupt, shared })
    }

    /// What is to be waited for.
    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The signal that asked for the end.
    pub(super) fn signal(&self) -> Option<Signal> {
        self.interrupt.signal()
    }

    /// This socket is ours from here on.
    pub(super) fn remember(&self, file: &Arc<SocketFile>) {
        let mut files = self.shared.files();
        // A function can be detached and attached again any number of times.
        files.retain(|one| one.strong_count() > 0);
        files.push(Arc::downgrade(file));
    }

    /// Everything is stopped. Whether its children had to be killed for it.
    pub(super) fn finish(&self) -> bool {
        self.shared.finished.store(true, Ordering::Release);
        self.shared.forced.load(Ordering::Acquire)
    }
}
