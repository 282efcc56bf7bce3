//! What is unsafe here: taking over the inherited descriptor.
#![expect(unsafe_code, reason = "the tube is inherited by number")]

use std::os::fd::{FromRawFd as _, OwnedFd};

/// Takes over the inherited descriptor `number`, if it is open. Called once, first thing in main.
pub(crate) fn inherited(number: i32) -> std::io::Result<OwnedFd> {
    if number < 3 {
        return Err(std::io::Error::other("numbers below 3 are taken"));
    }
    // SAFETY: nothing else in this process has opened or owns a descriptor yet, so if the number
    // is open, it is the spawner's and nobody else closes it; if not, the first use fails.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_getfd(&fd) {
        Ok(_) => Ok(fd),
        Err(error) => {
            std::mem::forget(fd);
            Err(error.into())
        }
    }
}
