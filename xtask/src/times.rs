//! The headings of a run, and how long what is beneath each took.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use console::say;

use crate::Result;

/// What took less is not told.
const SHORT: Duration = Duration::from_secs(10);

/// The headings that were printed, with their times.
static HEADINGS: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

/// Prints a heading; what comes now is beneath it.
pub(crate) fn heading(what: &str) -> Result {
    say!("\n== {what}")?;
    if let Ok(mut headings) = HEADINGS.lock() {
        headings.push((what.to_owned(), Instant::now()));
    }
    Ok(())
}

/// How long each took so far, in seconds, and all of them together.
pub(crate) fn tell() -> Result {
    let headings = HEADINGS.lock().map(|headings| headings.clone()).unwrap_or_default();
    say!("{}", text(&headings, Instant::now()))?;
    Ok(())
}

fn text(headings: &[(String, Instant)], now: Instant) -> String {
    let ends = headings.iter().skip(1).map(|(_, began)| *began).chain([now]);
    let spans = headings.iter().zip(ends).map(|((what, began), end)| (what, end - *began));
    let parts: Vec<String> = spans
        .filter(|(_, took)| *took >= SHORT)
        .map(|(what, took)| format!("{what} {}", took.as_secs()))
        .collect();
    let all = headings.first().map_or(Duration::ZERO, |(_, began)| now - *began);
    format!("times in s: {} in all; {}", all.as_secs(), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_heading_has_the_time_to_the_next_one_and_short_ones_are_left_out() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let headings = [("a", 0), ("b", 30), ("c", 35)];
        let headings = headings.map(|(what, seconds)| (what.to_owned(), at(seconds)));
        assert_eq!(text(&headings, at(95)), "times in s: 95 in all; a 30, c 60");
        assert_eq!(text(&[], began), "times in s: 0 in all; ");
    }
}
