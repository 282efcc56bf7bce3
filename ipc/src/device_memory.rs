//! Memory of a device that can be handed to another process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::FileType;

use crate::shm::{SharedMemory, SharedMemoryError};
use crate::sys::{self, MemoryEntry};
use crate::window::{Access, Window, WindowError};

/// By what another process gets at it.
#[derive(Debug)]
pub enum DeviceMemory {
    /// A descriptor, which travels beside a message.
    Descriptor(SharedMemory),
    /// A device's own descriptor, of which BARs are parts (Linux's VFIO).
    Device(DeviceFile),
    /// A memory entry, which travels through a port (macOS; nowhere else is there one).
    Entry(MemoryEntry),
    /// Nothing: this process mapped it itself, and maps it again (macOS).
    Own(Arc<Window>),
}

/// The descriptor of a device. It has no size of its own: what is mapped of it is there or cannot be mapped.
#[derive(Debug)]
pub struct DeviceFile(OwnedFd);

impl DeviceFile {
    /// Bytes that can be spoken of: no offset in a file is larger.
    const SIZE: u64 = i64::MAX as u64;

    fn check(&self, offset: u64, length: u64) -> Result<(), WindowError> {
        match offset.checked_add(length) {
            Some(end) if end <= Self::SIZE && length > 0 => Ok(()),
            _ => Err(WindowError::OutOfRange { offset, width: length, length: Self::SIZE }),
        }
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl DeviceMemory {
    /// The memory of a device, whose BARs lie in it: a file that nobody can shorten, since it is none of a
    /// file system, or is sealed.
    ///
    /// # Errors
    /// [`SharedMemoryError::NotSealed`] of what could be shortened under a mapping.
    pub fn of_device(fd: OwnedFd) -> Result<Self, SharedMemoryError> {
        let stat = rustix::fs::fstat(&fd);
        let stat = stat.map_err(|error| SharedMemoryError::Inspect(error.into()))?;
        // Files of a driver's that have no name have no type either.
        let kind = FileType::from_raw_mode(stat.st_mode);
        let of_driver = matches!(kind, FileType::CharacterDevice | FileType::Unknown);
        if of_driver || sys::cannot_shrink(fd.as_fd()) {
            Ok(Self::Device(DeviceFile(fd)))
        } else {
            Err(SharedMemoryError::NotSealed)
        }
    }

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
            Self::Device(_) => DeviceFile::SIZE,
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
            Self::Device(file) => {
                file.check(offset, length as u64)?;
                Window::map(file.as_fd(), offset, length, Access::ReadWrite)
            }
            Self::Entry(entry) => entry.map(offset, length),
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
            Self::Device(file) => {
                file.check(offset, window.length() as u64)?;
                window.put(file.as_fd(), offset)
            }
            Self::Entry(entry) => entry.put_under(window, offset),
            Self::Own(own) => sys::put_again_under(own, offset, window),
        }
    }

    /// Its descriptor, if it has one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Descriptor(memory) => Some(memory.as_fd()),
            Self::Device(file) => Some(file.as_fd()),
            Self::Entry(_) | Self::Own(_) => None,
        }
    }

    /// Its entry, if it has one.
    #[must_use]
    pub fn entry(&self) -> Option<&MemoryEntry> {
        match self {
            Self::Descriptor(_) | Self::Device(_) | Self::Own(_) => None,
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
            Self::Device(file) => Self::Device(DeviceFile(file.0.try_clone()?)),
            Self::Entry(entry) => Self::Entry(entry.clone()),
            Self::Own(window) => Self::Own(Arc::clone(window)),
        })
    }

    /// Whether both are known to be the same memory; of devices' that cannot be told.
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_shortened_is_no_memory_of_a_device() {
        let sealed = SharedMemory::create("bar", 4096).unwrap().into_fd();
        assert!(DeviceMemory::of_device(sealed).is_ok());
        let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        let folder = std::fs::File::open("/").unwrap().into();
        for fd in [unsealed, socket.into(), pipe, folder] {
            let taken = DeviceMemory::of_device(fd);
            assert!(matches!(taken, Err(SharedMemoryError::NotSealed)));
        }
    }

    #[test]
    fn a_file_of_a_driver_is_taken_and_maps_what_it_has() {
        let zero = || {
            OwnedFd::from(
                std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap(),
            )
        };
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let device = DeviceMemory::of_device(zero()).unwrap();
        let window = device.map(0, 0x2000).unwrap();
        window.write(8, 7u32).unwrap();
        device.put_under(&window, 0).unwrap();
        assert_eq!(window.read::<u32>(8).unwrap(), 0, "there is other memory now");
        for (offset, length) in [(u64::MAX, 4096), (DeviceFile::SIZE, 1), (0, 0)] {
            let mapped = device.map(offset, length);
            assert!(matches!(mapped, Err(WindowError::OutOfRange { .. })), "{offset:#x}");
        }
        let refused = DeviceMemory::of_device(event()).unwrap().map(0, 4096);
        assert!(matches!(refused, Err(WindowError::Map { .. })), "an event has no memory");
        assert!(!device.is_same(&device.try_clone().unwrap()));
        assert!(device.descriptor().is_some() && device.entry().is_none());
    }
}
