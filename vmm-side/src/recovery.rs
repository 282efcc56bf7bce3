//! Whether and how dead processes are replaced, and when that is given up. No I/O.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::child::{Cause, Death};
use crate::limits::MAX_DEATHS;

/// Whether and how a dead process is replaced.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// Deaths of one process within [`Recovery::window`] after which it is given up. 0: at the
    /// first, so nothing is ever replaced.
    pub max_deaths: u32,
    /// See [`Recovery::max_deaths`].
    pub window: Duration,
    /// How long a caller waits in all, and how long replacing one function process may take: 4.5 s
    /// by default, below the 5 s after which QEMU gives up on a request.
    pub timeout: Duration,
    /// How long a device may be away, its connection process or its dext dead, before it is given
    /// up: 30 s by default.
    pub away: Duration,
    /// Keep a second, confined function process waiting for each function, which takes over
    /// without a start of its own.
    pub standby: bool,
}

impl Recovery {
    /// A dead process is not replaced, and what it served stays dead.
    pub const OFF: Self = Self {
        max_deaths: 0,
        window: Duration::from_secs(1),
        timeout: Duration::from_secs(4),
        away: Duration::ZERO,
        standby: false,
    };

    /// With a standby for each function, or without.
    #[must_use]
    pub fn with_standby(mut self, standby: bool) -> Self {
        self.standby = standby;
        self
    }

    /// With another number of deaths that are replaced within [`Recovery::window`].
    #[must_use]
    pub fn with_max_deaths(mut self, max_deaths: u32) -> Self {
        self.max_deaths = max_deaths;
        self
    }

    /// With another time that a device may be away.
    #[must_use]
    pub fn with_away(mut self, away: Duration) -> Self {
        self.away = away;
        self
    }

    /// Whether dead processes are replaced at all.
    pub(crate) fn is_on(&self) -> bool {
        self.max_deaths > 0
    }
}

impl Default for Recovery {
    /// Up to 100 deaths in 10 s: many more than any accident, and few enough that a guest whose
    /// requests kill the process does not keep the host busy.
    fn default() -> Self {
        Self {
            max_deaths: MAX_DEATHS,
            window: Duration::from_secs(10),
            timeout: Duration::from_millis(4500),
            away: Duration::from_secs(30),
            standby: false,
        }
    }
}

/// Pauses between attempts, each twice as long as the one before it.
pub(crate) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    /// The first pause is `first`, and none is longer than `most`.
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { next: first, most }
    }

    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause
    }
}

/// The deaths of the last while.
#[derive(Clone, Debug)]
pub(crate) struct Deaths {
    most: u32,
    window: Duration,
    recent: VecDeque<Instant>,
}

impl Deaths {
    /// None yet.
    pub(crate) fn new(recovery: &Recovery) -> Self {
        let Recovery { max_deaths: most, window, .. } = *recovery;
        Self { most, window, recent: VecDeque::new() }
    }

    /// A death at `now`.
    ///
    /// # Errors
    /// What to tell of it when it is not to be replaced: one more than is allowed is a crash loop.
    pub(crate) fn on(&mut self, now: Instant, death: &Arc<Death>) -> Result<(), Arc<Death>> {
        self.recent.push_back(now);
        let window = self.window;
        self.recent.retain(|at| now.saturating_duration_since(*at) < window);
        let deaths = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if deaths <= self.most {
            return Ok(());
        }
        if self.most == 0 {
            return Err(Arc::clone(death));
        }
        let cause = Cause::CrashLoop { deaths, window };
        Err(Arc::new(Death { cause, ..(**death).clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn death() -> Arc<Death> {
        Arc::new(Death::of_function("01:00.0", Cause::Ended))
    }

    proptest! {
        #[test]
        fn a_crash_loop_is_given_up_and_nothing_else_is(
            most in 0u32..8, gaps in proptest::collection::vec(0u64..2000, 1..40)
        ) {
            let window = Duration::from_secs(1);
            let recovery = Recovery { max_deaths: most, window, ..Recovery::default() };
            let mut deaths = Deaths::new(&recovery);
            let (start, mut at) = (Instant::now(), 0);
            let mut all = Vec::new();
            for gap in gaps {
                at += gap;
                all.push(at);
                let recent = all.iter().filter(|one| at - **one < 1000).count();
                let next = deaths.on(start + Duration::from_millis(at), &death());
                let allowed = recent <= usize::try_from(most).unwrap();
                prop_assert_eq!(next.is_ok(), allowed);
            }
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(10));
        assert_eq!([(); 5].map(|()| backoff.pause().as_millis()), [2, 4, 8, 10, 10]);
    }

    #[test]
    fn without_recovery_the_first_death_is_told_as_it_is() {
        let mut deaths = Deaths::new(&Recovery::OFF);
        assert_eq!(deaths.on(Instant::now(), &death()).unwrap_err().cause, Cause::Ended);
    }
}
