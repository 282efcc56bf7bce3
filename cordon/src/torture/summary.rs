//! What came of a run, in words and as an object.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cordon_vmm::faults::Faults;
use serde_json::json;

use super::TortureOptions;
use super::load::Tally;
use super::plot::{Curve, Picture};
use crate::Failure;
use crate::rig::reporter::Reporter;

/// Deaths on purpose and what became of them.
pub(super) struct Deaths {
    /// Of function processes.
    pub(super) functions: u64,
    /// Of the connection process, and of the dext.
    pub(super) connection: u64,
    pub(super) dext: u64,
    /// Replacements of function processes, and how long the last of them took.
    pub(super) replaced: u64,
    pub(super) recoveries: Vec<Duration>,
    /// Returns of both functions, and how long the device was away.
    pub(super) returns: u64,
    pub(super) removals: Vec<Duration>,
}

impl Deaths {
    fn removed(&self) -> u64 {
        self.connection + self.dext
    }

    fn all(&self) -> u64 {
        self.functions + self.removed()
    }

    /// Whether every death was answered: by a replacement where it was a function process's, by a return of both
    /// functions where it was another's. A dext that died takes function processes along, which may be replaced by
    /// ones that find it gone too.
    fn are_answered(&self, planned: u64) -> bool {
        let removed = self.removed();
        let replaced = self.functions..=self.functions + planned + 2 * removed;
        replaced.contains(&self.replaced) && self.returns >= 2 * removed
    }
}

/// The guest noticed something.
#[derive(Debug, thiserror::Error)]
#[error("The deaths were not invisible")]
pub(super) struct Visible;

/// Says which faults of the plan fired; how many did.
pub(super) fn planned(faults: &Faults, reporter: &Reporter) -> Result<u64, Failure> {
    let mut planned = 0;
    for report in faults.report().into_iter().filter(|report| report.fault.request.is_some()) {
        match report.fired {
            Some(pid) => reporter.say(&format!("fired at process {pid}: {}", report.fault))?,
            None => reporter.say(&format!("never fired: {}", report.fault))?,
        }
        planned += u64::from(report.fired.is_some() && report.fault.what.is_deadly());
        reporter.data("fault", json!({ "fault": report }))?;
    }
    Ok(planned)
}

/// The value below which so many of ten thousand times are; in microseconds.
fn quantile(times: &mut [Duration], of_ten_thousand: usize) -> u128 {
    times.sort_unstable();
    let at = times.len() * of_ten_thousand / 10_000;
    times.get(at.min(times.len().saturating_sub(1))).map_or(0, Duration::as_micros)
}

/// What there is to sum up beside the deaths.
pub(super) struct Summary<'r> {
    pub(super) options: &'r TortureOptions,
    pub(super) reporter: &'r Reporter,
    pub(super) tally: &'r Tally,
    /// Faults of a plan that killed a process.
    pub(super) planned: u64,
    /// Things that are left, or more than they were.
    pub(super) leaked: usize,
}

impl Summary<'_> {
    /// Tells what was done, also of a run that was interrupted; an error unless all of it was
    /// invisible.
    pub(super) fn tell(
        &self,
        mut deaths: Deaths,
        spawns: &mut [Duration],
        picture: Option<Picture>,
    ) -> Result<(), Failure> {
        let Self { options, reporter, tally, planned, leaked } = *self;
        let (struck, replaced) = (deaths.all(), deaths.replaced);
        let mut recoveries = std::mem::take(&mut deaths.recoveries);
        let mut removals = std::mem::take(&mut deaths.removals);
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let [p50, p99, p99_99, max] =
            [5000, 9900, 9999, 10_000].map(|share| quantile(&mut recoveries, share));
        let slow = recoveries.iter().filter(|time| **time > super::SLOW).count();
        let spawn = quantile(spawns, 5000);
        let interrupted = reporter.check();
        match interrupted {
            Ok(()) => reporter.heading("Done")?,
            Err(why) => reporter.heading(&format!("{why} after {struck} of {}", options.kills))?,
        }
        reporter.say(&format!("{struck} kills, {replaced} recoveries"))?;
        let interruptions = load(&tally.interruptions);
        let [away, away_max] = [5000, 10_000].map(|share| quantile(&mut removals, share));
        if deaths.removed() > 0 {
            let Deaths { connection, dext, returns, .. } = deaths;
            reporter.say(&format!(
                "{connection} deaths of the connection process and {dext} of the dext, {returns} returns of a \
                 function: away {away} us median, {away_max} us at most; drivers began anew {interruptions} times"
            ))?;
        }
        reporter.say(&format!(
            "{} MiB moved and compared, {} interrupts taken",
            load(&tally.bytes) >> 20,
            load(&tally.interrupts)
        ))?;
        reporter.say(&format!(
            "{} bytes corrupt, {} I/O errors, {} interrupts lost, {leaked} things leaked",
            load(&tally.corrupt_bytes),
            load(&tally.io_errors),
            load(&tally.lost_interrupts)
        ))?;
        reporter.say(&format!(
            "recovery: {p50} us median, {p99} us p99, {p99_99} us p99.99, {max} us at most; \
             {slow} longer than {} ms",
            super::SLOW.as_millis()
        ))?;
        reporter.say(&format!("a bare spawn to ready under the same load: {spawn} us median"))?;
        reporter.data(
            "summary",
            json!({
                "kills": struck,
                "kills_asked_for": options.kills,
                "interrupted": interrupted.err().map(|why| why.0.to_string()),
                "victims": {
                    "function": deaths.functions, "connection": deaths.connection, "dext": deaths.dext,
                },
                "recoveries": replaced,
                "returns": deaths.returns,
                "interruptions": interruptions,
                "away_us": { "p50": away, "max": away_max },
                "corrupt_bytes": load(&tally.corrupt_bytes),
                "io_errors": load(&tally.io_errors),
                "lost_interrupts": load(&tally.lost_interrupts),
                "leaked": leaked,
                "recovery_us": {
                    "p50": p50, "p99": p99, "p99.99": p99_99, "max": max, "longer_than_30_ms": slow,
                },
                "spawn_us": { "p50": spawn },
            }),
        )?;
        if let Some(picture) = picture {
            let standby = if options.standby { "with" } else { "without" };
            let title = format!("{struck} deaths under load, {standby} a standby");
            // They are sorted by now.
            let replaced = Curve { name: "a function process replaced", sorted: &recoveries };
            let away = Curve { name: "a device away and back", sorted: &removals };
            let median = spawns.get(spawns.len() / 2).copied().unwrap_or_default();
            picture.draw(&title, &[replaced, away], median)?;
        }
        // A planned fault may strike the process that a kill is about to strike.
        if tally.trouble() > 0 || leaked > 0 || !deaths.are_answered(planned) {
            return Err(Visible.into());
        }
        interrupted?;
        if struck < options.kills {
            return Err(format!("Ended after {struck} of {} kills", options.kills).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_ten_thousand() {
        let mut times: Vec<Duration> = (0..10_000).rev().map(Duration::from_micros).collect();
        let found = [0, 5000, 9900, 9999, 10_000].map(|share| quantile(&mut times, share));
        assert_eq!(found, [0, 5000, 9900, 9999, 9999]);
        assert_eq!(quantile(&mut [Duration::from_micros(7)], 9999), 7);
        assert_eq!(quantile(&mut [], 5000), 0);
    }
}
