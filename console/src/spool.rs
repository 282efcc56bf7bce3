//! Lines on their way to a descriptor: a bounded queue, and one thread that writes.
//!
//! Whoever has something to say puts it in the queue and goes on, whether or not anybody reads. What
//! a source says too fast, and what does not fit, is left out and counted; the count is a line too.
//! Lines are numbered, also those that are left out: whoever reads sees by the gaps what is missing.

use std::collections::VecDeque;
use std::hash::Hash;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::MAX_AT_ONCE;
use crate::limits::MAX_WAITING;
use crate::output::{OutputError, write_all};
use crate::rate::Limits;

/// Lines that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut<K> {
    /// Of which source, which said them too fast; of any, if they were not read fast enough.
    pub source: Option<K>,
    /// How many.
    pub lines: u64,
    /// The number of the line that says so.
    pub number: u64,
}

/// How many lines were left out in all, each counted as soon as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOutTotals {
    /// Said too fast by their source.
    pub too_fast: u64,
    /// Not read fast enough.
    pub unread: u64,
}

/// What says in words how many lines were left out.
type Notice<K> = Box<dyn Fn(LeftOut<K>) -> String + Send>;

struct SpoolState<K> {
    /// The number of the next line.
    next: u64,
    waiting: VecDeque<String>,
    bytes: usize,
    /// Lines that did not fit, since the last notice of it.
    unfit: u64,
    totals: LeftOutTotals,
    limits: Limits<K>,
    notice: Notice<K>,
    writing: bool,
    /// Somebody waits for everything to be written.
    flushing: u32,
    /// The last error of the descriptor.
    failed: Option<io::ErrorKind>,
    closed: bool,
}

struct SpoolShared<K> {
    state: Mutex<SpoolState<K>>,
    changed: Condvar,
}

/// Lines on their way to a descriptor, said by sources `K`. The thread that writes ends when the
/// value is dropped, once it is not held up by whoever reads.
pub struct Spool<K>(Arc<SpoolShared<K>>);

impl<K: Clone + Eq + Hash + Send + 'static> Spool<K> {
    /// Starts the thread that writes to `target`; `notice` says what was left out.
    ///
    /// # Errors
    /// When there is no thread left.
    pub fn start(
        name: &str,
        target: OwnedFd,
        notice: impl Fn(LeftOut<K>) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let state = SpoolState {
            next: 1,
            waiting: VecDeque::new(),
            bytes: 0,
            unfit: 0,
            totals: LeftOutTotals::default(),
            limits: Limits::default(),
            notice: Box::new(notice),
            writing: false,
            flushing: 0,
            failed: None,
            closed: false,
        };
        let shared = Arc::new(SpoolShared { state: Mutex::new(state), changed: Condvar::new() });
        let writer = Arc::clone(&shared);
        let run = move || writer.write(&target);
        std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self(shared))
    }

    /// Puts a line in the queue. Never waits for whoever reads.
    pub fn line(&self, line: String) {
        self.offer(None, |_| line);
    }

    /// [`Spool::line`] with what `make` makes of its number, counted from 1; nothing is made of what `source`
    /// says too fast or does not fit, which has a number all the same.
    pub fn offer(&self, source: Option<K>, make: impl FnOnce(u64) -> String) {
        let mut state = self.0.state();
        let now = Instant::now();
        if source.is_none_or(|source| state.limits.admit(source, now)) {
            state.put(make);
        } else {
            state.totals.too_fast += 1;
            state.number();
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Whether `source` may say another line now. One that it may not say is counted.
    pub fn admits(&self, source: K) -> bool {
        let mut state = self.0.state();
        let idle = state.limits.next().is_none();
        let admitted = state.limits.admit(source, Instant::now());
        state.totals.too_fast += u64::from(!admitted);
        drop(state);
        if idle && !admitted {
            // There is something to tell in a while.
            self.0.changed.notify_all();
        }
        admitted
    }

    /// What was left out so far.
    #[must_use]
    pub fn left_out(&self) -> LeftOutTotals {
        self.0.state().totals
    }

    /// Waits until everything was written, for at most `time`.
    ///
    /// # Errors
    /// [`OutputError`] if it was not, or if the descriptor refused something since the start.
    pub fn flush(&self, time: Duration) -> Result<(), OutputError> {
        let end = Instant::now() + time;
        let mut state = self.0.state();
        state.flushing += 1;
        self.0.changed.notify_all();
        while !state.is_idle() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state =
                self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.flushing -= 1;
        let late = (!state.is_idle()).then_some(io::ErrorKind::TimedOut);
        match state.failed.or(late) {
            None => Ok(()),
            Some(kind) => Err(io::Error::from(kind).into()),
        }
    }
}

impl<K> Drop for Spool<K> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_all();
    }
}

impl<K: Clone + Eq + Hash> SpoolState<K> {
    /// Whether everything was written, also what was left out.
    fn is_idle(&mut self) -> bool {
        let told = self.unfit == 0 && self.limits.next().is_none();
        told && self.waiting.is_empty() && !self.writing
    }

    fn has_room(&self) -> bool {
        self.bytes < MAX_WAITING
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn put(&mut self, make: impl FnOnce(u64) -> String) {
        self.tell_unfit();
        let number = self.number();
        if !self.has_room() {
            self.unfit += 1;
            self.totals.unread += 1;
            return;
        }
        self.push(make(number));
    }

    fn push(&mut self, mut line: String) {
        line.push('\n');
        self.bytes += line.len();
        self.waiting.push_back(line);
    }

    fn tell_unfit(&mut self) {
        if self.unfit > 0 && self.has_room() {
            let lines = std::mem::take(&mut self.unfit);
            self.push_notice(None, lines);
        }
    }

    fn push_notice(&mut self, source: Option<K>, lines: u64) {
        let number = self.number();
        let notice = (self.notice)(LeftOut { source, lines, number });
        self.push(notice);
    }

    /// Puts a notice of everything that it is time to tell in the queue.
    fn tell(&mut self) {
        self.tell_unfit();
        let now = (self.flushing == 0 && !self.closed).then(Instant::now);
        while self.has_room()
            && let Some((source, lines)) = self.limits.take(now)
        {
            self.push_notice(source, lines);
        }
    }

    /// Whole lines to write next.
    fn take(&mut self) -> String {
        let mut text = self.waiting.pop_front().unwrap_or_default();
        while let Some(line) = self.waiting.front()
            && text.len() + line.len() <= MAX_AT_ONCE
        {
            text.push_str(line);
            self.waiting.pop_front();
        }
        self.bytes -= text.len();
        text
    }
}

impl<K> SpoolShared<K> {
    fn state(&self) -> MutexGuard<'_, SpoolState<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> SpoolShared<K> {
    /// The thread that writes. It holds no lock while it does.
    fn write(&self, target: &OwnedFd) {
        while let Some(text) = self.next() {
            let written = write_all(target, text.as_bytes(), None);
            let mut state = self.state();
            state.writing = false;
            if let Err(OutputError(error)) = written {
                state.failed = Some(error.kind());
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for the next lines; `None` when there will be none.
    fn next(&self) -> Option<String> {
        let mut state = self.state();
        loop {
            state.tell();
            if !state.waiting.is_empty() {
                state.writing = true;
                return Some(state.take());
            }
            if state.closed {
                return None;
            }
            // Whoever flushes waits for this.
            self.changed.notify_all();
            state = match state.limits.next() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let left = next.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};

    fn spool() -> (Spool<u8>, std::fs::File) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let notice = |left: LeftOut<u8>| format!("{:?} {}", left.source, left.lines);
        (Spool::start("test", writer, notice).unwrap(), reader.into())
    }

    #[test]
    fn lines_arrive_in_order_and_flush_waits_for_them() {
        let (spool, reader) = spool();
        for number in 0..1000 {
            spool.line(number.to_string());
        }
        spool.flush(Duration::from_secs(10)).unwrap();
        drop(spool);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        let expected: Vec<String> = (0..1000).map(|number: u32| number.to_string()).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn whoever_does_not_read_holds_nobody_up_and_what_did_not_fit_is_counted() {
        let (spool, reader) = spool();
        let line = "x".repeat(1000);
        let before = Instant::now();
        for _ in 0..10_000 {
            spool.line(line.clone());
        }
        assert!(spool.flush(Duration::from_millis(50)).is_err());
        assert!(before.elapsed() < Duration::from_secs(5));
        drop(spool);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        let left: u64 =
            lines.iter().filter_map(|line| line.strip_prefix("None ")?.parse::<u64>().ok()).sum();
        let whole = lines.iter().filter(|found| **found == line).count() as u64;
        assert_eq!(whole + left, 10_000);
        assert!(left > 5000, "{left}");
    }

    #[test]
    fn what_a_source_says_too_fast_is_told_after_a_while_and_when_flushed() {
        let (spool, reader) = spool();
        let admitted = (0..5000).filter(|_| spool.admits(7)).count();
        let mut lines = BufReader::new(reader).lines();
        let told = lines.next().unwrap().unwrap();
        assert_eq!(told, format!("Some(7) {}", 5000 - admitted));
        while spool.admits(7) {}
        spool.flush(Duration::from_secs(10)).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "Some(7) 1");
    }

    #[test]
    fn numbers_rise_and_what_is_missing_is_what_was_counted() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let notice = |left: LeftOut<u8>| format!("{} {}", left.number, left.lines);
        let spool = Spool::start("test", writer, notice).unwrap();
        for at in 0..20_000u32 {
            spool.offer((at % 3 == 0).then_some(7), |number| {
                format!("{number} 0{}", " ".repeat(100))
            });
        }
        let read = std::thread::spawn(move || {
            let lines = BufReader::new(std::fs::File::from(reader)).lines();
            lines.map(Result::unwrap).collect::<Vec<String>>()
        });
        spool.flush(Duration::from_secs(10)).unwrap();
        let totals = spool.left_out();
        drop(spool);
        let (mut last, mut missing, mut counted) = (0, 0, 0);
        for line in read.join().unwrap() {
            let mut fields = line.split(' ').map(|field| field.parse::<u64>().unwrap_or(0));
            let (number, count) = (fields.next().unwrap(), fields.next().unwrap());
            assert!(number > last, "{number} after {last}");
            missing += number - last - 1;
            counted += count;
            last = number;
        }
        assert_eq!(missing, counted);
        assert!(missing > 5000, "{missing}");
        assert_eq!(totals.too_fast + totals.unread, counted);
        assert!(totals.too_fast > 5000 && totals.unread > 0, "{totals:?}");
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_and_nothing_else() {
        let (spool, reader) = spool();
        drop(reader);
        spool.line("x".to_owned());
        let OutputError(error) = spool.flush(Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn lines_are_written_together_up_to_a_size_and_a_longer_one_by_itself() {
        let (spool, _reader) = spool();
        let mut state = spool.0.state();
        let line = |length: usize| format!("{}\n", "x".repeat(length - 1));
        let half = MAX_AT_ONCE / 2;
        for length in [half, half, 1 + MAX_AT_ONCE, half, half + 1] {
            let line = line(length);
            state.bytes += line.len();
            state.waiting.push_back(line);
        }
        let taken: Vec<usize> = (0..4).map(|_| state.take().len()).collect();
        assert_eq!(taken, [MAX_AT_ONCE, 1 + MAX_AT_ONCE, half, half + 1]);
        assert_eq!(state.bytes, 0);
    }
}
