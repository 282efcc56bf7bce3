//! What is unsafe here: taking over the inherited descriptor, and giving it up on purpose.
#![expect(unsafe_code, reason = "the tube is inherited by number")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

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

/// Closes a descriptor under whoever owns it, and never gives control back, so that nobody uses it
/// afterwards. The process is killed in the end.
pub(crate) fn close_and_stay(fd: BorrowedFd<'_>) -> ! {
    // SAFETY: the owner is never used again, nor dropped: this function does not return, and the
    // process has one thread.
    drop(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) });
    loop {
        let _ = ipc::poll::wait::<()>(&[], None);
    }
}
