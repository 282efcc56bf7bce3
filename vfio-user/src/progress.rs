//! Since when the thread of a server has been at one thing: whoever looks after the program sees by it
//! whether the thread gets on. The thread only writes a number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    /// One more than the milliseconds from the start to when the thread began what it does; 0 while it waits
    /// for something to do, or has ended.
    since: AtomicU64,
}

impl Progress {
    /// Of a thread that begins.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), since: AtomicU64::new(1) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// It begins the next thing.
    pub(super) fn begins(&self) {
        self.since.store(self.now() + 1, Ordering::Relaxed);
    }

    /// It waits for something to do.
    pub(super) fn waits(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// For how long it has been at what it does.
    pub(super) fn busy_for(&self) -> Duration {
        match self.since.load(Ordering::Relaxed).checked_sub(1) {
            None => Duration::ZERO,
            Some(since) => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }
}
