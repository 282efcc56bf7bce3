//! What a child says on its standard error: passed on line by line, without control characters. What
//! it calls a warning is one here too, as long as there are few of them: it is not trusted to fill a log.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ipc::wire::common::FORBIDDEN_CALL;

use crate::limits::MAX_LINE;
use crate::limits::MAX_WARNINGS;
use crate::text::printable;

const INTERVAL: Duration = Duration::from_secs(10);

/// The reading end of a child's standard error.
pub(super) struct StderrForwarder {
    pipe: Option<OwnedFd>,
    line: Vec<u8>,
    /// The last whole line, as it was passed on.
    last: String,
    /// The number of the forbidden call that it said it had made, which is no such line.
    forbidden: Option<u32>,
    warnings: u32,
    since: Instant,
}

impl StderrForwarder {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe: Some(pipe),
            line: Vec::new(),
            last: String::new(),
            forbidden: None,
            warnings: 0,
            since: Instant::now(),
        }
    }

    /// To wait for; `None` once it is closed.
    pub(super) fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// The last line that it said, fit for people; empty if it said nothing.
    pub(super) fn last(&self) -> &str {
        &self.last
    }

    /// The number of the forbidden system call that it said last it had made. Only its own word, which any
    /// process can give at any time.
    pub(super) fn forbidden(&self) -> Option<u32> {
        self.forbidden
    }

    /// Passes on what is there, as much as one wake-up is worth; the rest waits for the next.
    pub(super) fn forward(&mut self, who: &impl fmt::Display) {
        let mut bytes = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut bytes) {
                Ok(0) => {
                    let line = std::mem::take(&mut self.line);
                    self.pass(who, &line);
                    self.pipe = None;
                    return;
                }
                Ok(count) => self.line.extend_from_slice(&bytes[..count]),
                Err(_) => return,
            }
            while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                self.pass(who, &line[..end]);
            }
            if self.line.len() > MAX_LINE {
                let line = std::mem::take(&mut self.line);
                self.pass(who, &line);
            }
        }
    }

    fn pass(&mut self, who: &impl fmt::Display, line: &[u8]) {
        if line.is_empty() {
            return;
        }
        let text = printable(&String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]));
        if self.is_loud(text.trim_start()) {
            tracing::warn!("{who}: {text}");
        } else {
            tracing::info!("{who}: {text}");
        }
        match text.strip_prefix(FORBIDDEN_CALL).map(str::parse) {
            // What it said before may be why it made the call, as for want of memory.
            Some(Ok(number)) => self.forbidden = Some(number),
            _ => self.last = text,
        }
    }

    fn is_loud(&mut self, text: &str) -> bool {
        if !text.starts_with("WARN") && !text.starts_with("ERROR") {
            return false;
        }
        if self.since.elapsed() > INTERVAL {
            (self.warnings, self.since) = (0, Instant::now());
        }
        self.warnings += 1;
        self.warnings <= MAX_WARNINGS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_warnings_until_there_are_too_many() {
        let (read, _write) = crate::sys::stderr_pipe().unwrap();
        let mut forwarder = StderrForwarder::new(read);
        assert!(!forwarder.is_loud("INFO it goes well"));
        let loud = (0..100).filter(|_| forwarder.is_loud("WARN it does not")).count();
        assert_eq!(loud, 20);
    }

    #[test]
    fn the_number_of_a_forbidden_call_is_taken_beside_the_last_words() {
        let (read, write) = crate::sys::stderr_pipe().unwrap();
        let mut forwarder = StderrForwarder::new(read);
        let mut said = |text: &str| {
            rustix::io::write(&write, text.as_bytes()).unwrap();
            forwarder.forward(&"x");
            (forwarder.last().to_owned(), forwarder.forbidden())
        };
        assert_eq!(said("words\n"), ("words".to_owned(), None));
        assert_eq!(said(&format!("{FORBIDDEN_CALL}257\n")), ("words".to_owned(), Some(257)));
        // What is no number is a line as any other.
        for line in ["-1", "4294967296", "257 of mine", ""] {
            let line = format!("{FORBIDDEN_CALL}{line}");
            assert_eq!(said(&format!("{line}\n")), (line, Some(257)));
        }
    }

    #[test]
    fn a_long_line_is_cut_and_one_without_an_end_is_not_kept() {
        let (read, write) = crate::sys::stderr_pipe().unwrap();
        let mut forwarder = StderrForwarder::new(read);
        for end in ["\n", ""] {
            let line = ["x".repeat(MAX_LINE + 100), end.to_owned()].concat();
            rustix::io::write(&write, line.as_bytes()).unwrap();
            forwarder.forward(&"x");
            assert_eq!((forwarder.last().len(), forwarder.line.len()), (MAX_LINE, 0));
        }
    }

    #[test]
    fn lines_of_any_length_and_content_are_taken() {
        let (read, write) = crate::sys::stderr_pipe().unwrap();
        let mut forwarder = StderrForwarder::new(read);
        for bytes in [&b"one\ntwo\n"[..], &[0xff; 1000], b"\x1b[31mred\n", b"no end"] {
            rustix::io::write(&write, bytes).unwrap();
            forwarder.forward(&"x");
        }
        assert_eq!(forwarder.line, b"no end");
        drop(write);
        forwarder.forward(&"x");
        assert!(forwarder.pipe().is_none() && forwarder.line.is_empty());
        assert_eq!(forwarder.last(), "no end");
    }
}
