//! macOS: LOCAL_PEERPID, and a process's name by libproc. None of it has run on a Mac yet: see docs/macos.md.
#![expect(unsafe_code, reason = "neither has a safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// There are no timers for one thread of several. What clients bring are pipes, which must have
/// O_NONBLOCK; one who takes it away again holds up the device that signals it, its own.
pub(crate) fn bound_signals() -> io::Result<()> {
    Ok(())
}

/// The process that connected.
pub(crate) fn peer(socket: &impl AsFd) -> Option<u32> {
    let mut pid: libc::pid_t = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::pid_t>()).ok()?;
    // SAFETY: a socket that is borrowed for the call; places for the option and its length.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_LOCAL,
            libc::LOCAL_PEERPID,
            (&raw mut pid).cast(),
            &raw mut length,
        )
    };
    u32::try_from(pid).ok().filter(|pid| got == 0 && *pid != 0)
}

/// What a process is called; empty when it is gone.
pub(crate) fn name(process: u32) -> String {
    /// More than the 32 bytes that the kernel has for it (`pbi_name` of sys/proc_info.h).
    const ROOM: usize = 64;
    let (Ok(pid), Ok(room)) = (libc::c_int::try_from(process), u32::try_from(ROOM)) else {
        return String::new();
    };
    let mut bytes = [0u8; ROOM];
    // SAFETY: a buffer of the size given.
    let length = unsafe { libc::proc_name(pid, bytes.as_mut_ptr().cast(), room) };
    let length = usize::try_from(length).unwrap_or(0).min(ROOM);
    let name = String::from_utf8_lossy(&bytes[..length]);
    name.trim().chars().filter(|c| !c.is_control()).collect()
}
