//! What is unsafe here: taking over the inherited descriptor, closing what was not meant for this process,
//! and saying what a fault of memory or a forbidden call was.
#![expect(unsafe_code, reason = "descriptors are inherited by number")]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

#[cfg(target_os = "linux")]
pub(crate) use linux::{Place, report_faults};
#[cfg(target_os = "macos")]
pub(crate) use macos::{Place, report_faults};

/// Takes over the tube at the inherited descriptor `number`. Called once, first thing in main.
///
/// # Errors
/// When the number is that of a standard stream, is not open, or is no socket of ours; the
/// descriptor, whatever it is, is then left as it was.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if number < 3 {
        return refuse("it is a standard stream");
    }
    // SAFETY: asks about a number, open or not; no memory and no descriptor is touched.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return refuse("it is not open");
    }
    // SAFETY: it is open, and stays so through the check: this process has one thread, which
    // closes nothing meanwhile.
    ipc::Tube::check_socket(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: open, as was just seen. Nothing in this process has opened a descriptor yet, so it is
    // the one that the spawner left for us, and nobody else here owns or closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes whatever whoever started this process left open beside the standard streams, as terminals and shells do:
/// for a process that was not started by the VMM side, which leaves nothing. First thing in main.
pub(crate) fn close_inherited() {
    /// Above all that anybody leaves.
    const MOST: RawFd = 4096;
    for number in 3..MOST {
        // SAFETY: nothing in this process has opened a descriptor yet, so nobody here owns it.
        unsafe { libc::close(number) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _};

    use super::*;

    #[test]
    fn only_an_open_tube_is_taken_over() {
        // No process of ours has as many descriptors open.
        const CLOSED: RawFd = 100_000;
        for (number, why) in [(-1, "standard stream"), (2, "standard stream"), (CLOSED, "not open")]
        {
            let refused = inherited(number).unwrap_err().to_string();
            assert!(refused.contains(why), "{number}: {refused}");
        }
        let (ours, theirs) = ipc::Tube::pair().unwrap();
        let number = OwnedFd::from(theirs).into_raw_fd();
        let taken = inherited(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        drop(taken);
        assert!(
            ipc::poll::wait_readable(&ours, ipc::Deadline::now()).unwrap(),
            "it was ours to close"
        );
    }

    #[test]
    fn what_is_no_tube_is_left_alone() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = inherited(null.as_raw_fd()).unwrap_err().to_string();
        assert!(refused.contains("no socket"), "{refused}");
        assert!(rustix::io::fcntl_getfd(null.as_fd()).is_ok(), "still open");
    }
}
