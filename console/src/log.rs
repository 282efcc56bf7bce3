//! Log lines, on standard error. Each thread may log a burst and then so many lines a second: the
//! threads of a program that serves have the names of what they serve, so that one client or function
//! cannot drown the others. Nobody who logs waits for whoever reads: see [`crate::spool`].

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{LeftOut, Spool, complain};

/// How long whoever reads the log may hold up the end of the program.
const TIMEOUT: Duration = Duration::from_millis(300);

/// The program's log. Dropping it waits a moment for what was logged to be written.
#[must_use = "what was logged last is written when this is dropped"]
pub struct Log(Option<Arc<Spool<String>>>);

impl Log {
    /// Starts logging what is of this level or above. Panics are logged too.
    pub fn start(level: Level) -> Self {
        let target = io::stderr().as_fd().try_clone_to_owned();
        let spool = target.and_then(|target| Spool::start("log", target, notice));
        let Ok(spool) = spool.map(Arc::new) else {
            // No descriptor or thread is left: the program will not get far, and says so itself.
            return Self(None);
        };
        // Only one log in a program: a second one would not be started by it.
        let _ = subscriber(&spool, level).try_init();
        log_panics(Arc::clone(&spool));
        Self(Some(spool))
    }

    /// Logs a line as it is: why the program fails.
    pub fn line(&self, text: &str) {
        match &self.0 {
            Some(spool) => spool.line(text.to_owned()),
            None => complain(text),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Of no consequence: there is nobody left to tell.
        let _ = self.0.as_ref().map(|spool| spool.flush(TIMEOUT));
    }
}

/// Formats what may be logged, and puts it in the queue.
fn subscriber(spool: &Arc<Spool<String>>, level: Level) -> impl Subscriber + Send + Sync {
    let format = tracing_subscriber::fmt::layer()
        .with_writer(Lines(Arc::clone(spool)))
        .with_target(false)
        .without_time()
        // Whatever somebody else in the build has the library do.
        .with_ansi(false)
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(LevelFilter::from_level(level))
        .with(format)
        .with(Limit(Arc::clone(spool)))
}

fn notice(LeftOut { source, lines }: LeftOut<String>) -> String {
    let plural = if lines == 1 { "line was" } else { "lines were" };
    match source {
        Some(thread) => format!(" WARN {lines} more log {plural} left out of {thread}"),
        None => format!(" WARN {lines} log {plural} left out"),
    }
}

/// A panic is logged like anything else, and written before the program goes on to end.
fn log_panics(spool: Arc<Spool<String>>) {
    std::panic::set_hook(Box::new(move |panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let shown = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = if shown { format!("\n{backtrace}") } else { String::new() };
        let thread = std::thread::current();
        spool.line(format!("thread '{}' {panic}{backtrace}", thread.name().unwrap_or("?")));
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
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};

    /// Logs `count` warnings on a thread of this name.
    fn warn(subscriber: &tracing::Dispatch, name: &str, count: usize) {
        let subscriber = subscriber.clone();
        let run = move || {
            tracing::dispatcher::with_default(&subscriber, || {
                for number in 0..count {
                    tracing::warn!("number {number}");
                    tracing::debug!("not asked for");
                }
            });
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).unwrap().join().unwrap();
    }

    #[test]
    fn each_thread_logs_as_much_as_it_may_and_the_rest_is_counted() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let spool = Arc::new(Spool::start("test", writer, notice).unwrap());
        let subscriber = tracing::Dispatch::new(subscriber(&spool, Level::WARN));
        warn(&subscriber, "function 01:00.0", 5000);
        warn(&subscriber, "function 01:00.1", 10);
        spool.flush(Duration::from_secs(10)).unwrap();
        drop((subscriber, spool));
        let lines = BufReader::new(std::fs::File::from(reader)).lines().map(Result::unwrap);
        let (told, counted): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("number"));
        let first = |line: &&String| **line == " WARN number 0";
        assert_eq!(told.iter().filter(first).count(), 2);
        let left: usize = counted
            .iter()
            .map(|line| {
                let rest = line.strip_prefix(" WARN ").unwrap();
                assert!(rest.ends_with("log lines were left out of function 01:00.0"), "{line}");
                rest.split(' ').next().unwrap().parse::<usize>().unwrap()
            })
            .sum();
        assert_eq!(told.len() + left, 5010);
        assert!(left > 4000, "{left}");
    }
}
