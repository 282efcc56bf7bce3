//! When a service manager is given a sign of life: by the main thread, in its turns, as long as it and every
//! thread that serves get on. A thread that is stuck, or a main loop that does not come round, gives none,
//! and the manager does what its unit says.

use std::time::{Duration, Instant};

use ipc::Deadline;

use crate::limits::MAX_TURN;

/// See the module.
#[derive(Debug)]
pub(super) struct Watchdog {
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// A manager that waits so long for the next sign gets three in that time.
    pub(super) fn new(waits: Option<Duration>, now: Instant) -> Self {
        Self { every: waits.map(|waits| waits / 3), next: now }
    }

    /// When the main thread must have a turn, if ever.
    pub(super) fn next(&self) -> Option<Deadline> {
        self.every.map(|_| Deadline::after(self.next.saturating_duration_since(Instant::now())))
    }

    /// Whether a sign of life is due, and there is life: `busy` is how long each thread has been at one thing.
    pub(super) fn is_due(&mut self, now: Instant, busy: impl Iterator<Item = Duration>) -> bool {
        let Some(every) = self.every.filter(|_| now >= self.next) else { return false };
        self.next = now + every;
        busy.max().is_none_or(|longest| longest <= MAX_TURN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_given_thrice_in_time_and_never_for_a_thread_that_is_stuck() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(Some(Duration::from_secs(30)), start);
        let idle = || [Duration::ZERO, MAX_TURN].into_iter();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(watchdog.is_due(at(0), idle()));
        assert!(!watchdog.is_due(at(9), idle()));
        assert!(watchdog.is_due(at(10), idle()));
        let stuck = || [Duration::ZERO, MAX_TURN + Duration::from_millis(1)].into_iter();
        assert!((2..20).all(|turn| !watchdog.is_due(at(turn * 10), stuck())));
        assert!(watchdog.is_due(at(200), idle()), "it got on");
        assert!(watchdog.is_due(at(300), std::iter::empty()));
        let mut none = Watchdog::new(None, start);
        assert!(none.next().is_none() && !none.is_due(at(100), idle()));
    }
}
