//! A point in time by which something must have happened.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

/// The end of a wait. Passed down unchanged, so that a wait made of several steps keeps its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `after` from now. Durations past what the clock can hold count as ten years.
    #[must_use]
    pub fn after(after: Duration) -> Self {
        const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);
        let now = Instant::now();
        Self(now.checked_add(after).unwrap_or_else(|| now + FAR))
    }

    /// `instant`.
    #[must_use]
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// Now: a wait with it only looks.
    #[must_use]
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// The point in time.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Time left; `None` when it has passed.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.remaining().is_none()
    }

    /// Time left as the kernel takes it; zero when passed.
    pub(crate) fn timespec(self) -> Timespec {
        let left = self.remaining().unwrap_or_default();
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        }
    }
}
