//! Where the events of `cordon serve` go: lines on standard output and, where that is asked for, records of
//! the event stream, each written by a thread of its own. Whoever serves never waits for whoever reads, and
//! what a client causes too often is counted.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use console::{LeftOut, LeftOutTotals, OutputError, Spool};
use cordon_cli::event::{Event, Record, Source};

use crate::Failure;

/// Takes events. Clones put them in the same queue.
#[derive(Clone)]
pub(crate) struct Sink {
    spool: Arc<Spool<Source>>,
    json: bool,
    stream: Option<Arc<Spool<Source>>>,
    /// What happened to device processes and nobody could tell.
    unobserved: Arc<AtomicU64>,
}

impl Sink {
    /// Starts the threads that write.
    pub(super) fn start(json: bool, stream: Option<OwnedFd>) -> Result<Self, Failure> {
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        let notice = move |left: LeftOut<Source>| line(&left_out(left), json);
        let spool = Arc::new(Spool::start("events", output, notice)?);
        let notice = |left: LeftOut<Source>| record(left.number, &left_out(left));
        let stream = stream.map(|target| Spool::start("event stream", target, notice));
        let stream = stream.transpose()?.map(Arc::new);
        Ok(Self { spool, json, stream, unobserved: Arc::default() })
    }

    /// Something happened.
    pub(super) fn tell(&self, event: &Event) {
        if let Event::Unobserved { count } = event {
            self.unobserved.fetch_add(*count, Ordering::Relaxed);
        }
        self.spool.offer(event.source(), |_| line(event, self.json));
        if let Some(stream) = &self.stream {
            stream.offer(event.source(), |number| record(number, event));
        }
    }

    /// What was left out so far, of standard output and of the stream if there is one.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = (&'static str, LeftOutTotals)> {
        let lines = ("lines", self.spool.left_out());
        let stream = self.stream.as_ref().map(|stream| ("stream", stream.left_out()));
        [lines].into_iter().chain(stream)
    }

    /// How much happened to device processes that nobody could tell.
    pub(crate) fn unobserved(&self) -> u64 {
        self.unobserved.load(Ordering::Relaxed)
    }

    /// Waits for everything to be written, for at most `time`.
    pub(super) fn flush(&self, time: Duration) -> Result<(), OutputError> {
        let written = self.spool.flush(time);
        let streamed = self.stream.as_ref().map_or(Ok(()), |stream| stream.flush(time));
        written.and(streamed)
    }
}

fn left_out(LeftOut { source, lines: count, .. }: LeftOut<Source>) -> Event {
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

fn record(number: u64, event: &Event) -> String {
    // What the types are is always text.
    serde_json::to_string(&Record::now(number, event.clone())).unwrap_or_default()
}
