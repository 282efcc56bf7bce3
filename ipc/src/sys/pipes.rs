//! Events as pipes: macOS, and the portable flavour anywhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};

/// A pipe: the read end waits, the write end is handed out (P9.5). Both ends are non-blocking; a
/// full pipe means that the reader will wake anyway.
#[derive(Debug)]
pub(crate) struct EventPair {
    read: OwnedFd,
    write: OwnedFd,
}

impl EventPair {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        super::prepare_pipe(write.as_fd());
        Ok(Self { read, write })
    }

    pub(crate) fn read_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.read.as_fd(), self.write.as_fd()]
    }

    pub(crate) fn clear(&self) -> io::Result<bool> {
        clear_event(self.read_end())
    }
}

/// Takes all signals that came to a read end so far; whether there was one.
pub(crate) fn clear_event(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut signalled = false;
    loop {
        match rustix::io::read(fd, &mut [0u8; 64]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(signalled),
            Ok(_) => signalled = true,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
