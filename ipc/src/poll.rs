//! The one blocking wait: over descriptors that carry tokens, with a deadline.
//!
//! A thread that owns state waits here and nowhere else. Runs in every process; in the function
//! process it is the `ppoll` of the seccomp policy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::deadline::Deadline;

/// What a wait looks for on one descriptor.
#[derive(Debug)]
pub struct Source<'fd, T> {
    fd: BorrowedFd<'fd>,
    token: T,
    flags: PollFlags,
}

impl<'fd, T> Source<'fd, T> {
    /// Ready when there is something to read, or when the other end is gone.
    pub fn readable(fd: &'fd impl AsFd, token: T) -> Self {
        Self { fd: fd.as_fd(), token, flags: PollFlags::IN }
    }

    /// [`Source::readable`] of a borrowed descriptor.
    pub fn readable_fd(fd: BorrowedFd<'fd>, token: T) -> Self {
        Self { fd, token, flags: PollFlags::IN }
    }

    /// Ready when something can be written, or when the other end is gone.
    pub fn writable(fd: &'fd impl AsFd, token: T) -> Self {
        Self { fd: fd.as_fd(), token, flags: PollFlags::OUT }
    }

    /// Ready only when the other end is gone. Asked for by name: macOS looks at nothing when nothing is
    /// asked for, not even at that.
    pub fn hangup(fd: &'fd impl AsFd, token: T) -> Self {
        Self { fd: fd.as_fd(), token, flags: PollFlags::HUP }
    }
}

/// As many descriptors as a loop that is on the way of requests waits for: that takes no memory from
/// the allocator.
const FEW: usize = 8;

/// What a loop waits for.
pub type Sources<'fd, T> = SmallVec<[Source<'fd, T>; FEW]>;

/// The tokens of the descriptors that are ready.
pub type Tokens<T> = SmallVec<[T; FEW]>;

/// Waits until one of `sources` is ready, or the deadline passes; without a deadline it waits for
/// as long as it takes (for the main loop of a process that has nothing else to do).
///
/// Returns the tokens that are ready, in the order of `sources`; none when the deadline passed.
///
/// # Errors
/// What `poll` reports, `EINTR` excepted, which is retried.
pub fn wait<T: Copy>(
    sources: &[Source<'_, T>],
    deadline: Option<Deadline>,
) -> io::Result<Tokens<T>> {
    let mut fds: SmallVec<[PollFd<'_>; FEW]> =
        sources.iter().map(|source| PollFd::from_borrowed_fd(source.fd, source.flags)).collect();
    loop {
        let timeout = deadline.map(Deadline::timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) if deadline.is_some_and(Deadline::passed) => return Ok(Tokens::new()),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    Ok(fds.iter().zip(sources).filter(|(fd, _)| ready(fd)).map(|(_, s)| s.token).collect())
}

/// Waits for one descriptor. `Ok(false)` when the deadline passed first.
///
/// # Errors
/// As [`wait`].
pub fn wait_readable(fd: &impl AsFd, deadline: Deadline) -> io::Result<bool> {
    Ok(!wait(&[Source::readable(fd, ())], Some(deadline))?.is_empty())
}
