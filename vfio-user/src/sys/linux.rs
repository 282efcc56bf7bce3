//! Linux.
#![expect(
    unsafe_code,
    reason = "getsockopt, setsockopt: rustix's type for a peer has none without a number, and it knows neither \
              SO_PEEK_OFF nor SO_PEERPIDFD; kcmp, which it does not have"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

/// The number of the process that connected, or made the pair of sockets; none when it has none in this PID namespace.
pub(crate) fn peer(stream: &UnixStream) -> Option<u32> {
    let mut found = MaybeUninit::<libc::ucred>::uninit();
    let mut size = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes, which `found` has.
    let asked = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            found.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if asked != 0 || usize::try_from(size) != Ok(size_of::<libc::ucred>()) {
        return None;
    }
    // SAFETY: the kernel has written all of it, and its fields may have any value.
    let found = unsafe { found.assume_init() };
    u32::try_from(found.pid).ok().filter(|pid| *pid > 0)
}

/// Whether a process has ended that [`peer`] is the number of.
#[derive(Debug)]
pub(crate) enum Life {
    /// It had when it was looked for.
    Over,
    /// A pidfd, readable once it has.
    Of(OwnedFd),
    /// The kernel does not say (before Linux 6.5), or there is no such process.
    Unknown,
}

impl Life {
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Over => true,
            Self::Unknown => false,
            // One that cannot be looked at is not relied on.
            Self::Of(pidfd) => {
                ipc::poll::wait_readable(pidfd, ipc::Deadline::now()).unwrap_or(true)
            }
        }
    }
}

/// The life of the process that connected, or made the pair of sockets. By the socket itself, so never that of another
/// one which has its number by now.
pub(crate) fn life(stream: &UnixStream) -> io::Result<Life> {
    let error = match number_of(stream, libc::SO_PEERPIDFD) {
        // SAFETY: the kernel has just made this descriptor for this call, and nobody else knows of it.
        Ok(made) if made >= 0 => return Ok(Life::Of(unsafe { OwnedFd::from_raw_fd(made) })),
        Ok(_) => io::ErrorKind::InvalidData.into(),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::ENODATA) => Ok(Life::Unknown),
        // As the kernel says it of a process that is not there any more, before and after 6.15.
        Some(libc::EINVAL | libc::ESRCH) => Ok(Life::Over),
        _ => Err(error),
    }
}

/// From the beginning of its stream on, the next look ([`ipc::rights::peek`]) begins where the last one ended, until
/// what was looked at is received.
pub(crate) fn look_from_begin(stream: &UnixStream) -> io::Result<()> {
    let (begin, size) = (0 as libc::c_int, libc::socklen_t::try_from(size_of::<libc::c_int>()));
    // SAFETY: the descriptor is open, and the kernel reads `size` bytes, which `begin` has.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const begin).cast(),
            size.unwrap_or(0),
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many bytes of its stream were looked at and not received since.
pub(crate) fn looked_at(stream: &UnixStream) -> io::Result<usize> {
    let found = number_of(stream, libc::SO_PEEK_OFF)?;
    usize::try_from(found).map_err(|_| io::Error::other("looks begin at its beginning"))
}

/// An option of a socket that is a number.
fn number_of(stream: &UnixStream, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut found: libc::c_int = -1;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes, which `found` has.
    let asked = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut found).cast(),
            &raw mut size,
        )
    };
    if asked == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
}

/// A pipe that does not block: where it is read, and where it is written.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pipe::PipeFlags;
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
}

/// Moves bytes from a pipe into a socket: what is in the one afterwards is not in the other.
pub(crate) fn splice(
    from: &impl AsFd,
    to: &impl AsFd,
    most: usize,
) -> Result<usize, rustix::io::Errno> {
    use rustix::pipe::SpliceFlags;
    rustix::pipe::splice(from, None, to, None, most, SpliceFlags::NONBLOCK)
}

/// Whether both are one open file; `false` where the kernel does not say (it is built without kcmp).
pub(crate) fn is_same_file(one: &impl AsFd, other: &impl AsFd) -> bool {
    /// Of linux/kcmp.h.
    const KCMP_FILE: libc::c_long = 0;
    let pid = libc::c_long::from(std::process::id());
    let number = |fd: BorrowedFd<'_>| libc::c_long::from(fd.as_raw_fd());
    let (one, other) = (number(one.as_fd()), number(other.as_fd()));
    // SAFETY: the call takes numbers only, and compares what this process has open.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one, other) == 0 }
}
