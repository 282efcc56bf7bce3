//! macOS: LOCAL_PEERPID is in none of the bindings, so clients have no names here, and no budget for
//! each process.

use std::io;
use std::os::fd::AsFd;

/// There are no timers for one thread of several. What clients bring are pipes, which must have
/// O_NONBLOCK; one who takes it away again holds up the device that signals it, its own.
pub(crate) fn bound_signals() -> io::Result<()> {
    Ok(())
}

/// Not known.
pub(crate) fn peer(_: &impl AsFd) -> Option<u32> {
    None
}

/// Not known.
pub(crate) fn name(_: u32) -> String {
    String::new()
}
