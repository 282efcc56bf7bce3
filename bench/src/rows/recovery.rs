//! Recovery under the torture's load, as `cordon torture` measures it.

use std::process::Command;

use cordon_tests::program;
use serde_json::Value;

use super::{Bar, Failure, Report, Row};
use crate::measure::{Meter, Samples};

pub(super) fn measure(meter: &Meter, row: Report<'_>) -> Result<(), Failure> {
    // Some twenty in a second.
    let kills = (meter.time.as_millis() / 25).clamp(10, 2_000).to_string();
    let bare =
        Bar { median: Some(4_000_000), p99: Some(10_000_000), ratio: Some(1.0), ..Bar::default() };
    let standby = Bar { median: Some(400_000), p99: Some(2_000_000), ..Bar::default() };
    for (name, arguments, bar) in
        [("recovery", &[][..], bare), ("recovery-standby", &["--standby"][..], standby)]
    {
        let mut torture = Command::new(program("cordon"));
        torture.args(["torture", "--json", "--kills", &kills]).args(arguments);
        let output = torture.output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cordon torture: {}: {why}", output.status).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let sum: Value = serde_json::from_str(text.lines().last().ok_or("it says nothing")?)?;
        let microseconds = |what: &str, which: &str| {
            let number = sum[what][which].as_u64();
            number.ok_or_else(|| format!("cordon torture says nothing of {what}.{which}"))
        };
        // What it tells is enough for the two figures that are asked for.
        let (p50, p99) = (microseconds("recovery_us", "p50")?, microseconds("recovery_us", "p99")?);
        let mut subject = Samples::new();
        (0..98).for_each(|_| subject.add(p50 * 1000));
        (0..2).for_each(|_| subject.add(p99 * 1000));
        let baseline = Samples::of(microseconds("spawn_us", "p50")? * 1000);
        let beside = "a bare spawn under the same load";
        row(Row::new(name, (subject, baseline), beside, bar))?;
    }
    Ok(())
}
