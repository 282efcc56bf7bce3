//! Descriptors that this program was started with, by number.
#![expect(unsafe_code, reason = "only their number says which they are")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

/// Takes an inherited descriptor that can be written to. Of the standard streams it is a duplicate. Others
/// are this value's from here on; a second time it is not found.
///
/// To be called while this program has one thread.
///
/// # Errors
/// One that says what is wrong with it.
pub(crate) fn take_writable(number: RawFd) -> io::Result<OwnedFd> {
    let not_open = || io::Error::other("this descriptor is not open");
    if number < 0 {
        return Err(not_open());
    }
    // SAFETY: not -1; looked at in this function alone, and whether it is open is what is asked first.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(descriptor).map_err(|_| not_open())?;
    // Whatever this program opens itself is closed on exec, and nothing that came through an exec is.
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::other("this descriptor was not inherited"));
    }
    let how = rustix::fs::fcntl_getfl(descriptor)?;
    if !how.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(io::Error::other("this descriptor is not open for writing"));
    }
    if number <= 2 {
        return Ok(fcntl_dupfd_cloexec(descriptor, 3)?);
    }
    fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    // SAFETY: open, and inherited, so that nothing in this program owns it; from here on it counts as not
    // inherited, so nothing takes it again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes the descriptor with this number, which no program that this one starts inherits any more. To be
/// asked for each number once, and before this program opens anything that it keeps.
///
/// # Errors
/// `EBADF` for what is not open, and for a negative number.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is not -1; whether it is open is what is asked, and it is not used if it is not.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody else in this process owns it: this program has opened nothing that it
    // keeps yet, and asks for a number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a descriptor is open that programs inherit which this one runs.
#[cfg(target_os = "linux")]
pub(crate) fn is(number: RawFd) -> bool {
    // SAFETY: not -1; whether it is open is what is asked, and nothing else is done with it.
    let descriptor = (number >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) });
    let flags = descriptor.and_then(|descriptor| fcntl_getfd(descriptor).ok());
    flags.is_some_and(|flags| !flags.contains(FdFlags::CLOEXEC))
}
