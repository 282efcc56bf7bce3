//! Memory of a client as a device model reaches it: sealed or not, it never ends the process.
//!
//! A mapping of a file that its owner shortens faults: a load or a store there ends the process with
//! SIGBUS. Memory that can never lose a page is copied directly, as through any window. All other
//! memory is mapped too, but nothing here loads or stores: every copy is made by the kernel, which
//! fails with an error where the process would have died. So the owner of the memory can spoil its
//! own transfers and nothing else. A copy by the kernel costs some microseconds, a direct one none:
//! the memory that Cordon makes, and QEMU's by default, is sealed.
//!
//! The other ways, and why not:
//! - looking at the file's size first leaves the moment between looking and copying;
//! - a handler for SIGBUS that jumps out of the copy also hides a fault of a mapping that must never
//!   fault (a BAR, the interrupt page, an image), and is a property of the whole process;
//! - `pread` and `pwrite` on the descriptor need no mapping, but huge pages cannot be written so, nor
//!   POSIX shared memory on macOS be read or written; whatever can be mapped works here;
//! - sealing the client's memory ourselves changes what its owner may do with it, and only some
//!   kinds can be sealed.
//!
//! A copy is made of bytes: a word that another process polls may be seen half written. Whoever
//! publishes something writes one byte last.
#![expect(unsafe_code, reason = "copies at the addresses of a mapping")]

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::sys;
use crate::window::{Access, Window, WindowError};

/// Memory that cannot be mapped, or a transfer that did not take place or only in part.
#[derive(Debug, thiserror::Error)]
pub enum PeerMemoryError {
    /// The descriptor cannot be looked at.
    #[error("Cannot inspect the peer's memory")]
    Inspect(#[source] io::Error),
    /// It cannot be mapped, the range is not in it, or it is read-only.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The owner took the memory away.
    #[error("The memory at {offset:#x} is gone: its owner shortened it")]
    Gone {
        /// First byte of the transfer.
        offset: u64,
    },
    /// The system makes no such copies.
    #[error("The system refused a copy at {offset:#x}")]
    Refused {
        /// First byte of the transfer.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A mapping of memory that may go away under it.
#[derive(Debug)]
pub struct PeerMemory {
    window: Window,
    access: Access,
    /// No page of it can ever be missing. Otherwise the window is for its addresses only.
    direct: bool,
}

impl PeerMemory {
    /// Maps `length` bytes of `fd`, from its beginning.
    ///
    /// # Errors
    /// [`PeerMemoryError::Inspect`], [`WindowError::Map`]; [`PeerMemoryError::Refused`] for memory
    /// that only the kernel could copy, on a system that does not.
    pub fn map(fd: &impl AsFd, length: usize, access: Access) -> Result<Self, PeerMemoryError> {
        // In this order: memory that cannot shrink is at least as long as it is seen to be now.
        let direct = sys::cannot_fault(fd.as_fd());
        let stat = rustix::fs::fstat(fd).map_err(|error| PeerMemoryError::Inspect(error.into()))?;
        let direct = direct && u64::try_from(stat.st_size).is_ok_and(|size| length as u64 <= size);
        let window = Window::map(fd.as_fd(), 0, length, access)?;
        let memory = Self { window, access, direct };
        match memory.read(0, &mut [0]) {
            Err(error @ PeerMemoryError::Refused { .. }) => Err(error),
            _ => Ok(memory),
        }
    }

    /// Bytes that were mapped; how many of them are still there is the owner's to say.
    #[must_use]
    pub fn length(&self) -> usize {
        self.window.length()
    }

    /// Copies out of the memory. After an error some of `into` may be filled.
    ///
    /// # Errors
    /// [`PeerMemoryError`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PeerMemoryError> {
        if self.direct {
            return Ok(self.window.copy_out(offset, into)?);
        }
        let from = self.at(offset, into.len())?;
        // SAFETY: `at` checked that the range is in the mapping, which lives as long as this.
        unsafe { sys::copy_from_mapping(from, into) }.map_err(|error| failed(offset, error))
    }

    /// Copies into the memory. After an error some of it may have been written.
    ///
    /// # Errors
    /// [`PeerMemoryError`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), PeerMemoryError> {
        if self.direct {
            return Ok(self.window.copy_in(offset, from)?);
        }
        if self.access == Access::ReadOnly {
            return Err(WindowError::ReadOnly.into());
        }
        let to = self.at(offset, from.len())?;
        // SAFETY: as in `read`, and a window is behind no reference.
        unsafe { sys::copy_to_mapping(from, to) }.map_err(|error| failed(offset, error))
    }

    /// The address of `offset`, if `width` bytes from there are in the mapping.
    fn at(&self, offset: u64, width: usize) -> Result<*mut u8, WindowError> {
        let length = self.window.length();
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(width));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => {
                Ok(std::ptr::with_exposed_provenance_mut(self.window.address() + start))
            }
            _ => {
                Err(WindowError::OutOfRange { offset, width: width as u64, length: length as u64 })
            }
        }
    }
}

fn failed(offset: u64, error: Errno) -> PeerMemoryError {
    match error {
        Errno::FAULT => PeerMemoryError::Gone { offset },
        error => PeerMemoryError::Refused { offset, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SharedMemory;

    /// Memory whose owner can still shorten it.
    #[cfg(target_os = "linux")]
    fn unsealed(size: u64) -> std::os::fd::OwnedFd {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = rustix::fs::memfd_create("unsealed", flags).unwrap();
        rustix::fs::ftruncate(&memory, size).unwrap();
        memory
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_was_shortened_is_an_error_and_comes_back_with_its_pages() {
        let file = unsealed(0x4000);
        let memory = PeerMemory::map(&file, 0x4000, Access::ReadWrite).unwrap();
        memory.write(0x1ffe, b"abcd").unwrap();
        rustix::fs::ftruncate(&file, 0x2000).unwrap();
        let mut bytes = [0; 4];
        let gone = |result: Result<(), PeerMemoryError>, at| matches!(result, Err(PeerMemoryError::Gone { offset }) if offset == at);
        for offset in [0x2000, 0x1ffe, 0x3000] {
            assert!(gone(memory.read(offset, &mut bytes), offset));
            assert!(gone(memory.write(offset, b"wxyz"), offset));
        }
        memory.read(0x1ffc, &mut bytes).unwrap();
        rustix::fs::ftruncate(&file, 0).unwrap();
        assert!(gone(memory.read(0, &mut bytes), 0));
        rustix::fs::ftruncate(&file, 0x4000).unwrap();
        memory.read(0x1ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_shortened_in_the_middle_of_transfers_never_ends_the_process() {
        let file = unsealed(1 << 20);
        let memory = PeerMemory::map(&file, 1 << 20, Access::ReadWrite).unwrap();
        let gone = std::thread::scope(|scope| {
            let owner = scope.spawn(|| {
                for _ in 0..2000 {
                    rustix::fs::ftruncate(&file, 0).unwrap();
                    rustix::fs::ftruncate(&file, 1 << 20).unwrap();
                }
            });
            let mut bytes = vec![7; 1 << 16];
            let mut gone = 0;
            while !owner.is_finished() {
                for offset in (0..1 << 20).step_by(1 << 16) {
                    gone += u32::from(memory.write(offset, &bytes).is_err());
                    gone += u32::from(memory.read(offset, &mut bytes).is_err());
                }
            }
            gone
        });
        assert!(gone > 0, "the owner was never faster: this test shows nothing");
    }

    /// The same memory, copied directly and by the kernel.
    fn both_ways(access: Access) -> (SharedMemory, [PeerMemory; 2]) {
        let shared = SharedMemory::create("test", 0x8000).unwrap();
        let map = || PeerMemory::map(&shared, 0x8000, access).unwrap();
        let ways = [map(), PeerMemory { direct: false, ..map() }];
        (shared, ways)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_memory_that_can_lose_no_page_is_copied_directly() {
        let is_direct = |fd: &std::os::fd::OwnedFd, length| {
            PeerMemory::map(fd, length, Access::ReadWrite).unwrap().direct
        };
        let sealed = SharedMemory::create("test", 0x8000).unwrap().into_fd();
        assert!(is_direct(&sealed, 0x8000));
        // What is mapped past the end is missing from the beginning.
        assert!(!is_direct(&sealed, 0xc000));
        assert!(!is_direct(&unsealed(0x8000), 0x8000));
        let on_disk = tempfile::tempfile().unwrap();
        on_disk.set_len(0x8000).unwrap();
        assert!(!is_direct(&on_disk.into(), 0x8000));
    }

    #[test]
    fn transfers_are_exact_and_seen_by_other_mappings() {
        let (shared, ways) = both_ways(Access::ReadWrite);
        let other = shared.map_all(Access::ReadWrite).unwrap();
        for memory in ways {
            for (offset, length) in
                [(0, 1), (1, 3), (0xfff, 2), (0x3ff0, 0x4010), (0x7fff, 1), (5, 0)]
            {
                other.copy_in(0, &[0; 0x8000]).unwrap();
                let bytes: Vec<u8> = (1..=u8::MAX).cycle().take(length).collect();
                memory.write(offset, &bytes).unwrap();
                let (mut seen, mut read) = (vec![0; length], vec![0; length]);
                other.copy_out(offset, &mut seen).unwrap();
                memory.read(offset, &mut read).unwrap();
                assert_eq!((&seen, &read), (&bytes, &bytes), "{offset:#x}");
            }
        }
    }

    #[test]
    fn transfers_that_are_not_in_the_mapping_or_not_allowed_are_refused() {
        use PeerMemoryError::Window;
        let (_, ways) = both_ways(Access::ReadOnly);
        for memory in ways {
            for (offset, length) in [(0x8000, 1), (0x7fff, 2), (u64::MAX, 1), (0, 0x8001)] {
                let error = memory.read(offset, &mut vec![0; length]).unwrap_err();
                assert!(matches!(error, Window(WindowError::OutOfRange { .. })), "{error}");
            }
            let error = memory.write(0, b"x").unwrap_err();
            assert!(matches!(error, Window(WindowError::ReadOnly)), "{error}");
        }
    }
}
