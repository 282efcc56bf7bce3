//! macOS: unlinked POSIX shared memory, and what a descriptor is made by calls instead of flags. None
//! of it has run on a Mac yet: see docs/macos.md.
#![expect(unsafe_code, reason = "one fcntl has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::shm;

use crate::window::{Access, Window};

mod copies;
mod guarded;
mod mach;
mod timer;

pub(crate) use copies::Copies;
pub(crate) use guarded::{cannot_fault, copy_from_mapping, copy_to_mapping};
pub use mach::{MemoryEntry, MemoryInbox, MemoryPort};
pub(crate) use mach::{map_again, put_again_under};
pub(super) use timer::Timer;

/// Received descriptors close on exec by hand: there is no flag for it.
pub(crate) const RECEIVE_CLOSE_ON_EXEC: rustix::net::RecvFlags = rustix::net::RecvFlags::empty();

/// See [`RECEIVE_CLOSE_ON_EXEC`].
pub(crate) fn close_on_exec(fd: &OwnedFd) {
    let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
}

/// There is no flag for it: a socket has SO_NOSIGPIPE, or the process ignores the signal.
pub(crate) const SEND_WITHOUT_SIGNAL: rustix::net::SendFlags = rustix::net::SendFlags::empty();

/// What is written to signal.
pub(crate) const SIGNAL: &[u8] = &[1];

/// There are none.
pub(crate) fn is_eventfd(_: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(false)
}

/// Memory without a name: created, unlinked, sized once. macOS sizes such an object only once, so
/// nobody can shrink it afterwards.
pub(crate) fn create_shared_memory(_name: &str, size: u64) -> io::Result<OwnedFd> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = format!("/cordon.{}.{serial}", std::process::id());
    let flags = shm::OFlags::RDWR | shm::OFlags::CREATE | shm::OFlags::EXCL;
    let fd = shm::open(&name, flags, Mode::RUSR | Mode::WUSR)?;
    shm::unlink(&name)?;
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, size)?;
    Ok(fd)
}

/// POSIX shared memory objects cannot be resized after the first time.
pub(crate) fn cannot_shrink(_fd: BorrowedFd<'_>) -> bool {
    true
}

/// Shared memory does not say what it is here.
pub(crate) fn written_extents(_: BorrowedFd<'_>, _: u64, _: usize) -> io::Result<Vec<(u64, u64)>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Shared memory has no holes.
pub(crate) fn give_back(_: BorrowedFd<'_>, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Most bytes of a socket's path: `sun_path` without its last NUL.
pub(crate) const MAX_SOCKET_PATH: usize = 103;

/// A local socket that closes on exec and raises no signal.
pub(crate) fn socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket(AddressFamily::UNIX, kind, None)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

/// Two connected sockets that close on exec, do not block and raise no signal.
pub(crate) fn socket_pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::empty(), None)?;
    for end in [&a, &b] {
        rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(end, true)?;
        rustix::net::sockopt::set_socket_nosigpipe(end, true)?;
    }
    Ok((a, b))
}

/// The next connection of a listening socket, which closes on exec, does not block and raises no signal.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::accept(socket)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

/// A socket that came from elsewhere: from here on nothing that is sent waits or raises a signal. The
/// flag of a send that says so is ignored here, only the socket's own state counts. One that does not
/// block is one of ours, made by [`socket_pair`] or [`accept`]: a confined process is handed no other,
/// and may look and not change it.
pub(crate) fn prepare_socket(socket: BorrowedFd<'_>) {
    if rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK)) {
        return;
    }
    let _ = rustix::io::ioctl_fionbio(socket, true);
    let _ = rustix::net::sockopt::set_socket_nosigpipe(socket, true);
}

/// A write to a pipe whose reader is gone is an error from here on, and raises no signal: whatever the
/// process that links this does about SIGPIPE.
pub(crate) fn prepare_pipe(pipe: BorrowedFd<'_>) {
    // SAFETY: an open descriptor and a plain number; the call touches no memory.
    let _ = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETNOSIGPIPE, 1) };
}

/// Whether shared memory has at least `size` bytes. A confined process may map what it was handed and
/// may not ask for its size, so the last page is mapped: the kernel refuses what is past the end.
pub(crate) fn holds(fd: BorrowedFd<'_>, size: u64) -> io::Result<bool> {
    let Some(last) = size.checked_sub(1) else { return Ok(true) };
    let page = rustix::param::page_size() as u64;
    Ok(Window::map(fd, last - last % page, 1, Access::ReadOnly).is_ok())
}

/// What mappings of a file begin and end at multiples of: a page, there are no others. A confined process could not ask.
pub(crate) fn granule(_: BorrowedFd<'_>) -> usize {
    rustix::param::page_size()
}

/// Not known of a pipe, whose reading end is elsewhere.
pub(crate) fn is_pending(_: BorrowedFd<'_>) -> bool {
    false
}
