//! Events as eventfds: Linux.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

/// An eventfd is both ends.
#[derive(Debug)]
pub(crate) struct EventPair(OwnedFd);

impl EventPair {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn read_end(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.as_fd()]
    }

    pub(crate) fn clear(&self) -> io::Result<bool> {
        clear_event(self.read_end())
    }
}

/// Takes all signals that came to a read end so far; whether there was one.
pub(crate) fn clear_event(fd: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        match rustix::io::read(fd, &mut [0u8; 8]) {
            Ok(_) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
