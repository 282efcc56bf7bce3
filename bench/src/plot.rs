//! The distributions as a picture.

use std::path::Path;

use plotters::prelude::*;

use crate::measure::Pair;
use crate::rows::{Failure, Row};

const ROW: u32 = 44;

/// Draws each row over its baseline: a line from the 1st to the 99th percentile and a dot at the median, over
/// nanoseconds.
///
/// Rows of another unit, and those that were not measured, are left out.
pub(crate) fn draw(path: &Path, rows: &[Row]) -> Result<(), Failure> {
    let rows: Vec<(&str, &Pair)> =
        rows.iter().filter_map(|row| Some((row.name(), row.times()?))).collect();
    let count = u32::try_from(rows.len())?;
    let all = || rows.iter().flat_map(|(_, (subject, baseline))| [subject, baseline]);
    let least = all().map(|samples| samples.quantile(0.01)).min().unwrap_or(1).max(1);
    let most = all().map(|samples| samples.quantile(0.99)).max().unwrap_or(1).max(least + 1);
    let root = SVGBackend::new(path, (1000, 90 + ROW * count)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(230)
        .build_cartesian_2d(
            (real(least) * 0.7..real(most) * 1.4).log_scale(),
            0.0..f64::from(count),
        )?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc("nanoseconds").draw()?;
    for (at, (name, (subject, baseline))) in rows.iter().enumerate() {
        let top = f64::from(count) - f64::from(u32::try_from(at)?);
        let area = chart.plotting_area();
        // To the left of the axis.
        let (x, y) = area.map_coordinate(&(real(least) * 0.7, top - 0.3));
        root.draw(&Text::new((*name).to_owned(), (x - 225, y - 6), ("sans-serif", 14)))?;
        for (samples, colour, below) in [(subject, BLUE, 0.35), (baseline, RED, 0.65)] {
            let at = |part| real(samples.quantile(part));
            let line = vec![(at(0.01), top - below), (at(0.99), top - below)];
            chart.draw_series([PathElement::new(line, colour.stroke_width(2))])?;
            chart.draw_series([Circle::new((at(0.5), top - below), 4, colour.filled())])?;
        }
    }
    root.draw(&Text::new(
        "blue: Cordon, red: what it is compared with",
        (240, 4),
        ("sans-serif", 13),
    ))?;
    root.present()?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a picture")]
fn real(nanoseconds: u64) -> f64 {
    nanoseconds as f64
}
