//! Linux: sealed memfd, flags at the making of a descriptor.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::deadline::Deadline;
use crate::window::{Window, WindowError};

mod copies;
mod guarded;
mod timer;

pub(crate) use copies::Copies;
pub(super) use timer::Timer;

pub(crate) use guarded::{cannot_fault, copy_from_mapping, copy_to_mapping};

/// Received descriptors close on exec: the flag sees to it.
pub(crate) const RECEIVE_CLOSE_ON_EXEC: rustix::net::RecvFlags =
    rustix::net::RecvFlags::CMSG_CLOEXEC;

/// See [`RECEIVE_CLOSE_ON_EXEC`].
pub(crate) fn close_on_exec(_: &OwnedFd) {}

/// A peer that is gone is an error, not a signal.
pub(crate) const SEND_WITHOUT_SIGNAL: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL;

/// What is written to signal: an eventfd, ours or that of a client of vfio-user, takes no less.
pub(crate) const SIGNAL: &[u8] = &1u64.to_ne_bytes();

/// Whether the descriptor is an eventfd, which is asked without /proc: whoever asks may have no files. Anonymous
/// objects have no file type, and of those only an eventfd takes a number of eight bytes; zero adds nothing to it
/// and is taken at once, unless its counter has overflowed, which counts as no eventfd.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> io::Result<bool> {
    if rustix::fs::fstat(fd)?.st_mode & libc::S_IFMT != 0 {
        return Ok(false);
    }
    let mut asked = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    rustix::event::poll(&mut asked, Some(&Timespec::default()))?;
    if asked[0].revents().contains(PollFlags::ERR) {
        return Ok(false);
    }
    match rustix::io::write(fd, &0u64.to_ne_bytes()) {
        Ok(taken) => Ok(taken == 8),
        // Nothing else waits either.
        Err(Errno::INTR) => Ok(true),
        Err(_) => Ok(false),
    }
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

/// Most bytes of a socket's path: `sun_path` without its last NUL.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// A local socket that closes on exec.
pub(crate) fn socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// Two connected sockets that close on exec and do not block.
pub(crate) fn socket_pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

/// The next connection of a listening socket, which closes on exec and does not block.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(socket, SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK))
}

/// Nothing that a send here does not say by its flags: it neither waits nor raises a signal, whatever
/// state the socket is in. So a confined process needs no call for it.
pub(crate) fn prepare_socket(_: BorrowedFd<'_>) {}

/// There is no such setting here: writing to a pipe without a reader raises a signal that every Rust
/// program ignores from its start, and events are no pipes.
pub(crate) fn prepare_pipe(_: BorrowedFd<'_>) {}

/// Whether shared memory has at least `size` bytes.
pub(crate) fn holds(fd: BorrowedFd<'_>, size: u64) -> io::Result<bool> {
    let found = rustix::fs::fstat(fd)?.st_size;
    Ok(u64::try_from(found).is_ok_and(|found| found >= size))
}

/// What mappings of a file begin and end at multiples of: a page, and of memory of huge pages (hugetlbfs) one of those,
/// which the kernel tells as the file's preferred block. It maps whole ones, and takes back nothing else.
pub(crate) fn granule(fd: BorrowedFd<'_>) -> usize {
    let page = rustix::param::page_size();
    let block = rustix::fs::fstat(fd).ok().and_then(|stat| usize::try_from(stat.st_blksize).ok());
    block.filter(|block| *block > page && block.is_power_of_two()).unwrap_or(page)
}

/// Whether an event is signalled and not cleared, known of an eventfd, which is both ends.
pub(crate) fn is_pending(fd: BorrowedFd<'_>) -> bool {
    use rustix::fs::FileType;
    let both_ends = rustix::fs::fstat(fd).is_ok_and(|stat| {
        !matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket)
    });
    both_ends && crate::poll::wait_readable(&fd, Deadline::now()).unwrap_or(false)
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
    pub fn map(&self, _: u64, _: usize) -> Result<Window, WindowError> {
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
