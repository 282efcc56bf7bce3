//! Waiting for a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Waits until one of `fds` is ready for its flags; which are, in the same order. All are not when
/// `timeout` passed.
pub(crate) fn wait<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let mut fds = fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let spec = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut fds, spec.as_ref()) {
            Ok(0) if left.is_none_or(|left| !left.is_zero()) => {}
            Err(Errno::INTR) => {}
            Ok(_) => return Ok(fds.map(|fd| !fd.revents().is_empty())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `fd` can be written to, or its reader is gone; whether it can before `timeout`.
pub(crate) fn writable(fd: &impl AsFd, timeout: Option<Duration>) -> io::Result<bool> {
    wait([(fd.as_fd(), PollFlags::OUT)], timeout).map(|[ready]| ready)
}

/// Waits until `fd` can be read from; whether it can before `timeout`.
pub(crate) fn readable(fd: &impl AsFd, timeout: Option<Duration>) -> io::Result<bool> {
    wait([(fd.as_fd(), PollFlags::IN)], timeout).map(|[ready]| ready)
}
