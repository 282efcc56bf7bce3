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

    /// Time left as the kernel takes it, zero when passed: at most so much that it can be told in milliseconds in
    /// 32 bits, which is how macOS's `poll` counts. Whoever waits looks again at the deadline afterwards.
    pub(crate) fn timespec(self) -> Timespec {
        const LONGEST: Duration = Duration::from_secs(86_400);
        let left = self.remaining().unwrap_or_default().min(LONGEST);
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;
    use crate::poll::wait_readable;

    #[test]
    fn a_deadline_that_never_comes_is_one_that_every_kernel_takes() {
        let never = Deadline::after(Duration::MAX);
        let milliseconds = never.timespec().tv_sec.checked_mul(1000);
        assert!(milliseconds.is_some_and(|count| i32::try_from(count).is_ok()));
        let event = Event::new().unwrap();
        event.signaller().unwrap().signal();
        assert!(wait_readable(&event, never).unwrap());
        assert_eq!(Deadline::now().timespec().tv_sec, 0);
    }
}
