//! There is no systemd on macOS.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Nothing is passed on.
pub(crate) fn passed() -> io::Result<Vec<(RawFd, String)>> {
    Ok(Vec::new())
}

/// Nobody is told.
#[derive(Debug)]
pub(crate) struct Manager;

impl Manager {
    /// There is none.
    pub(crate) fn connect() -> io::Result<Self> {
        Ok(Self)
    }

    /// Never.
    pub(crate) fn number(&self) -> Option<RawFd> {
        None
    }

    /// Never.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        None
    }

    /// To nobody.
    pub(crate) fn ready(&self, _: &str) {}

    /// To nobody.
    pub(crate) fn status(&self, _: &str) {}

    /// To nobody.
    pub(crate) fn stopping(&self) {}

    /// To nobody.
    pub(crate) fn alive(&self) {}
}
