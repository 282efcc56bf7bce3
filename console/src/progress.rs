//! Long work shows itself: a line that is drawn again on a terminal, a line now and then elsewhere, both on
//! standard error, where they are in the way of no output.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::complain;

/// How often a line comes where there is no terminal.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// How often it is drawn on one.
const TICK: Duration = Duration::from_millis(200);
const TEMPLATE: &str = "{spinner} {msg}: {elapsed}";

/// Work of which nobody knows how much there is, until it is dropped.
#[derive(Debug)]
pub struct Progress {
    what: String,
    /// On a terminal.
    bar: Option<ProgressBar>,
    began: Instant,
    /// Intervals of which a line was said.
    said: u64,
}

impl Progress {
    /// Shows from here on that it goes on. `began` is when it did.
    #[must_use]
    pub fn new(what: &str, began: Instant) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE);
        let bar = style.ok().filter(|_| std::io::stderr().is_terminal()).map(|style| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let bar = bar.with_style(style).with_elapsed(began.elapsed());
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { what: what.to_owned(), bar, began, said: 0 }
    }

    /// It still goes on: where there is no terminal, a line when one is due. Called at least once each
    /// [`INTERVAL`].
    pub fn tick(&mut self) {
        if let Some(line) = self.due(self.began.elapsed()) {
            complain(line);
        }
    }

    /// The line that is due after so long.
    fn due(&mut self, elapsed: Duration) -> Option<String> {
        let due = elapsed.as_secs() / INTERVAL.as_secs();
        if self.bar.is_some() || self.said >= due {
            return None;
        }
        self.said = due;
        Some(format!("{}: {} s so far", self.what, elapsed.as_secs()))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_a_line_comes_each_interval_and_on_one_none() {
        let began = Instant::now();
        let mut one = Progress { what: "lints".to_owned(), bar: None, began, said: 0 };
        let seconds = Duration::from_secs;
        assert_eq!(one.due(seconds(29)), None);
        assert_eq!(one.due(seconds(31)).as_deref(), Some("lints: 31 s so far"));
        assert_eq!(one.due(seconds(59)), None);
        assert_eq!(one.due(seconds(95)).as_deref(), Some("lints: 95 s so far"));
        one.bar = Some(ProgressBar::hidden());
        assert_eq!(one.due(seconds(200)), None);
    }

    #[test]
    fn what_is_drawn_is_understood() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let progress = Progress::new("a", Instant::now());
        assert_eq!(progress.bar.is_some(), std::io::stderr().is_terminal());
    }
}
