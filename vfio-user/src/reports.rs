//! How much of what a client does wrong is reported: at once what a person would read, then one a
//! second with the count of those that were left out. No I/O and no clock of its own.

use std::time::{Duration, Instant};

/// Each of these makes up for one report.
const INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Reports {
    most: u32,
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Reports {
    /// At most `most` at once.
    pub(super) fn new(most: u32, now: Instant) -> Self {
        Self { most, left: most, since: now, left_out: 0 }
    }

    /// What to report of `why`, if anything.
    pub(super) fn admit(&mut self, why: String, now: Instant) -> Option<String> {
        let passed = now.saturating_duration_since(self.since).as_secs() / INTERVAL.as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(self.most.max(1));
            self.since = now;
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(match std::mem::take(&mut self.left_out) {
            0 => why,
            left_out => format!("{why} (and {left_out} more before it that are not reported)"),
        })
    }

    /// What to report in the end, if something was left out.
    pub(super) fn end(&mut self) -> Option<String> {
        match std::mem::take(&mut self.left_out) {
            0 => None,
            left_out => Some(format!("{left_out} more that are not reported")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_reported_and_then_one_a_second_with_a_count() {
        let start = Instant::now();
        let mut reports = Reports::new(3, start);
        let mut at = |milliseconds| {
            reports.admit("no".to_owned(), start + Duration::from_millis(milliseconds))
        };
        let said: Vec<_> = (0..1000).filter_map(&mut at).collect();
        assert_eq!(said, ["no"; 3]);
        assert_eq!(at(1000).unwrap(), "no (and 997 more before it that are not reported)");
        assert_eq!(at(1500), None);
        // After a silence there is room for a burst again, and for no more than that.
        assert_eq!((60_000..60_010).filter_map(&mut at).count(), 3);
        assert_eq!(reports.end().unwrap(), "7 more that are not reported");
        assert_eq!(reports.end(), None);
    }
}
