//! What is unsafe about doing wrong: giving up a descriptor under its owner.
#![expect(unsafe_code, reason = "the tube is closed while the role still has it")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

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
