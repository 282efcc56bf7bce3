//! Memory of a device that can be handed to another process.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use crate::shm::SharedMemory;
use crate::sys::{self, MemoryEntry};
use crate::window::{Access, Window, WindowError};

/// By what another process gets at it.
#[derive(Debug)]
pub enum DeviceMemory {
    /// A descriptor, which travels beside a message.
    Descriptor(SharedMemory),
    /// A memory entry, which travels through a port (macOS; nowhere else is there one).
    Entry(MemoryEntry),
    /// Nothing: this process mapped it itself, and maps it again (macOS).
    Own(Arc<Window>),
}

impl DeviceMemory {
    /// A part of what is mapped here and has no descriptor, whole pages.
    ///
    /// # Errors
    /// Where the system has nothing for that.
    pub fn of(window: &Window, offset: u64, length: u64) -> io::Result<Self> {
        MemoryEntry::of(window, offset, length).map(Self::Entry)
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Descriptor(memory) => memory.size(),
            Self::Entry(entry) => entry.size(),
            Self::Own(window) => window.length() as u64,
        }
    }

    /// Maps a part of it, readable and writable.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn map(&self, offset: u64, length: usize) -> Result<Window, WindowError> {
        match self {
            Self::Descriptor(memory) => memory.map(offset, length, Access::ReadWrite),
            Self::Entry(entry) => entry.map(offset, length, Access::ReadWrite),
            Self::Own(window) => sys::map_again(window, offset, length),
        }
    }

    /// Puts a part of it under a window's addresses, in one step.
    ///
    /// # Errors
    /// [`WindowError`]; the window is then as it was.
    pub fn put_under(&self, window: &Window, offset: u64) -> Result<(), WindowError> {
        match self {
            Self::Descriptor(memory) => window.replace(memory, offset),
            Self::Entry(entry) => entry.put_under(window, offset),
            Self::Own(own) => sys::put_again_under(own, offset, window),
        }
    }

    /// Its descriptor, if it has one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Descriptor(memory) => Some(memory.as_fd()),
            Self::Entry(_) | Self::Own(_) => None,
        }
    }

    /// Its entry, if it has one.
    #[must_use]
    pub fn entry(&self) -> Option<&MemoryEntry> {
        match self {
            Self::Descriptor(_) | Self::Own(_) => None,
            Self::Entry(entry) => Some(entry),
        }
    }

    /// Another handle for the same memory.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Descriptor(memory) => Self::Descriptor(memory.try_clone()?),
            Self::Entry(entry) => Self::Entry(entry.clone()),
            Self::Own(window) => Self::Own(Arc::clone(window)),
        })
    }

    /// Whether both are the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Descriptor(one), Self::Descriptor(two)) => {
                let file = |memory: &SharedMemory| {
                    rustix::fs::fstat(memory).map(|stat| (stat.st_dev, stat.st_ino))
                };
                matches!((file(one), file(two)), (Ok(one), Ok(two)) if one == two)
            }
            (Self::Entry(one), Self::Entry(two)) => one.is_same(two),
            (Self::Own(one), Self::Own(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl From<SharedMemory> for DeviceMemory {
    fn from(memory: SharedMemory) -> Self {
        Self::Descriptor(memory)
    }
}
