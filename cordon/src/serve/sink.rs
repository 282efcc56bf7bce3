//! Where the events of `cordon serve` go: lines on standard output, written by a thread of their own.
//! Whoever serves never waits for whoever reads, and what a client causes too often is counted.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use console::{LeftOut, OutputError, Spool};
use cordon_cli::event::{Event, Source};

use crate::Failure;

/// Takes events. Clones put them in the same queue.
#[derive(Clone)]
pub(super) struct Sink {
    spool: Arc<Spool<Source>>,
    json: bool,
}

impl Sink {
    /// Starts the thread that writes.
    pub(super) fn start(json: bool) -> Result<Self, Failure> {
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        let notice = move |left: LeftOut<Source>| line(&left_out(left), json);
        Ok(Self { spool: Arc::new(Spool::start("events", output, notice)?), json })
    }

    /// Something happened.
    pub(super) fn tell(&self, event: &Event) {
        if event.source().is_none_or(|source| self.spool.admits(source)) {
            self.spool.line(line(event, self.json));
        }
    }

    /// Waits for everything to be written, for at most `time`.
    pub(super) fn flush(&self, time: Duration) -> Result<(), OutputError> {
        self.spool.flush(time)
    }
}

fn left_out(LeftOut { source, lines: count }: LeftOut<Source>) -> Event {
    match source {
        None => Event::Unread { count },
        Some((device, part, of)) => Event::LeftOut { device, part, of: of.to_owned(), count },
    }
}

fn line(event: &Event, json: bool) -> String {
    match serde_json::to_string(event) {
        Ok(text) if json => text,
        _ => event.to_string(),
    }
}
