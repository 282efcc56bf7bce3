//! Linux: eventfd, sealed memfd, SEQPACKET.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::deadline::Deadline;
use crate::window::{Access, Window, WindowError};

mod timer;

pub(super) use timer::Timer;
mod guarded;

pub(crate) use guarded::{cannot_fault, copy_from_mapping, copy_to_mapping};

pub(crate) use crate::tube::packet::PacketTransport as Transport;

/// An eventfd is both ends.
#[derive(Debug)]
pub(crate) struct EventPair(OwnedFd);

impl EventPair {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn read_end(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn clear(&self) -> io::Result<bool> {
        clear_event(self.read_end())
    }
}

/// Takes all signals that came to a read end so far; whether there was one.
pub(crate) fn clear_event(fd: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        match rustix::io::read(fd, &mut [0u8; 8]) {
            Ok(_) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Received descriptors close on exec: the flag sees to it.
pub(crate) const RECEIVE_CLOSE_ON_EXEC: rustix::net::RecvFlags =
    rustix::net::RecvFlags::CMSG_CLOEXEC;

/// See [`RECEIVE_CLOSE_ON_EXEC`].
pub(crate) fn close_on_exec(_: &OwnedFd) {}

/// A peer that is gone is an error, not a signal.
pub(crate) const SEND_WITHOUT_SIGNAL: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL;

/// What is written to signal: an eventfd takes no less.
pub(crate) const SIGNAL: &[u8] = &1u64.to_ne_bytes();

/// Whether the descriptor is an eventfd. All anonymous objects share one inode, so that only their
/// names tell them apart.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(std::fs::read_link(link)?.as_os_str() == "anon_inode:[eventfd]")
}

/// Anonymous memory of `size` bytes that can neither shrink nor grow from here on. Nor can it be
/// sealed further: whoever is handed it could take writing away from all who map it later.
pub(crate) fn create_shared_memory(name: &str, size: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Memory that is never run: MFD_NOEXEC_SEAL says so for good, where the kernel knows it.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, size)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Whether nobody can shorten the memory any more, so that a mapping cannot fault.
pub(crate) fn cannot_shrink(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// The written parts of a memory file: only those have seals, so nothing else passes for one.
pub(crate) fn written_extents(
    fd: BorrowedFd<'_>,
    size: u64,
    max: usize,
) -> io::Result<Vec<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    rustix::fs::fcntl_get_seals(fd)?;
    let (mut extents, mut at) = (Vec::new(), 0);
    while at < size && extents.len() < max {
        let begin = match seek(fd, SeekFrom::Data(at)) {
            Ok(begin) if begin < size => begin,
            // Nothing was written from here on.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(fd, SeekFrom::Hole(begin))?.min(size);
        extents.push((begin, end.saturating_sub(begin)));
        at = end.max(begin.saturating_add(1));
    }
    Ok(extents)
}

/// Punches a hole over all of it: holes read as zero.
pub(crate) fn give_back(fd: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(fd, hole, 0, size)?)
}

/// The kind of socket that carries tubes.
pub(crate) const TUBE_SOCKET: SocketType = SocketType::SEQPACKET;

/// Most bytes of a socket's path: `sun_path` without its last NUL.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// A local socket that closes on exec.
pub(crate) fn socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// The next connection of a listening socket.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(socket, SocketFlags::CLOEXEC)
}

/// A part of a mapping that can be mapped elsewhere. There is none here: all memory that is handed on
/// has a descriptor.
#[derive(Clone, Debug)]
pub struct MemoryEntry(std::convert::Infallible);

impl MemoryEntry {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn of(_: &Window, _: u64, _: u64) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.0 {}
    }

    /// Maps a part of it.
    ///
    /// # Errors
    /// None, of what cannot be.
    pub fn map(&self, _: u64, _: usize, _: Access) -> Result<Window, WindowError> {
        match self.0 {}
    }

    /// Puts a part of it under a window.
    ///
    /// # Errors
    /// None, of what cannot be.
    pub fn put_under(&self, _: &Window, _: u64) -> Result<(), WindowError> {
        match self.0 {}
    }

    /// Whether both stand for the same memory.
    #[must_use]
    pub fn is_same(&self, _: &Self) -> bool {
        match self.0 {}
    }
}

/// Where a parent would receive entries of one child.
#[derive(Debug)]
pub struct MemoryInbox;

impl MemoryInbox {
    /// Nothing comes here.
    ///
    /// # Errors
    /// None.
    pub fn new() -> io::Result<Self> {
        Ok(Self)
    }

    /// Nothing comes here.
    ///
    /// # Errors
    /// Always.
    pub fn receive(&self, _: u32, _: &[u64], _: Deadline) -> io::Result<Vec<MemoryEntry>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where a child would send entries.
#[derive(Debug)]
pub struct MemoryPort(std::convert::Infallible);

impl MemoryPort {
    /// There is none.
    #[must_use]
    pub fn inherited() -> Option<Self> {
        None
    }

    /// Sends nothing.
    ///
    /// # Errors
    /// None, of what cannot be.
    pub fn send(&self, _: u32, _: &[&MemoryEntry], _: Deadline) -> io::Result<()> {
        match self.0 {}
    }
}

/// A second mapping of what this process has mapped. There is none here: all device memory has a
/// descriptor.
pub(crate) fn map_again(
    _: &Arc<Window>,
    offset: u64,
    length: usize,
) -> Result<Window, WindowError> {
    let source = io::ErrorKind::Unsupported.into();
    Err(WindowError::Map { offset, length: length as u64, source })
}

/// [`map_again`], under a window.
pub(crate) fn put_again_under(
    _: &Arc<Window>,
    offset: u64,
    window: &Window,
) -> Result<(), WindowError> {
    let source = io::ErrorKind::Unsupported.into();
    Err(WindowError::Map { offset, length: window.length() as u64, source })
}
