//! Linux: eventfd, sealed memfd, SEQPACKET.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType};

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
        loop {
            match rustix::io::read(&self.0, &mut [0u8; 8]) {
                Ok(_) => return Ok(true),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

pub(crate) fn signal(fd: BorrowedFd<'_>) {
    while rustix::io::write(fd, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
}

/// Anonymous memory of `size` bytes that can neither shrink nor grow from here on.
pub(crate) fn create_shared_memory(name: &str, size: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Memory that is never run: MFD_NOEXEC_SEAL says so for good, where the kernel knows it.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, size)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

/// Whether nobody can shorten the memory any more, so that a mapping cannot fault.
pub(crate) fn cannot_shrink(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// A socket of the kind that carries tubes.
pub(crate) fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(crate::tube::FAMILY, SocketType::SEQPACKET, flags, None)
}

/// The next connection of a listening socket.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(socket, SocketFlags::CLOEXEC)
}
