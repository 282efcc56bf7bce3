//! macOS: pipes for events, unlinked POSIX shared memory, STREAM with length framing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::shm;

mod guarded;
mod mach;
mod timer;

pub(crate) use guarded::{cannot_fault, copy_from_mapping, copy_to_mapping};
pub use mach::{MemoryEntry, MemoryInbox, MemoryPort};
pub(crate) use mach::{map_again, put_again_under};
pub(super) use timer::Timer;

pub(crate) use crate::tube::stream::StreamTransport as Transport;

/// A pipe: the read end waits, the write end is handed out (P9.5). Both ends are non-blocking; a
/// full pipe means that the reader will wake anyway.
#[derive(Debug)]
pub(crate) struct EventPair {
    read: OwnedFd,
    write: OwnedFd,
}

impl EventPair {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(Self { read, write })
    }

    pub(crate) fn read_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    pub(crate) fn clear(&self) -> io::Result<bool> {
        clear_event(self.read_end())
    }
}

/// Takes all signals that came to a read end so far; whether there was one.
pub(crate) fn clear_event(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut signalled = false;
    loop {
        match rustix::io::read(fd, &mut [0u8; 64]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(signalled),
            Ok(_) => signalled = true,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

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

/// The kind of socket that carries tubes.
pub(crate) const TUBE_SOCKET: SocketType = SocketType::STREAM;

/// Most bytes of a socket's path: `sun_path` without its last NUL.
pub(crate) const MAX_SOCKET_PATH: usize = 103;

/// A local socket that closes on exec.
pub(crate) fn socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket(AddressFamily::UNIX, kind, None)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    Ok(socket)
}

/// The next connection of a listening socket.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::accept(socket)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    Ok(socket)
}
