//! What a slot does when its process dies. No I/O: see the diagram in [`super`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::supervisor::{Cause, Death};

/// Where a function is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Its process serves.
    Serving,
    /// Its process died and is being replaced; callers wait.
    Recovering,
    /// Given up, for this reason. Final.
    Dead(Arc<Death>),
}

/// What to do about a death.
#[derive(Clone, Debug)]
pub enum Next {
    /// Start another process.
    Replace,
    /// Reads are all ones from here on.
    GiveUp(Arc<Death>),
}

/// The deaths of the last while.
#[derive(Debug)]
pub struct Deaths {
    most: u32,
    window: Duration,
    recent: VecDeque<Instant>,
}

impl Deaths {
    /// Up to `most` deaths in `window` are replaced; 0 replaces none.
    #[must_use]
    pub fn new(most: u32, window: Duration) -> Self {
        Self { most, window, recent: VecDeque::new() }
    }

    /// A death at `now`: one more than [`Deaths::new`] allows is a crash loop, and the function is
    /// given up.
    pub fn on(&mut self, now: Instant, death: Arc<Death>) -> Next {
        self.recent.push_back(now);
        let window = self.window;
        self.recent.retain(|at| now.saturating_duration_since(*at) < window);
        let count = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if count <= self.most {
            return Next::Replace;
        }
        if self.most == 0 {
            return Next::GiveUp(death);
        }
        let cause = Cause::CrashLoop { deaths: count, window };
        Next::GiveUp(Arc::new(Death { cause, ..(*death).clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn death() -> Arc<Death> {
        Arc::new(Death::of_function("01:00.0"))
    }

    proptest! {
        #[test]
        fn a_crash_loop_is_given_up_and_nothing_else_is(
            most in 0u32..8, gaps in proptest::collection::vec(0u64..2000, 1..40)
        ) {
            let window = Duration::from_secs(1);
            let mut deaths = Deaths::new(most, window);
            let (start, mut at) = (Instant::now(), 0);
            let mut all = Vec::new();
            for gap in gaps {
                at += gap;
                all.push(at);
                let recent = all.iter().filter(|one| at - **one < 1000).count();
                let next = deaths.on(start + Duration::from_millis(at), death());
                let allowed = recent <= usize::try_from(most).unwrap();
                prop_assert_eq!(matches!(next, Next::Replace), allowed);
            }
        }
    }

    #[test]
    fn without_recovery_the_first_death_is_told_as_it_is() {
        let mut deaths = Deaths::new(0, Duration::from_secs(1));
        let Next::GiveUp(told) = deaths.on(Instant::now(), death()) else { panic!() };
        assert_eq!(told.cause, Cause::Ended);
    }
}
