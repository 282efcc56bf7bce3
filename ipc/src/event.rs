//! A wake-up that crosses processes.
//!
//! On Linux an eventfd; on macOS, which has none, a pipe whose *write* end is the one handed out
//! (P9.5). An [`Event`] is held by the side that waits, a [`Signaller`] by the side that wakes.
//! Either may die: a signaller without a waiter succeeds and does nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::deadline::Deadline;
use crate::poll;
use crate::sys;

/// The waiting side.
#[derive(Debug)]
pub struct Event(sys::EventPair);

impl Event {
    /// A new event, not signalled.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        sys::EventPair::new().map(Self)
    }

    /// The side to hand out.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn signaller(&self) -> io::Result<Signaller> {
        self.0.write_end().try_clone_to_owned().map(Signaller)
    }

    /// Takes all signals that came so far; `true` when there was at least one.
    ///
    /// # Errors
    /// What the read reports, "nothing there" excepted.
    pub fn clear(&self) -> io::Result<bool> {
        self.0.clear()
    }

    /// Waits for a signal and takes it. `Ok(false)` when the deadline passed first.
    ///
    /// # Errors
    /// As [`poll::wait`].
    pub fn wait(&self, deadline: Deadline) -> io::Result<bool> {
        loop {
            if self.clear()? {
                return Ok(true);
            }
            if !poll::wait_readable(self, deadline)? {
                return Ok(false);
            }
        }
    }
}

impl AsFd for Event {
    /// The descriptor to wait on for reading.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.read_end()
    }
}

/// The waking side.
#[derive(Debug)]
pub struct Signaller(OwnedFd);

impl Signaller {
    /// From a descriptor that a VMM or a peer handed over.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Wakes the waiting side (P9.3): retried when interrupted; an invalid or closed descriptor,
    /// and one that is already full of signals, is ignored, since the waiter either does not
    /// exist or will wake anyway.
    pub fn signal(&self) {
        sys::signal(self.0.as_fd());
    }

    /// Another handle for the same event.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Signaller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn signals_collapse_and_are_taken_once() {
        let event = Event::new().unwrap();
        assert!(!event.clear().unwrap());
        let signaller = event.signaller().unwrap();
        signaller.signal();
        signaller.signal();
        assert!(event.wait(Deadline::after(Duration::from_secs(1))).unwrap());
        assert!(!event.wait(Deadline::now()).unwrap());
    }

    #[test]
    fn p9_5_what_is_handed_out_wakes_by_being_written_to() {
        let event = Event::new().unwrap();
        let handed_out = event.signaller().unwrap().as_fd().try_clone_to_owned().unwrap();
        // Another program knows no signaller, only the descriptor: 8 bytes suit an eventfd and a
        // pipe alike.
        rustix::io::write(&handed_out, &1u64.to_ne_bytes()).unwrap();
        assert!(event.wait(Deadline::after(Duration::from_secs(1))).unwrap());
    }

    #[test]
    fn p9_3_a_signal_to_nobody_is_ignored() {
        let event = Event::new().unwrap();
        let signaller = event.signaller().unwrap();
        drop(event);
        signaller.signal();
        let closed = std::fs::File::open("/dev/null").unwrap();
        Signaller::from_fd(closed.into()).signal();
    }
}
