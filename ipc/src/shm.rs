//! Shared memory that travels as a descriptor: guest RAM, BAR windows, the interrupt page.
//!
//! A mapping of a file that its owner shortens faults on access, which would let a compromised
//! peer kill whoever maps it. So memory from a distrusted peer is taken only when it is sealed
//! against shrinking and holds the range that the peer spoke of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;
use crate::window::{Access, Window, WindowError};

/// A descriptor of shared memory and its size, fixed for good.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    size: u64,
}

/// Memory that a peer sent and that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SharedMemoryError {
    /// The descriptor cannot be looked at.
    #[error("Cannot inspect the shared memory")]
    Inspect(#[source] io::Error),
    /// The peer could still shorten it under a mapping.
    #[error("Shared memory is not sealed against shrinking")]
    NotSealed,
    /// It is smaller than was said.
    #[error("Shared memory has fewer than the {0:#x} bytes that it is said to have")]
    Short(u64),
}

impl SharedMemory {
    /// New zeroed memory, named for people who look at a process's mappings.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn create(name: &str, size: u64) -> io::Result<Self> {
        sys::create_shared_memory(name, size).map(|fd| Self { fd, size })
    }

    /// Memory of `size` bytes from a distrusted peer. The size is to come with the message that the
    /// descriptor came with, since a process that is confined on macOS cannot ask for it.
    ///
    /// # Errors
    /// [`SharedMemoryError`] unless it is sealed against shrinking and has at least these bytes.
    pub fn from_peer(fd: OwnedFd, size: u64) -> Result<Self, SharedMemoryError> {
        if !sys::cannot_shrink(fd.as_fd()) {
            return Err(SharedMemoryError::NotSealed);
        }
        Self::from_trusted(fd, size)
    }

    /// Memory of `size` bytes from a peer that may as well kill this process outright, sealed or not.
    ///
    /// # Errors
    /// [`SharedMemoryError::Inspect`] when it cannot be told, [`SharedMemoryError::Short`] when the
    /// memory has fewer.
    pub fn from_trusted(fd: OwnedFd, size: u64) -> Result<Self, SharedMemoryError> {
        match sys::holds(fd.as_fd(), size) {
            Ok(true) => Ok(Self { fd, size }),
            Ok(false) => Err(SharedMemoryError::Short(size)),
            Err(error) => Err(SharedMemoryError::Inspect(error)),
        }
    }

    /// Whether both are the same memory, of the same size. Of memory that the system does not number, as POSIX
    /// shared memory of macOS, that is not known, and said not to be so. Not for a process that is confined: see
    /// [`SharedMemory::from_peer`].
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let number = |one: &Self| {
            let stat = rustix::fs::fstat(&one.fd).ok().filter(|stat| stat.st_ino != 0)?;
            Some((stat.st_dev, stat.st_ino, one.size))
        };
        let of_this = number(self);
        of_this.is_some() && of_this == number(other)
    }

    /// Memory from a distrusted peer, as large as it is found to be. Not for a process that is confined:
    /// see [`SharedMemory::from_peer`].
    ///
    /// # Errors
    /// As [`SharedMemory::from_peer`] and [`SharedMemory::size_of`].
    pub fn measured(fd: OwnedFd) -> Result<Self, SharedMemoryError> {
        let size = Self::size_of(&fd)?;
        Self::from_peer(fd, size)
    }

    /// How many bytes the memory behind a descriptor has. Not for a process that is confined: see
    /// [`SharedMemory::from_peer`].
    ///
    /// # Errors
    /// [`SharedMemoryError::Inspect`] when the descriptor has no size.
    pub fn size_of(fd: &impl AsFd) -> Result<u64, SharedMemoryError> {
        let inspect = |error| SharedMemoryError::Inspect(error);
        let stat = rustix::fs::fstat(fd).map_err(|error| inspect(error.into()))?;
        u64::try_from(stat.st_size)
            .map_err(|_| inspect(io::Error::from(io::ErrorKind::InvalidData)))
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parts of plain memory that were ever written, as (offset, length), at most `max` of them and
    /// in order. The rest was never written and takes no memory.
    ///
    /// # Errors
    /// When this is not known to be plain memory: something else may be behind the descriptor.
    pub fn written_extents(&self, max: usize) -> io::Result<Vec<(u64, u64)>> {
        sys::written_extents(self.fd.as_fd(), self.size, max)
    }

    /// Maps `length` bytes from `offset`.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`] when the memory does not hold them.
    pub fn map(&self, offset: u64, length: usize, access: Access) -> Result<Window, WindowError> {
        let end = offset.checked_add(length as u64);
        if length == 0 || end.is_none_or(|end| end > self.size) {
            return Err(WindowError::OutOfRange {
                offset,
                width: length as u64,
                length: self.size,
            });
        }
        Window::map(self.fd.as_fd(), offset, length, access)
    }

    /// Whether a mapping with `access` may be made of it at `offset`, as its descriptor and its seals have it. Nothing
    /// is left of that, nor is memory set aside.
    ///
    /// # Errors
    /// [`WindowError::Map`] when not.
    pub fn may_map(&self, offset: u64, access: Access) -> Result<(), WindowError> {
        Window::may_map(self.fd.as_fd(), offset, access)
    }

    /// Maps all of it.
    ///
    /// # Errors
    /// As [`SharedMemory::map`].
    pub fn map_all(&self, access: Access) -> Result<Window, WindowError> {
        let length = usize::try_from(self.size).map_err(|_| WindowError::OutOfRange {
            offset: 0,
            width: self.size,
            length: usize::MAX as u64,
        })?;
        self.map(0, length, access)
    }

    /// Makes every byte zero again, and gives back what the system held for them where it can.
    ///
    /// # Errors
    /// When the memory is not writable.
    pub fn clear(&self) -> io::Result<()> {
        const STEP: usize = 1 << 20;
        if sys::give_back(self.fd.as_fd(), self.size).is_ok() {
            return Ok(());
        }
        let window = self.map_all(Access::ReadWrite).map_err(io::Error::other)?;
        let zeros = vec![0; STEP.min(window.length())];
        (0..window.length()).step_by(STEP).try_for_each(|at| {
            let length = STEP.min(window.length() - at);
            window.copy_in(at as u64, &zeros[..length]).map_err(io::Error::other)
        })
    }

    /// Another handle for the same memory.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, size: self.size })
    }

    /// Gives up the descriptor.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_its_owner_could_shorten_is_refused() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("unsealed", flags).unwrap();
        assert!(matches!(SharedMemory::from_peer(file, 0), Err(SharedMemoryError::NotSealed)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn created_memory_cannot_be_shortened() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        assert!(rustix::fs::ftruncate(&memory, 0).is_err());
        assert_eq!(SharedMemory::from_peer(memory.into_fd(), 8192).unwrap().size(), 8192);
    }

    #[test]
    fn cleared_memory_is_zero_for_whoever_maps_it() {
        let memory = SharedMemory::create("test", 0x4_1000).unwrap();
        let window = memory.map_all(Access::ReadWrite).unwrap();
        for at in [0, 0x1234, 0x4_0fff] {
            window.write(at, 7u8).unwrap();
        }
        memory.clear().unwrap();
        for at in [0, 0x1234, 0x4_0fff] {
            assert_eq!(window.read::<u8>(at).unwrap(), 0, "{at:#x}");
        }
        assert_eq!(memory.size(), 0x4_1000);
    }

    #[test]
    fn memory_has_the_size_that_was_said_if_it_is_that_large() {
        let page = rustix::param::page_size() as u64;
        let memory = SharedMemory::create("test", 4 * page).unwrap();
        let fd = || memory.as_fd().try_clone_to_owned().unwrap();
        for size in [1, page, 3 * page + 1, 4 * page] {
            assert_eq!(SharedMemory::from_peer(fd(), size).unwrap().size(), size);
            assert_eq!(SharedMemory::from_trusted(fd(), size).unwrap().size(), size);
        }
        for size in [4 * page + 1, 5 * page, 1 << 40, u64::MAX] {
            let refused = SharedMemory::from_peer(fd(), size);
            assert!(matches!(refused, Err(SharedMemoryError::Short(said)) if said == size));
        }
        assert_eq!(SharedMemory::size_of(&memory).unwrap(), 4 * page);
    }

    #[test]
    fn a_mapping_past_the_end_is_refused() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        for (offset, length) in [(0, 8193), (4096, 8192), (u64::MAX, 4096), (0, 0)] {
            let mapped = memory.map(offset, length, Access::ReadWrite);
            assert!(matches!(mapped, Err(WindowError::OutOfRange { .. })), "{offset} {length}");
        }
    }
}
