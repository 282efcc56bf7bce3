//! Linux.
#![expect(
    unsafe_code,
    reason = "getsockopt: rustix's type for what it says has no process without a number"
)]

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

/// The number of the process that connected, or made the pair of sockets; none when it has none in this PID namespace.
pub(crate) fn peer(stream: &UnixStream) -> Option<u32> {
    let mut found = MaybeUninit::<libc::ucred>::uninit();
    let mut size = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes, which `found` has.
    let asked = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            found.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if asked != 0 || usize::try_from(size) != Ok(size_of::<libc::ucred>()) {
        return None;
    }
    // SAFETY: the kernel has written all of it, and its fields may have any value.
    let found = unsafe { found.assume_init() };
    u32::try_from(found.pid).ok().filter(|pid| *pid > 0)
}
