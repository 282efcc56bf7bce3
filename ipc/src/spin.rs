//! How long to look before sleeping.
//!
//! Looking costs a processor, sleeping and being woken costs some microseconds; which is cheaper depends
//! on how soon the other side answers, and that is learned: after a look that found something the next one
//! may go on for as long as any, after one that found nothing for half as long as that one. So a side that is
//! idle soon does not look at all; now and then it tries again, as long as it may.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How many processors this process may run on. Asks the system, so not in a confined process.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let count = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    *PROCESSORS.get_or_init(count)
}

/// How many threads may look at once: each needs another processor for whoever is looked for.
pub(crate) fn most_lookers() -> usize {
    processors() / 2
}

/// Whether this machine has processors for `parties` that hand work to each other and look for it: one
/// each, or whoever looks is in the way of whoever works. Not in a confined process.
#[must_use]
pub fn has_processors_for(parties: usize) -> bool {
    processors() >= parties
}

/// Between two looks at the clock.
const LOOKS: u32 = 16;
/// Looks that are left out before another is tried.
const LEFT_OUT: u32 = 32;
/// Below this, in nanoseconds, looking is pointless.
const LEAST: u32 = 500;

/// The budget of one side, which learns. Shared by the threads of that side.
#[derive(Debug)]
pub struct Spin {
    /// Nanoseconds; 0 on a machine where looking would keep the other side from running.
    most: u32,
    now: AtomicU32,
    left_out: AtomicU32,
}

impl Spin {
    /// A budget of at most `most`, 1 ms at the longest. Of zero with one processor: whoever looked would
    /// keep the other from running.
    #[must_use]
    pub fn new(most: Duration) -> Self {
        let most = u32::try_from(most.as_nanos().min(1_000_000)).unwrap_or(0);
        Self { most, now: AtomicU32::new(most), left_out: AtomicU32::new(0) }
    }

    /// Looks until `found` says so; whether it did before the budget was used up.
    pub fn look(&self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        let budget = self.budget();
        if budget == 0 {
            return false;
        }
        let mut began = None;
        loop {
            for _ in 0..LOOKS {
                if found() {
                    self.learn(true);
                    return true;
                }
                std::hint::spin_loop();
            }
            let began = *began.get_or_insert_with(Instant::now);
            if began.elapsed().as_nanos() >= budget.into() {
                self.learn(false);
                return false;
            }
        }
    }

    /// Nanoseconds to look for now.
    fn budget(&self) -> u32 {
        let now = self.now.load(Ordering::Relaxed);
        if now >= LEAST || self.most == 0 {
            return now;
        }
        // Several threads may count at once; what that does to the count does not matter.
        let left_out = self.left_out.load(Ordering::Relaxed) + 1;
        let again = left_out >= LEFT_OUT;
        self.left_out.store(if again { 0 } else { left_out }, Ordering::Relaxed);
        if again { self.most } else { 0 }
    }

    fn learn(&self, found: bool) {
        let now = self.now.load(Ordering::Relaxed);
        let next = if found { self.most } else { now / 2 };
        if next != now {
            self.now.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_is_soon_looked_for_no_more_and_now_and_then_again() {
        let spin = Spin::new(Duration::from_micros(50));
        let looks = || {
            let mut count = 0_u32;
            assert!(!spin.look(|| {
                count += 1;
                false
            }));
            count
        };
        (0..8).for_each(|_| assert!(looks() > 0));
        let after: Vec<u32> = (0..2 * LEFT_OUT).map(|_| looks()).collect();
        assert_eq!(after.iter().filter(|looks| **looks > 1).count(), 2, "{after:?}");
    }

    #[test]
    fn what_comes_at_last_is_looked_for_as_long_as_anything_again() {
        let spin = Spin::new(Duration::from_millis(1));
        spin.now.store(0, Ordering::Relaxed);
        // Later than half of what is left after any failure, and sooner than the most.
        let found = (0..LEFT_OUT).filter(|_| {
            let began = Instant::now();
            spin.look(|| began.elapsed() > Duration::from_micros(100))
        });
        assert_eq!(found.count(), 1);
        assert_eq!(spin.now.load(Ordering::Relaxed), 1_000_000);
    }

    #[test]
    fn with_no_budget_it_looks_once() {
        let mut count = 0;
        assert!(!Spin::new(Duration::ZERO).look(|| {
            count += 1;
            false
        }));
        assert_eq!(count, 1);
    }
}
