//! Counts and times the accesses of a function on the way of each, which takes 0.3 us when it is hot: so nothing
//! here may cost a tenth of that.
//!
//! Each thread counts in a *shard*, a cache line that no other thread writes unless there are many; that is one
//! instruction, some nanoseconds. The clock is read for one access in [`ACCESS_SAMPLE`] of a shard. An access that
//! waits for another process is timed in any case: by when it began to wait, since whoever waits has time.

use std::array;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::tally::{ACCESS_BOUNDS, ACCESS_SAMPLE, Accesses, BOUNDS, Histogram, bucket};

/// More than vCPUs that trap at one function at once, for most guests. A power of two.
const SHARDS: usize = 16;

/// Alone on its cache line, and on the one that is fetched beside it.
#[derive(Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

/// See the module.
pub(super) struct AccessMeter {
    shards: [Shard; SHARDS],
    sampled: [AtomicU64; BOUNDS.len() + 1],
    sampled_nanoseconds: AtomicU64,
    held: Mutex<Histogram>,
}

/// The shard of the calling thread: threads take turns when they make their first access.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let own = SHARD.get();
    if own != usize::MAX {
        return own;
    }
    let taken = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    SHARD.set(taken);
    taken
}

/// One access.
pub(super) struct Timing {
    /// When it began, of one that is timed.
    begun: Option<Instant>,
    /// When it began to wait, of one that does.
    pub(super) waits: Cell<Option<Instant>>,
    held: Cell<bool>,
}

impl Timing {
    /// It is held up until another process serves.
    pub(super) fn hold(&self) {
        self.held.set(true);
        if self.waits.get().is_none() {
            self.waits.set(Some(Instant::now()));
        }
    }
}

impl AccessMeter {
    pub(super) fn new() -> Self {
        Self {
            shards: array::from_fn(|_| Shard::default()),
            sampled: array::from_fn(|_| AtomicU64::new(0)),
            sampled_nanoseconds: AtomicU64::new(0),
            held: Mutex::default(),
        }
    }

    /// An access begins on this thread.
    pub(super) fn begin(&self) -> Timing {
        let shard = &self.shards[shard() % SHARDS].0;
        let before = shard.fetch_add(1, Ordering::Relaxed);
        let begun = before.is_multiple_of(ACCESS_SAMPLE).then(Instant::now);
        Timing { begun, waits: Cell::new(None), held: Cell::new(false) }
    }

    /// It is over.
    pub(super) fn end(&self, timing: &Timing) {
        if let Some(begun) = timing.begun {
            self.add_sampled(begun.elapsed());
        }
        if timing.held.get()
            && let Some(since) = timing.begun.or(timing.waits.get())
        {
            self.held.lock().add(since.elapsed());
        }
    }

    fn add_sampled(&self, took: Duration) {
        self.sampled[bucket(&ACCESS_BOUNDS, took)].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sampled_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// So far; each number for itself, while others are made.
    pub(super) fn accesses(&self) -> Accesses {
        let shards = self.shards.iter().map(|shard| shard.0.load(Ordering::Relaxed));
        let sampled = self.sampled.each_ref().map(|count| count.load(Ordering::Relaxed));
        let sum = Duration::from_nanos(self.sampled_nanoseconds.load(Ordering::Relaxed));
        Accesses {
            count: shards.sum(),
            sampled: Histogram { counts: sampled, sum },
            held: *self.held.lock(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_of_many_threads_are_all_counted_and_one_in_so_many_of_each_is_timed() {
        let meter = AccessMeter::new();
        let (threads, each) = (2 * SHARDS as u64, 10 * ACCESS_SAMPLE);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| (0..each).for_each(|_| meter.end(&meter.begin())));
            }
        });
        let seen = meter.accesses();
        assert_eq!(seen.count, threads * each);
        let sampled: u64 = seen.sampled.counts.iter().sum();
        // Each shard begins with one, and the last of its rounds need not be whole.
        let whole = threads * each / ACCESS_SAMPLE;
        assert!((whole..=whole + SHARDS as u64).contains(&sampled), "{sampled} of {whole}");
        assert_eq!(seen.held, Histogram::default());
    }

    #[test]
    fn what_is_held_up_is_timed_whether_or_not_its_turn_has_come() {
        let meter = AccessMeter::new();
        for _ in 0..3 {
            let timing = meter.begin();
            timing.hold();
            std::thread::sleep(Duration::from_millis(2));
            timing.hold();
            meter.end(&timing);
        }
        let seen = meter.accesses();
        assert_eq!(seen.held.counts.iter().sum::<u64>(), 3);
        assert!(seen.held.sum >= Duration::from_millis(6), "{:?}", seen.held.sum);
        assert_eq!(seen.sampled.counts.iter().sum::<u64>(), 1);
        assert!(seen.sampled.sum >= Duration::from_millis(2));
    }

    #[test]
    fn times_are_in_the_bucket_that_they_fit() {
        let meter = AccessMeter::new();
        for took in [0, 500, 501, 2_000_000_000] {
            meter.add_sampled(Duration::from_nanos(took));
        }
        let seen = meter.accesses().sampled;
        assert_eq!((seen.counts[0], seen.counts[1], seen.counts[BOUNDS.len()]), (2, 1, 1));
        assert_eq!(seen.sum, Duration::from_nanos(2_000_001_001));
        assert!(ACCESS_BOUNDS.is_sorted());
    }
}
