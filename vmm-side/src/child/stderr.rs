//! What a child says on its standard error: passed on line by line, without control characters. What
//! it calls a warning is one here too, as long as there are few of them: it is not trusted to fill a log.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::text::printable;

/// Longest line that is passed on, in bytes.
const MAX_LINE: usize = 400;
/// Warnings of one child that are passed on as such in [`INTERVAL`].
const MAX_WARNINGS: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(10);

/// The reading end of a child's standard error.
pub(super) struct StderrForwarder {
    pipe: Option<OwnedFd>,
    line: Vec<u8>,
    /// The last whole line, as it was passed on.
    last: String,
    warnings: u32,
    since: Instant,
}

impl StderrForwarder {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe: Some(pipe),
            line: Vec::new(),
            last: String::new(),
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
        self.last = text;
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
