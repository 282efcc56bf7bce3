//! Log lines, on standard error. Each thread may log a burst and then so many lines a second: the
//! threads of a program that serves have the names of what they serve, so that one client or function
//! cannot drown the others. Nobody who logs waits for whoever reads: see [`crate::spool`].

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{LeftOut, Spool, complain};

/// How long whoever reads the log may hold up the end of the program.
const TIMEOUT: Duration = Duration::from_millis(300);

/// A filter that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{filter}' is no filter of the log: {why}")]
pub struct FilterError {
    filter: String,
    why: String,
}

/// What is logged.
#[derive(Debug)]
pub struct Filter(EnvFilter);

impl Filter {
    /// What is of this level or above.
    #[must_use]
    pub fn of(level: Level) -> Self {
        Self(EnvFilter::default().add_directive(level.into()))
    }

    /// A level, or `TARGET=LEVEL` of several targets with commas between, as tracing's env-filter has it:
    /// `warn,cordon_vmm=debug`. What no part of it is about is not logged.
    ///
    /// # Errors
    /// [`FilterError`], also for a word that is no level, which env-filter takes for a target.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let failed = |why: String| FilterError { filter: text.to_owned(), why };
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        for part in &parts {
            let is_word = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if is_word && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part)) {
                return Err(failed(format!(
                    "'{part}' is no level, which are {}; a target is written TARGET=LEVEL",
                    LEVELS.join(", ")
                )));
            }
        }
        let parsed = EnvFilter::builder().parse(parts.join(","));
        parsed.map(Self).map_err(|error| failed(error.to_string()))
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Time, level and text.
    #[default]
    Text,
    /// A JSON object: `timestamp`, `level`, `fields` with `message` in it, `target`.
    Json,
}

impl Format {
    /// A line that no library makes: `plain` is one that people get as it is.
    fn line(self, level: &str, text: &str, plain: bool) -> String {
        let mut time = String::new();
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        match self {
            Self::Text if plain => text.to_owned(),
            Self::Text => format!("{time} {level:>5} {text}"),
            Self::Json => serde_json::json!({
                "timestamp": time,
                "level": level,
                "fields": { "message": text },
                "target": "console",
            })
            .to_string(),
        }
    }
}

/// The program's log. Dropping it waits a moment for what was logged to be written.
#[must_use = "what was logged last is written when this is dropped"]
pub struct Log {
    spool: Option<Arc<Spool<String>>>,
    format: Format,
}

impl Log {
    /// Starts logging what is of this level or above, as text. Panics are logged too.
    pub fn start(level: Level) -> Self {
        Self::start_with(Filter::of(level), Format::Text)
    }

    /// Starts logging what passes a filter.
    pub fn start_with(filter: Filter, format: Format) -> Self {
        let target = io::stderr().as_fd().try_clone_to_owned();
        let notice = move |left| notice(format, left);
        let spool = target.and_then(|target| Spool::start("log", target, notice));
        let Ok(spool) = spool.map(Arc::new) else {
            // No descriptor or thread is left: the program will not get far, and says so itself.
            return Self { spool: None, format };
        };
        // Only one log in a program: a second one would not be started by it.
        let _ = subscriber(&spool, filter, format).try_init();
        log_panics(Arc::clone(&spool), format);
        Self { spool: Some(spool), format }
    }

    /// Logs a line as it is: why the program fails.
    pub fn line(&self, text: &str) {
        let line = self.format.line("ERROR", text, true);
        match &self.spool {
            Some(spool) => spool.line(line),
            None => complain(line),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Of no consequence: there is nobody left to tell.
        let _ = self.spool.as_ref().map(|spool| spool.flush(TIMEOUT));
    }
}

/// Formats what may be logged, and puts it in the queue.
fn subscriber(
    spool: &Arc<Spool<String>>,
    Filter(filter): Filter,
    format: Format,
) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry()
        .with(filter)
        .with(lines(spool, format))
        .with(Limit(Arc::clone(spool)))
}

fn lines<S>(spool: &Arc<Spool<String>>, format: Format) -> Box<dyn Layer<S> + Send + Sync + 'static>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Lines(Arc::clone(spool)))
        // Whatever somebody else in the build has the library do.
        .with_ansi(false)
        .log_internal_errors(false);
    match format {
        Format::Text => layer.with_target(false).boxed(),
        Format::Json => layer.json().with_current_span(false).with_span_list(false).boxed(),
    }
}

fn notice(format: Format, LeftOut { source, lines, .. }: LeftOut<String>) -> String {
    let plural = if lines == 1 { "line was" } else { "lines were" };
    let text = match source {
        Some(thread) => format!("{lines} more log {plural} left out of {thread}"),
        None => format!("{lines} log {plural} left out"),
    };
    format.line("WARN", &text, false)
}

/// A panic is logged like anything else, and written before the program goes on to end.
fn log_panics(spool: Arc<Spool<String>>, format: Format) {
    std::panic::set_hook(Box::new(move |panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let shown = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = if shown { format!("\n{backtrace}") } else { String::new() };
        let thread = std::thread::current();
        let text = format!("thread '{}' {panic}{backtrace}", thread.name().unwrap_or("?"));
        spool.line(format.line("ERROR", &text, true));
        let _ = spool.flush(TIMEOUT);
    }));
}

/// Lets each thread log as much as it may.
struct Limit(Arc<Spool<String>>);

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, _: &Event<'_>, _: Context<'_, S>) -> bool {
        self.0.admits(std::thread::current().name().unwrap_or("a thread").to_owned())
    }
}

/// Takes formatted lines.
struct Lines(Arc<Spool<String>>);

impl<'l> MakeWriter<'l> for Lines {
    type Writer = Line<'l>;

    fn make_writer(&'l self) -> Line<'l> {
        Line(&self.0)
    }
}

/// Takes one event, which comes in one piece.
struct Line<'l>(&'l Spool<String>);

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.line(String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
