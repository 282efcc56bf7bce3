//! The rows: what is measured, beside what, and what must be reached.

mod access;
mod companion;
mod config;
mod guest;
mod idle;
mod interrupts;
mod recovery;
mod scale;
mod socket;
mod start;
mod window;

use std::error::Error;

use serde::Serialize;

use crate::measure::{Meter, Pair, Samples};

/// Why a row was not measured.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// What must be reached, in the unit of the row: all that is there.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bar {
    /// The median.
    pub(crate) median: Option<u64>,
    /// The 99th percentile.
    pub(crate) p99: Option<u64>,
    /// The median over the baseline's.
    pub(crate) ratio: Option<f64>,
    /// The median less the baseline's.
    pub(crate) more: Option<u64>,
}

impl Bar {
    /// No more than `ratio` times the baseline.
    pub(crate) fn ratio(ratio: f64) -> Self {
        Self { ratio: Some(ratio), ..Self::default() }
    }

    fn text(&self, unit: &str) -> String {
        let Self { median, p99, ratio, more } = self;
        let mut bars = Vec::new();
        bars.extend(median.map(|most| format!("median <= {most} {unit}")));
        bars.extend(p99.map(|most| format!("p99 <= {most} {unit}")));
        bars.extend(ratio.map(|most| format!("<= {most} x")));
        bars.extend(more.map(|most| format!("<= baseline + {most} {unit}")));
        bars.join(", ")
    }
}

/// One measurement and what it is compared with.
pub(crate) struct Row {
    name: String,
    /// What its figures are in.
    unit: &'static str,
    baseline_name: String,
    bar: Bar,
    /// Subject and baseline, or why there are none.
    figures: Result<Pair, String>,
}

/// A row as it is printed. The figures of a row with another unit than ns are in that unit all the same.
#[derive(Serialize)]
pub(crate) struct Line {
    /// "row": what the object is, as in all that the programs print.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) median_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) baseline: String,
    pub(crate) baseline_ns: Option<u64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) bar: String,
    pub(crate) ok: bool,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_measured: Option<String>,
}

impl Row {
    /// Times, in nanoseconds.
    pub(crate) fn new(
        name: impl Into<String>,
        pair: Pair,
        baseline_name: impl Into<String>,
        bar: Bar,
    ) -> Self {
        let (name, baseline_name) = (name.into(), baseline_name.into());
        Self { name, unit: "ns", baseline_name, bar, figures: Ok(pair) }
    }

    /// Figures of another unit.
    pub(crate) fn in_unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    /// A row that could not be measured, which is as red as one that misses its bar.
    pub(crate) fn missing(
        name: impl Into<String>,
        baseline_name: impl Into<String>,
        bar: Bar,
        why: String,
    ) -> Self {
        let (name, baseline_name) = (name.into(), baseline_name.into());
        Self { name, unit: "ns", baseline_name, bar, figures: Err(why) }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Subject and baseline, of a row that can be drawn over nanoseconds.
    pub(crate) fn times(&self) -> Option<&Pair> {
        self.figures.as_ref().ok().filter(|_| self.unit == "ns")
    }

    /// What it says.
    pub(crate) fn line(&self) -> Line {
        let mut line = Line {
            kind: "row",
            name: self.name.clone(),
            unit: self.unit,
            median_ns: None,
            p99_ns: None,
            baseline: self.baseline_name.clone(),
            baseline_ns: None,
            ratio: None,
            bar: self.bar.text(self.unit),
            ok: false,
            not_measured: None,
        };
        match &self.figures {
            Ok((subject, baseline)) => line.fill(subject, baseline, self.bar),
            Err(why) => line.not_measured = Some(why.clone()),
        }
        line
    }
}

impl Line {
    fn fill(&mut self, subject: &Samples, baseline: &Samples, bar: Bar) {
        let (median, p99, baseline) = (subject.median(), subject.quantile(0.99), baseline.median());
        #[expect(clippy::cast_precision_loss, reason = "far from 2^53")]
        let ratio = median as f64 / baseline.max(1) as f64;
        self.ok = bar.median.is_none_or(|most| median <= most)
            && bar.p99.is_none_or(|most| p99 <= most)
            && bar.ratio.is_none_or(|most| ratio <= most)
            && bar.more.is_none_or(|most| median <= baseline + most);
        (self.median_ns, self.p99_ns) = (Some(median), Some(p99));
        (self.baseline_ns, self.ratio) = (Some(baseline), Some((ratio * 1000.0).round() / 1000.0));
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, unit, baseline, bar, .. } = self;
        let mark = if self.ok { "ok " } else { "RED" };
        write!(f, "{mark} {name:34} ")?;
        let figures = (self.median_ns, self.p99_ns, self.baseline_ns, self.ratio);
        match (figures, &self.not_measured) {
            ((Some(median), Some(p99), Some(beside), Some(ratio)), _) => write!(
                f,
                "median {median:>10} {unit}  p99 {p99:>10} {unit}  {ratio:>8.3} x of {beside:>10} {unit}, {baseline}"
            )?,
            (_, why) => write!(f, "not measured: {}", why.as_deref().unwrap_or("?"))?,
        }
        write!(f, " (bar: {bar})")
    }
}

/// Takes each row as soon as it is there.
pub(crate) type Report<'r> = &'r mut dyn FnMut(Row) -> Result<(), Failure>;

/// What measures some rows.
type Measure = fn(&Meter, Report<'_>) -> Result<(), Failure>;

/// Everything that there is, by the theme that the command line picks.
pub(crate) const THEMES: &[(&str, Measure)] = &[
    ("access", access::measure),
    ("config", config::measure),
    ("window", window::measure),
    ("socket", socket::measure),
    ("interrupts", interrupts::measure),
    ("companion", companion::measure),
    ("start", start::measure),
    ("scale", scale::measure),
    ("idle", idle::measure),
    ("recovery", recovery::measure),
    ("guest", guest::measure),
];
