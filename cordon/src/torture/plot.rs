//! How long recoveries took, as a picture: for each share of them, the time within which they were over.

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::Failure;

const SIZE: (u32, u32) = (860, 420);
/// Each point of a curve is of so much less of what is left than the one before, in hundredths: some 450 points for
/// a million times.
const STEP: usize = 97;
/// Nines that are named at most: a thousand million times.
const NINES: u8 = 9;

/// Where a picture is drawn to. The file is made before the run: a place that cannot be written is no news to
/// come after hours.
pub(super) struct Picture {
    path: PathBuf,
    file: File,
}

/// Times of one kind.
pub(super) struct Curve<'t> {
    pub(super) name: &'static str,
    /// From the shortest to the longest.
    pub(super) sorted: &'t [Duration],
}

impl Picture {
    /// Makes the file, empty.
    pub(super) fn new(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Draws the curves that are not empty, with a line at what a bare spawn takes.
    pub(super) fn draw(
        mut self,
        title: &str,
        curves: &[Curve<'_>],
        spawn: Duration,
    ) -> Result<(), Failure> {
        let text = svg(title, curves, spawn);
        let text = text.map_err(|error| format!("cannot draw {}: {error}", self.path.display()))?;
        let written = self.file.write_all(text.as_bytes());
        Ok(written.map_err(|error| format!("cannot write {}: {error}", self.path.display()))?)
    }
}

fn svg(title: &str, curves: &[Curve<'_>], spawn: Duration) -> Result<String, Box<dyn Error>> {
    let points: Vec<(&str, Vec<(f64, f64)>)> =
        curves.iter().map(|one| (one.name, points(one.sorted))).collect();
    let times = || points.iter().flat_map(|(_, points)| points.iter().map(|(_, time)| *time));
    let shares = points.iter().flat_map(|(_, points)| points.iter().map(|(share, _)| *share));
    let (least, most) = (times().fold(milliseconds(spawn), f64::min), times().fold(1.0, f64::max));
    let range = (least.max(0.001) * 0.7, most.max(milliseconds(spawn)) * 1.4);
    let nines = shares.fold(1.0, f64::max).ceil();
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 15))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(Shares::up_to(nines), (range.0..range.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("share of all, the rest took longer")
            .y_desc("milliseconds")
            .x_label_formatter(&share)
            .y_label_formatter(&|time| format!("{time}"))
            .draw()?;
        let at = milliseconds(spawn);
        let grey = BLACK.mix(0.5);
        if !spawn.is_zero() {
            let line = PathElement::new(vec![(0.0, at), (nines, at)], grey);
            chart
                .draw_series([line])?
                .label("a bare spawn to ready, median")
                .legend(move |place| PathElement::new(key(place), grey));
        }
        for ((name, points), colour) in points.into_iter().zip([BLUE, RED]) {
            if points.is_empty() {
                continue;
            }
            let style = colour.stroke_width(2);
            chart
                .draw_series([PathElement::new(points, style)])?
                .label(name)
                .legend(move |place| PathElement::new(key(place), style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()?;
    }
    Ok(text)
}

/// The line before a name.
fn key((x, y): (i32, i32)) -> Vec<(i32, i32)> {
    vec![(x, y), (x + 18, y)]
}

/// What part of all times is over within which time: as the number of nines, so that the last few show. However many
/// times there are, there are some hundred points.
fn points(sorted: &[Duration]) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let mut left = sorted.len();
    while let Some(time) = sorted.len().checked_sub(left).and_then(|at| sorted.get(at)) {
        points.push(((real(sorted.len()) / real(left)).log10(), milliseconds(*time)));
        if left == 1 {
            break;
        }
        left = (left * STEP / 100).clamp(1, left - 1);
    }
    points
}

/// An axis of numbers of nines, at which round shares are named and no others.
struct Shares {
    nines: f64,
    axis: RangedCoordf64,
}

impl Shares {
    fn up_to(nines: f64) -> Self {
        Self { nines, axis: (0.0..nines).into() }
    }
}

impl Ranged for Shares {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.axis.map(value, limit)
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        // No line between those that are named.
        if hint.weight().allow_light_points() { Vec::new() } else { shown(self.nines) }
    }

    fn range(&self) -> Range<f64> {
        self.axis.range()
    }
}

/// Which shares are named below a curve, as numbers of nines: none, half of all, and each further nine.
fn shown(nines: f64) -> Vec<f64> {
    let whole = (1..=NINES).map(f64::from).take_while(|one| *one <= nines);
    [0.0, 2f64.log10()].into_iter().chain(whole).collect()
}

/// "99.9 %" of 3 nines.
fn share(nines: &f64) -> String {
    let percent = 100.0 * (1.0 - 10f64.powf(-nines));
    // As many digits as there are nines: two are before the point.
    let digits = (1..=NINES).find(|digits| f64::from(*digits) >= *nines).unwrap_or(NINES);
    format!("{percent:.*} %", usize::from(digits.saturating_sub(2)))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a picture")]
fn real(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_bounded_rises_and_ends_with_the_longest() {
        for count in [0usize, 1, 2, 3, 1_000_000] {
            let times: Vec<Duration> =
                (1..=count).map(|at| Duration::from_micros(at as u64)).collect();
            let points = points(&times);
            assert!(points.len() <= count.min(1000), "{count}: {}", points.len());
            assert!(points.is_sorted_by(|one, other| one.0 < other.0 && one.1 < other.1));
            if let (Some(first), Some(last)) = (points.first(), points.last()) {
                assert_eq!(*first, (0.0, milliseconds(times[0])));
                assert_eq!(last.1, milliseconds(times[count - 1]));
            }
        }
    }

    #[test]
    fn shares_are_named_as_people_name_them() {
        let names = |nines| shown(nines).iter().map(share).collect::<Vec<_>>();
        assert_eq!(names(1.0), ["0 %", "50 %", "90 %"]);
        assert_eq!(names(4.0), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!(names(9.0).last().unwrap(), "99.9999999 %");
    }

    #[test]
    fn each_curve_that_has_times_is_drawn_and_named() {
        let times: Vec<Duration> = (1..100).map(Duration::from_millis).collect();
        let curves = [
            Curve { name: "replacements", sorted: &times },
            Curve { name: "removals", sorted: &[] },
        ];
        let text = svg("a title", &curves, Duration::from_millis(5)).unwrap();
        for part in ["<svg", "a title", "replacements", "a bare spawn", "99 %", "</svg>"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Of round shares only.
        let shares = text.lines().filter_map(|line| line.strip_suffix(" %"));
        assert_eq!(shares.collect::<Vec<_>>(), ["0", "50", "90", "99"]);
        assert!(!text.contains("removals") && text.len() < 64 << 10, "{}", text.len());
        assert!(svg("nothing", &[], Duration::ZERO).unwrap().contains("</svg>"));
    }
}
