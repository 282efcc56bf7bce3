//! Copies on write of shared memory.
#![expect(unsafe_code, reason = "a mapping over another one")]

use std::io;

use rustix::mm::MapFlags;

use crate::SharedMemory;
use crate::window::{Access, WindowError, protection};

/// Shared memory that copies are made of.
pub(crate) struct Copies<'m>(&'m SharedMemory, Access);

impl<'m> Copies<'m> {
    /// Copies have this access.
    ///
    /// # Errors
    /// None here.
    pub(crate) fn of(memory: &'m SharedMemory, access: Access) -> Result<Self, WindowError> {
        Ok(Self(memory, access))
    }

    /// Puts a copy of its first `length` bytes over what is mapped at `to`, in one step.
    ///
    /// # Safety
    /// Whole pages from `to` are mapped, and nobody has a reference into them.
    pub(crate) unsafe fn put(&self, to: *mut u8, length: usize) -> io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the caller answers for the target, which stays mapped.
        let put =
            unsafe { rustix::mm::mmap(to.cast(), length, protection(self.1), flags, self.0, 0) };
        put.map(drop).map_err(Into::into)
    }
}
