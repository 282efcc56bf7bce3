//! F_SETNOSIGPIPE (xnu-11417.101.15, bsd/kern/kern_descrip.c `fcntl_nocancel`, sys_generic.c `dofilewrite`): a write
//! to a pipe that nobody reads is EPIPE, and no signal is raised. It belongs to the open file (FG_NOSIGPIPE), so it
//! goes along with a descriptor that is duplicated or sent. On a socket it is the same as SO_NOSIGPIPE.

use std::ffi::{c_int, c_void};

/// A signal that no descriptor of ours asks to be told by: where the flag is kept, since Linux keeps it with the
/// open file too. It is never sent, since nothing has O_ASYNC.
const MARK: c_int = libc::SIGURG;
const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;

/// F_SETNOSIGPIPE of a pipe.
pub(super) fn set(fd: c_int, on: bool) -> c_int {
    // SAFETY: plain numbers.
    unsafe { libc::fcntl(fd, F_SETSIG, if on { MARK } else { 0 }) }
}

/// F_GETNOSIGPIPE of a pipe.
pub(super) fn is_set(fd: c_int) -> bool {
    // SAFETY: plain numbers.
    unsafe { libc::fcntl(fd, F_GETSIG) == MARK }
}

/// Writes without the signal: it is held back meanwhile, and taken if this write raised it.
///
/// # Safety
/// As `write`.
pub(super) unsafe fn write(fd: c_int, buffer: *const c_void, size: usize) -> isize {
    // SAFETY: places for signal sets, and the caller's buffer.
    unsafe {
        let (mut pipe, mut before, mut pending) =
            (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&raw mut pipe);
        libc::sigaddset(&raw mut pipe, libc::SIGPIPE);
        libc::sigpending(&raw mut pending);
        let was_pending = libc::sigismember(&raw const pending, libc::SIGPIPE) == 1;
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe, &raw mut before);
        let wrote = libc::write(fd, buffer, size);
        let errno = *libc::__errno_location();
        if wrote < 0 && errno == libc::EPIPE && !was_pending {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&raw const pipe, std::ptr::null_mut(), &raw const now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        *libc::__errno_location() = errno;
        wrote
    }
}
