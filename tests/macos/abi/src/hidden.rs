//! Descriptors that the runner needs and Darwin would not have: ports are none there. They are above a number that
//! no program reaches, closed when another program is run, and not listed.

use std::ffi::c_int;

/// Descriptors from here on are the runner's.
pub const HIDDEN: c_int = 3000;

/// Moves a descriptor up to where the runner's are. Gives it as it is if there is no room.
pub fn hide(fd: c_int) -> c_int {
    if !(0..HIDDEN).contains(&fd) {
        return fd;
    }
    // SAFETY: plain numbers; the caller gives up the old descriptor.
    unsafe {
        let hidden = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIDDEN);
        if hidden < 0 {
            return fd;
        }
        libc::close(fd);
        hidden
    }
}
