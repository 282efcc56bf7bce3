//! Windows: checked volatile access to memory that another process changes at any moment.
//!
//! Every access names an offset and a width, both are checked, and each scalar is one load or one
//! store of its width (P5, P7.5). Mappings are readable and perhaps writable, never executable
//! (P7.6).
//!
//! No reference to plain data in a window is ever formed, since the compiler may assume that such
//! data does not change. The only references are to atomics, in `atomic`.
#![expect(unsafe_code, reason = "raw access to mapped memory is this file's purpose")]

use std::os::fd::{AsFd as _, BorrowedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use crate::SharedMemory;

mod atomic;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only; a store is refused before it faults.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

/// An access or a mapping that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// Past the end, or offset + width wraps.
    #[error("Access of {width} bytes at {offset:#x} does not lie in {length:#x} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        width: u64,
        /// Bytes there are.
        length: u64,
    },
    /// A single load or store of this width needs an aligned offset.
    #[error("Access of {width} bytes at {offset:#x} is not aligned")]
    Misaligned {
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        width: u64,
    },
    /// Memory mapped by somebody else begins where no window can.
    #[error("Memory at {address:#x} is not aligned to {alignment} bytes and cannot be a window")]
    Base {
        /// Where it begins.
        address: usize,
        /// What the address must be a multiple of.
        alignment: usize,
    },
    /// Widths are 1, 2, 4 and 8.
    #[error("Access width {0} is not 1, 2, 4 or 8")]
    Width(u64),
    /// A store to a read-only window.
    #[error("The window is read-only")]
    ReadOnly,
    /// The mapping failed.
    #[error("Cannot map {length:#x} bytes at {offset:#x}")]
    Map {
        /// Offset in the memory.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

mod private {
    pub trait Sealed: Copy {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// An integer that is loaded and stored in one access.
pub trait Scalar: private::Sealed {}
impl Scalar for u8 {}
impl Scalar for u16 {}
impl Scalar for u32 {}
impl Scalar for u64 {}

/// A mapping of shared memory. Unmapped on drop.
#[derive(Debug)]
pub struct Window {
    /// Aligned to [`Window::ALIGNMENT`].
    base: NonNull<u8>,
    length: usize,
    /// Bytes that are mapped before it.
    before: usize,
    /// Bytes that mappings of its memory are made of.
    granule: usize,
    access: Access,
    /// Who unmaps it, where that is not us.
    owner: Option<Box<dyn Owner>>,
}

/// Keeps a mapping that is not ours, and takes it back when it is dropped.
pub trait Owner: Send + Sync {}
impl<T: Send + Sync> Owner for T {}

impl std::fmt::Debug for dyn Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Owner")
    }
}

// SAFETY: the window owns its mapping, which stays valid wherever the value moves.
unsafe impl Send for Window {}
// SAFETY: all access through `&self` is volatile or atomic on memory that is shared with other
// processes anyway; the only references formed to its content are to atomics.
unsafe impl Sync for Window {}

impl Window {
    /// What every window's base is a multiple of: the widest scalar, so that whether an access is
    /// aligned is a property of its offset.
    pub const ALIGNMENT: usize = 8;

    /// Maps `length` bytes of `fd` from `offset`. Use [`crate::SharedMemory::map`], which checks
    /// the range against the size.
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
    ) -> Result<Self, WindowError> {
        let failed = |source| WindowError::Map { offset, length: length as u64, source };
        let granule = crate::sys::granule(fd);
        // An offset that is no multiple of a page is for the kernel to refuse.
        let before = match usize::try_from(offset % granule as u64).unwrap_or(0) {
            before if before.is_multiple_of(rustix::param::page_size()) => before,
            _ => 0,
        };
        let whole =
            before.checked_add(length).and_then(|all| all.checked_next_multiple_of(granule));
        let whole = whole.ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        let (protection, from) = (protection(access), offset - before as u64);
        // SAFETY: a fresh mapping at an address the kernel chooses overlaps nothing of ours, and
        // the arguments are plain values that the kernel checks.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), whole, protection, MapFlags::SHARED, fd, from)
        };
        let base = base.map_err(|error| failed(error.into()))?;
        // SAFETY: `before` bytes lie in what was mapped.
        let base = NonNull::new(unsafe { base.cast::<u8>().add(before) });
        let base = base.ok_or_else(|| failed(std::io::Error::other("mapped at 0")))?;
        Ok(Self { base, length, before, granule, access, owner: None })
    }

    /// Whether `fd` lets a mapping with `access` be made of it from `offset` on: nothing of it stays, and no memory is
    /// set aside.
    pub(crate) fn may_map(
        fd: BorrowedFd<'_>,
        offset: u64,
        access: Access,
    ) -> Result<(), WindowError> {
        let granule = crate::sys::granule(fd);
        let failed = |error: rustix::io::Errno| WindowError::Map {
            offset,
            length: granule as u64,
            source: error.into(),
        };
        let (flags, from) =
            (MapFlags::SHARED | MapFlags::NORESERVE, offset - offset % granule as u64);
        // SAFETY: as in `map`.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), granule, protection(access), flags, fd, from)
        };
        let base = base.map_err(failed)?;
        // SAFETY: it was mapped above, and nobody knows of it.
        unsafe { rustix::mm::munmap(base, granule) }.map_err(failed)
    }

    /// Memory that somebody else mapped, and unmaps when `owner` is dropped. It need not begin at a
    /// page: a BAR smaller than one begins where the device's resource does.
    ///
    /// # Errors
    /// [`WindowError::Base`] unless it begins at a multiple of [`Window::ALIGNMENT`]; `owner` is
    /// then dropped, and the memory with it.
    ///
    /// # Safety
    /// From `base` on `length` bytes are mapped with `access` for as long as `owner` lives, and
    /// nobody forms a reference into them other than to an atomic.
    pub unsafe fn foreign(
        base: NonNull<u8>,
        length: usize,
        access: Access,
        owner: Box<dyn Owner>,
    ) -> Result<Self, WindowError> {
        let (address, alignment) = (base.as_ptr() as usize, Self::ALIGNMENT);
        if !address.is_multiple_of(alignment) {
            return Err(WindowError::Base { address, alignment });
        }
        Ok(Self { base, length, before: 0, granule: 1, access, owner: Some(owner) })
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Where it is mapped in this process: what a DMA registration names (spec: "address in the
    /// client's task").
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Puts other memory under the same addresses, in one step: whoever maps this window on, a
    /// hypervisor for its guest, sees the other memory from here on.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`] when `memory` does not hold the window's length from `offset`,
    /// [`WindowError::Map`]; the window is then as it was.
    pub fn replace(&self, memory: &SharedMemory, offset: u64) -> Result<(), WindowError> {
        let width = self.length as u64;
        if offset.checked_add(width).is_none_or(|end| end > memory.size()) {
            return Err(WindowError::OutOfRange { offset, width, length: memory.size() });
        }
        self.put(memory.as_fd(), offset)
    }

    /// Puts copies of `pattern` under the same addresses, one after the other. Stores go to these
    /// copies and nowhere else.
    ///
    /// # Errors
    /// [`WindowError::Map`]; what was replaced until then stays replaced.
    pub fn replace_with_copies(&self, pattern: &SharedMemory) -> Result<(), WindowError> {
        let step = usize::try_from(pattern.size()).unwrap_or(usize::MAX).max(1);
        let copies = crate::sys::Copies::of(pattern, self.access)?;
        let mut at = 0;
        while at < self.length {
            let length = step.min(self.length - at);
            let to = self.at(at as u64, length)?;
            // SAFETY: `at` checked that the pages from `to` are this window's own mapping, which is
            // never behind a reference.
            let put = unsafe { copies.put(to, length) };
            let failed = |source| WindowError::Map { offset: 0, length: length as u64, source };
            put.map_err(failed)?;
            at += length;
        }
        Ok(())
    }

    /// Puts what a descriptor has from `offset` on under the same addresses. Whether it has that is checked
    /// by who calls this.
    pub(crate) fn put(&self, memory: BorrowedFd<'_>, offset: u64) -> Result<(), WindowError> {
        let to = self.at(0, self.length)?;
        // SAFETY: `at` checked that the pages from `to` are this window's own mapping, which is
        // never behind a reference; MAP_FIXED puts others in their place and leaves ours mapped.
        let put = unsafe {
            let (flags, protection) = (MapFlags::SHARED | MapFlags::FIXED, protection(self.access));
            rustix::mm::mmap(to.cast(), self.length, protection, flags, memory, offset)
        };
        let length = self.length as u64;
        put.map(drop).map_err(|error| WindowError::Map { offset, length, source: error.into() })
    }

    /// Checks a range and gives the pointer to its first byte, valid for `width` bytes.
    fn at(&self, offset: u64, width: usize) -> Result<*mut u8, WindowError> {
        let out_of_range =
            WindowError::OutOfRange { offset, width: width as u64, length: self.length as u64 };
        let Ok(start) = usize::try_from(offset) else {
            return Err(out_of_range);
        };
        match start.checked_add(width) {
            // SAFETY: start <= end <= length, so the result lies in the mapping or one past it.
            Some(end) if end <= self.length => Ok(unsafe { self.base.as_ptr().add(start) }),
            _ => Err(out_of_range),
        }
    }

    fn scalar_at<T: Scalar>(&self, offset: u64) -> Result<*mut T, WindowError> {
        let width = size_of::<T>();
        let pointer = self.at(offset, width)?;
        // The base is aligned for every scalar, so alignment is a property of the offset.
        if !offset.is_multiple_of(width as u64) {
            return Err(WindowError::Misaligned { offset, width: width as u64 });
        }
        Ok(pointer.cast())
    }

    fn writable(&self) -> Result<(), WindowError> {
        if self.access == Access::ReadWrite { Ok(()) } else { Err(WindowError::ReadOnly) }
    }

    /// One load.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`] or [`WindowError::Misaligned`].
    pub fn read<T: Scalar>(&self, offset: u64) -> Result<T, WindowError> {
        let pointer = self.scalar_at::<T>(offset)?;
        // SAFETY: `scalar_at` checked range and alignment; any bit pattern is a valid integer.
        Ok(unsafe { pointer.read_volatile() })
    }

    /// One store.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`], [`WindowError::Misaligned`] or [`WindowError::ReadOnly`].
    pub fn write<T: Scalar>(&self, offset: u64, value: T) -> Result<(), WindowError> {
        self.writable()?;
        let pointer = self.scalar_at::<T>(offset)?;
        // SAFETY: `scalar_at` checked range and alignment, `writable` the protection.
        unsafe { pointer.write_volatile(value) };
        Ok(())
    }

    /// One load of `width` bytes, 1, 2, 4 or 8, zero-extended.
    ///
    /// # Errors
    /// As [`Window::read`], and [`WindowError::Width`].
    pub fn read_width(&self, offset: u64, width: u8) -> Result<u64, WindowError> {
        match width {
            1 => self.read::<u8>(offset).map(u64::from),
            2 => self.read::<u16>(offset).map(u64::from),
            4 => self.read::<u32>(offset).map(u64::from),
            8 => self.read::<u64>(offset),
            other => Err(WindowError::Width(other.into())),
        }
    }

    /// One store of the low `width` bytes of `value`.
    ///
    /// # Errors
    /// As [`Window::write`], and [`WindowError::Width`].
    #[expect(clippy::cast_possible_truncation, reason = "the low bytes are what is stored")]
    pub fn write_width(&self, offset: u64, width: u8, value: u64) -> Result<(), WindowError> {
        match width {
            1 => self.write(offset, value as u8),
            2 => self.write(offset, value as u16),
            4 => self.write(offset, value as u32),
            8 => self.write(offset, value),
            other => Err(WindowError::Width(other.into())),
        }
    }

    /// Copies out of the window. Bytes that change meanwhile come out as either value.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<(), WindowError> {
        let mut from = self.at(offset, into.len())?.cast_const();
        let (head, body) = into.split_at_mut(lead(from, into.len()));
        for byte in head {
            // SAFETY: `at` checked the range for the whole slice; `from` advances inside it.
            unsafe {
                *byte = from.read_volatile();
                from = from.add(1);
            }
        }
        let mut words = body.chunks_exact_mut(8);
        for word in &mut words {
            // SAFETY: as above, and `lead` made `from` 8-byte aligned; it advances by 8.
            unsafe {
                word.copy_from_slice(&from.cast::<u64>().read_volatile().to_ne_bytes());
                from = from.add(8);
            }
        }
        for byte in words.into_remainder() {
            // SAFETY: as for the head.
            unsafe {
                *byte = from.read_volatile();
                from = from.add(1);
            }
        }
        Ok(())
    }

    /// Copies into the window.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`] or [`WindowError::ReadOnly`].
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> Result<(), WindowError> {
        self.writable()?;
        let mut to = self.at(offset, from.len())?;
        let (head, body) = from.split_at(lead(to, from.len()));
        for byte in head {
            // SAFETY: `at` checked the range for the whole slice; `to` advances inside it.
            unsafe {
                to.write_volatile(*byte);
                to = to.add(1);
            }
        }
        let (words, tail) = body.as_chunks::<8>();
        for word in words {
            // SAFETY: as above, and `lead` made `to` 8-byte aligned; it advances by 8.
            unsafe {
                to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
                to = to.add(8);
            }
        }
        for byte in tail {
            // SAFETY: as for the head.
            unsafe {
                to.write_volatile(*byte);
                to = to.add(1);
            }
        }
        Ok(())
    }
}

/// Never executable (P7.6).
pub(crate) fn protection(access: Access) -> ProtFlags {
    match access {
        Access::ReadOnly => ProtFlags::READ,
        Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
    }
}

/// Bytes before `pointer` is 8-byte aligned, at most `length`.
fn lead(pointer: *const u8, length: usize) -> usize {
    pointer.align_offset(8).min(length)
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.owner.take().is_some() {
            return;
        }
        let whole = (self.before + self.length).next_multiple_of(self.granule);
        // SAFETY: the range is exactly what `map` mapped, and nothing borrows from it.
        let _ = unsafe {
            let base = self.base.as_ptr().sub(self.before);
            rustix::mm::munmap(base.cast(), whole)
        };
    }
}

#[cfg(test)]
mod tests;
