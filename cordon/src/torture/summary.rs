//! What came of a run, in words and as an object.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cordon_vmm::faults::Faults;
use serde_json::json;

use super::TortureOptions;
use super::load::Tally;
use crate::Failure;
use crate::rig::reporter::Reporter;

/// Deaths on purpose and what became of them.
pub(super) struct Deaths {
    pub(super) struck: u64,
    pub(super) replaced: u64,
    pub(super) recoveries: Vec<Duration>,
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
        reporter.data(&json!({ "fault": report }))?;
    }
    Ok(planned)
}

/// The value below which `percent` of the times are; in microseconds.
fn percentile(times: &mut [Duration], percent: usize) -> u128 {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0, Duration::as_micros)
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
    pub(super) fn tell(&self, deaths: Deaths, spawns: &mut [Duration]) -> Result<(), Failure> {
        let Self { options, reporter, tally, planned, leaked } = *self;
        let Deaths { struck, replaced, mut recoveries } = deaths;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&mut recoveries, percent));
        let spawn = percentile(spawns, 50);
        let interrupted = reporter.check();
        match interrupted {
            Ok(()) => reporter.heading("Done")?,
            Err(why) => reporter.heading(&format!("{why} after {struck} of {}", options.kills))?,
        }
        reporter.say(&format!("{struck} kills, {replaced} recoveries"))?;
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
        reporter.say(&format!("recovery: {p50} us median, {p99} us p99, {max} us at most"))?;
        reporter.say(&format!("a bare spawn to ready under the same load: {spawn} us median"))?;
        reporter.data(&json!({
            "kills": struck,
            "kills_asked_for": options.kills,
            "interrupted": interrupted.err().map(|why| why.0.to_string()),
            "recoveries": replaced,
            "corrupt_bytes": load(&tally.corrupt_bytes),
            "io_errors": load(&tally.io_errors),
            "lost_interrupts": load(&tally.lost_interrupts),
            "leaked": leaked,
            "recovery_us": { "p50": p50, "p99": p99, "max": max },
            "spawn_us": { "p50": spawn },
        }))?;
        // A planned fault may strike the process that a kill is about to strike.
        let expected = struck..=struck + planned;
        if tally.trouble() > 0 || leaked > 0 || !expected.contains(&replaced) {
            return Err(Visible.into());
        }
        interrupted?;
        if struck < options.kills {
            return Err(format!("Ended after {struck} of {} kills", options.kills).into());
        }
        Ok(())
    }
}
