//! What the tests share: sockets, and errno.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// This thread's errno.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A pair of connected streams.
pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: two places for two new descriptors.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// Sets O_NONBLOCK, or takes it off.
pub(crate) fn set_nonblocking(fd: &OwnedFd, on: bool) {
    // SAFETY: plain numbers.
    let done = unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, if on { libc::O_NONBLOCK } else { 0 })
    };
    assert_eq!(done, 0);
}

/// Sends until the buffer is full; how many bytes it took.
pub(crate) fn fill(fd: &OwnedFd) -> usize {
    set_nonblocking(fd, true);
    let bytes = [0u8; 1024];
    let mut sent = 0;
    // SAFETY: a buffer of this function's own.
    let send = || unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    while let count @ 1.. = send() {
        sent += usize::try_from(count).unwrap();
    }
    assert_eq!(errno(), libc::EAGAIN);
    set_nonblocking(fd, false);
    sent
}
