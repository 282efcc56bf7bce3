//! Linux: timers of a thread, SO_PEERCRED and /proc.

use std::io;
use std::os::fd::AsFd;

/// From here on no signal of this thread waits for long.
pub(crate) fn bound_signals() -> io::Result<()> {
    ipc::event::bound_signals()
}

/// The process that connected.
pub(crate) fn peer(socket: &impl AsFd) -> Option<u32> {
    let credentials = rustix::net::sockopt::socket_peercred(socket).ok()?;
    u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
}

/// What a process is called; empty when it is gone.
pub(crate) fn name(process: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    name.trim().chars().filter(|c| !c.is_control()).collect()
}
