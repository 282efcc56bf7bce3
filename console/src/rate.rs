//! How much each source may say, and how much was left out. No I/O and no clock of its own.

pub(crate) use crate::limits::MAX_BURST as BURST;
use crate::limits::MAX_SOURCES;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Each of these makes up for one of them.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// What was left out is told this long after the first of it.
pub(crate) const TELL_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    refilled: Instant,
    left_out: u64,
    since: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, refilled: now, left_out: 0, since: now }
    }

    fn refill(&mut self, now: Instant) {
        let intervals =
            now.saturating_duration_since(self.refilled).as_nanos() / INTERVAL.as_nanos();
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(intervals).min(BURST);
        self.refilled =
            if self.tokens == BURST { now } else { self.refilled + INTERVAL * intervals };
    }

    fn admit(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.tokens > 0 {
            self.tokens -= 1;
            return true;
        }
        if self.left_out == 0 {
            self.since = now;
        }
        self.left_out += 1;
        false
    }
}

/// Who said how much.
#[derive(Debug)]
pub(crate) struct Limits<K> {
    buckets: HashMap<K, Bucket>,
    /// Of the sources that are too many.
    others: Option<Bucket>,
}

impl<K> Default for Limits<K> {
    fn default() -> Self {
        Self { buckets: HashMap::new(), others: None }
    }
}

impl<K: Eq + Hash + Clone> Limits<K> {
    /// Whether `source` may say something at `now`; counts it if it may not.
    pub(crate) fn admit(&mut self, source: K, now: Instant) -> bool {
        if self.buckets.len() >= MAX_SOURCES && !self.buckets.contains_key(&source) {
            self.forget(now);
            if self.buckets.len() >= MAX_SOURCES {
                return self.others.get_or_insert_with(|| Bucket::new(now)).admit(now);
            }
        }
        self.buckets.entry(source).or_insert_with(|| Bucket::new(now)).admit(now)
    }

    /// Forgets sources that have been silent for long.
    fn forget(&mut self, now: Instant) {
        self.buckets.retain(|_, bucket| {
            bucket.refill(now);
            bucket.left_out > 0 || bucket.tokens < BURST
        });
    }

    fn all(&mut self) -> impl Iterator<Item = (Option<K>, &mut Bucket)> {
        let known = self.buckets.iter_mut().map(|(source, bucket)| (Some(source.clone()), bucket));
        known.chain(self.others.iter_mut().map(|bucket| (None, bucket)))
    }

    /// One source of which something was left out that it is time to tell at `now`, or whose time
    /// does not matter, and how much; counted from zero again.
    pub(crate) fn take(&mut self, now: Option<Instant>) -> Option<(Option<K>, u64)> {
        let due = |bucket: &Bucket| {
            bucket.left_out > 0 && now.is_none_or(|now| now >= bucket.since + TELL_AFTER)
        };
        let (source, bucket) = self.all().find(|(_, bucket)| due(bucket))?;
        Some((source, std::mem::take(&mut bucket.left_out)))
    }

    /// When something is to be told next.
    pub(crate) fn next(&mut self) -> Option<Instant> {
        let waiting = self.all().filter(|(_, bucket)| bucket.left_out > 0);
        waiting.map(|(_, bucket)| bucket.since + TELL_AFTER).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_passes_at_the_rate_and_every_line_is_counted() {
        let (start, mut limits) = (Instant::now(), Limits::default());
        let (mut passed, mut told) = (0, 0);
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            passed += (0..100).filter(|_| limits.admit("hostile", now)).count() as u64;
            while let Some((source, count)) = limits.take(Some(now)) {
                assert_eq!(source, Some("hostile"));
                told += count;
            }
            // Another source is not held to account for it.
            assert!(millisecond % 1000 != 0 || limits.admit("other", now));
        }
        assert!((100..=u64::from(BURST) + 100).contains(&passed), "{passed}");
        told += limits.take(None).map_or(0, |(_, count)| count);
        assert_eq!(passed + told, 1_000_000);
        assert!(limits.take(None).is_none() && limits.next().is_none());
    }

    #[test]
    fn sources_without_end_take_no_memory_without_end() {
        let (now, mut limits) = (Instant::now(), Limits::default());
        let passed = (0..100_000).filter(|number| limits.admit(*number, now)).count();
        assert_eq!(passed, MAX_SOURCES + usize::try_from(BURST).unwrap());
        assert!(limits.buckets.len() <= MAX_SOURCES);
        assert_eq!(limits.take(None), Some((None, (100_000 - passed) as u64)));
        // Silent ones make room.
        assert!(limits.admit(200_000, now + Duration::from_secs(10)));
        assert_eq!(limits.buckets.len(), 1);
    }
}
