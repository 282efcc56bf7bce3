//! What a process says of itself: one line an event on its standard error, "WARN what happened",
//! which its VMM side passes on.
//!
//! A subscriber of our own, since a confined process needs no more than this of one.

use std::fmt::{self, Write as _};
use std::os::fd::AsFd;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes events to a descriptor, whole lines at once.
pub struct Log<F> {
    most: LevelFilter,
    out: F,
}

impl<F: AsFd + Send + Sync + 'static> Log<F> {
    /// Writes what is at most as detailed as the variable `RUST_LOG` says, `info` without one.
    pub fn new(out: F) -> Self {
        let said = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
        Self { most: said.unwrap_or(LevelFilter::INFO), out }
    }
}

impl<F: AsFd + Send + Sync + 'static> Subscriber for Log<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{:>5}", event.metadata().level().as_str()));
        event.record(&mut line);
        line.0.push('\n');
        // Standard error does not block: what does not fit is lost.
        let _ = rustix::io::write(&self.out, line.0.as_bytes());
    }

    // Spans are not told of.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_event_is_one_line_with_its_level_and_without_its_origin() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        tracing::subscriber::with_default(Log { most: LevelFilter::INFO, out: writer }, || {
            tracing::warn!("BAR {} cannot be reached", 2);
            tracing::info!(vectors = 32, "up");
            tracing::debug!("left out");
        });
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, " WARN BAR 2 cannot be reached\n INFO up vectors=32\n");
    }
}
