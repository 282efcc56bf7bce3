//! The rows: what is measured, beside what, and what must be reached.

mod access;
mod recovery;
mod socket;
mod window;

use std::error::Error;

use serde::Serialize;

use crate::measure::{Meter, Samples};

/// Why a row was not measured.
pub(crate) type Failure = Box<dyn Error>;

/// What must be reached: all that is there.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bar {
    /// The median, in nanoseconds.
    pub(crate) median: Option<u64>,
    /// The 99th percentile, in nanoseconds.
    pub(crate) p99: Option<u64>,
    /// The median over the baseline's.
    pub(crate) ratio: Option<f64>,
    /// The median less the baseline's, in nanoseconds.
    pub(crate) more: Option<u64>,
}

/// One measurement and what it is compared with.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) subject: Samples,
    pub(crate) baseline_name: &'static str,
    pub(crate) baseline: Samples,
    pub(crate) bar: Bar,
}

/// A row as it is printed.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) median_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) baseline: &'static str,
    pub(crate) baseline_ns: u64,
    pub(crate) ratio: f64,
    pub(crate) bar: String,
    pub(crate) ok: bool,
}

impl Row {
    /// What it says.
    pub(crate) fn line(&self) -> Line {
        let (median_ns, p99_ns) = (self.subject.median(), self.subject.quantile(0.99));
        let baseline_ns = self.baseline.median();
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds, and far from 2^53")]
        let ratio = median_ns as f64 / baseline_ns.max(1) as f64;
        let Bar { median, p99, ratio: most, more } = self.bar;
        let mut bars = Vec::new();
        bars.extend(median.map(|most| format!("median <= {most} ns")));
        bars.extend(p99.map(|most| format!("p99 <= {most} ns")));
        bars.extend(most.map(|most| format!("<= {most} x")));
        bars.extend(more.map(|most| format!("<= baseline + {most} ns")));
        let ok = median.is_none_or(|most| median_ns <= most)
            && p99.is_none_or(|most| p99_ns <= most)
            && most.is_none_or(|most| ratio <= most)
            && more.is_none_or(|most| median_ns <= baseline_ns + most);
        Line {
            name: self.name.clone(),
            median_ns,
            p99_ns,
            baseline: self.baseline_name,
            baseline_ns,
            ratio: (ratio * 1000.0).round() / 1000.0,
            bar: bars.join(", "),
            ok,
        }
    }
}

/// What measures some rows, handing each on as soon as it is there.
type Measure = fn(&Meter, &mut dyn FnMut(Row) -> Result<(), Failure>) -> Result<(), Failure>;

/// Everything that there is, by the theme that the command line picks.
pub(crate) const THEMES: &[(&str, Measure)] = &[
    ("access", access::measure),
    ("window", window::measure),
    ("socket", socket::measure),
    ("recovery", recovery::measure),
];

/// What costs something too and has no row yet.
pub(crate) const NOT_MEASURED: &str = "not measured: interrupts from the dext to the VMM, a companion's batch, \
    spawns and memory by themselves, 64 functions, idle processes, a guest's NVMe";
