//! What is counted for people who watch a fleet: deaths by their cause and how long recoveries took, by keepers'
//! threads, off the way of any request; and accesses, by whoever makes them, so cheaply that it does not show.

use std::time::Duration;

use crate::child::{Cause, Death, ExitStatus};

/// Upper bounds of the buckets of a [`Histogram`]: from what a standby takes to the most that is tried.
pub const BOUNDS: [Duration; 12] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
];

/// Upper bounds of the buckets of a [`Histogram`] of accesses that waited for nothing: from a hot one to the
/// longest that a caller waits.
pub const ACCESS_BOUNDS: [Duration; BOUNDS.len()] = [
    Duration::from_nanos(500),
    Duration::from_micros(1),
    Duration::from_nanos(2500),
    Duration::from_micros(10),
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// One access in so many is timed.
pub const ACCESS_SAMPLE: u64 = 64;

/// The accesses of a function that a process was asked for: those that a VMM trapped, and config writes that
/// the permission table let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// All of them, whatever became of them.
    pub count: u64,
    /// How long one in [`ACCESS_SAMPLE`] of them took, by [`ACCESS_BOUNDS`]: those of each thread, the first
    /// one among them.
    pub sampled: Histogram,
    /// How long each of those took that waited for a process to be replaced, by [`BOUNDS`]: to within some tenths of
    /// a millisecond.
    pub held: Histogram,
}

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Those up to each of its bounds ([`BOUNDS`], unless it is said otherwise) and above the bound before it;
    /// last, those above all.
    pub counts: [u64; BOUNDS.len() + 1],
    /// What all took together.
    pub sum: Duration,
}

impl Histogram {
    /// Another one.
    pub(crate) fn add(&mut self, took: Duration) {
        self.counts[bucket(&BOUNDS, took)] += 1;
        self.sum = self.sum.saturating_add(took);
    }
}

/// Which of the buckets between `bounds` a time is in.
pub(crate) fn bucket(bounds: &[Duration; BOUNDS.len()], took: Duration) -> usize {
    bounds.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len())
}

/// Why processes died, for whoever counts: what an operator would treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathKind {
    /// By a signal from outside.
    Killed,
    /// By a system call that its sandbox forbids.
    Forbidden,
    /// By another signal that a process brings on itself.
    Crashed,
    /// It exited without being asked to.
    Exited,
    /// It did not answer in time.
    Silent,
    /// It broke the protocol.
    Broken,
    /// It did not start.
    NotStarted,
    /// It gave way to one of another program.
    Upgraded,
    /// Nobody knows.
    Unknown,
}

impl DeathKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Killed,
        Self::Forbidden,
        Self::Crashed,
        Self::Exited,
        Self::Silent,
        Self::Broken,
        Self::NotStarted,
        Self::Upgraded,
        Self::Unknown,
    ];

    /// Its name, one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Forbidden => "forbidden",
            Self::Crashed => "crashed",
            Self::Exited => "exited",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::NotStarted => "not_started",
            Self::Upgraded => "upgraded",
            Self::Unknown => "unknown",
        }
    }

    /// Of a death.
    #[must_use]
    pub fn of(death: &Death) -> Self {
        match (&death.cause, death.exit) {
            (Cause::Overdue(_), _) => Self::Silent,
            (Cause::Broken(_), _) => Self::Broken,
            (Cause::StartFailed(_), _) => Self::NotStarted,
            (Cause::Upgraded, _) => Self::Upgraded,
            (_, ExitStatus::Signal(libc::SIGSYS)) => Self::Forbidden,
            (_, ExitStatus::Signal(_)) if death.is_from_outside() => Self::Killed,
            (_, ExitStatus::Signal(_)) => Self::Crashed,
            (_, ExitStatus::Code(_)) => Self::Exited,
            (_, ExitStatus::Unknown) => Self::Unknown,
        }
    }
}

/// How many died of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deaths([u64; DeathKind::ALL.len()]);

impl Deaths {
    /// Another one.
    pub(crate) fn add(&mut self, death: &Death) {
        let kind = DeathKind::of(death);
        for (count, (one, _)) in self.0.iter_mut().zip(DeathKind::ALL.iter().zip(0..)) {
            *count += u64::from(*one == kind);
        }
    }

    /// Each kind and how many.
    pub fn iter(&self) -> impl Iterator<Item = (DeathKind, u64)> {
        DeathKind::ALL.into_iter().zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_below_it() {
        let mut all = Histogram::default();
        for took in BOUNDS {
            all.add(took);
        }
        all.add(Duration::from_secs(60));
        assert_eq!(all.counts, [1; BOUNDS.len() + 1]);
        all.add(Duration::ZERO);
        assert_eq!(all.counts[0], 2);
        assert_eq!(all.sum, BOUNDS.iter().sum::<Duration>() + Duration::from_secs(60));
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn deaths_are_counted_by_what_an_operator_would_do() {
        let death = |cause, exit| Death { exit, ..Death::of_function("01:00.0", cause) };
        let cases = [
            (Cause::Ended, ExitStatus::Signal(libc::SIGKILL), DeathKind::Killed),
            (Cause::Ended, ExitStatus::Signal(libc::SIGSYS), DeathKind::Forbidden),
            (Cause::Ended, ExitStatus::Signal(libc::SIGSEGV), DeathKind::Crashed),
            (Cause::Ended, ExitStatus::Code(1), DeathKind::Exited),
            (Cause::Overdue("answer"), ExitStatus::Signal(libc::SIGKILL), DeathKind::Silent),
            (Cause::Broken("x".into()), ExitStatus::Signal(libc::SIGKILL), DeathKind::Broken),
            (Cause::StartFailed("x".into()), ExitStatus::Code(1), DeathKind::NotStarted),
            (Cause::Upgraded, ExitStatus::Signal(libc::SIGKILL), DeathKind::Upgraded),
            (Cause::Ended, ExitStatus::Unknown, DeathKind::Unknown),
        ];
        let mut deaths = Deaths::default();
        for (cause, exit, kind) in cases {
            let death = death(cause, exit);
            assert_eq!(DeathKind::of(&death), kind, "{death}");
            deaths.add(&death);
        }
        assert!(deaths.iter().all(|(_, count)| count == 1));
        let mut names: Vec<&str> = deaths.iter().map(|(kind, _)| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DeathKind::ALL.len());
    }
}
