//! Atomic access to windows: the one place that forms references into them.
//!
//! A reference to an atomic may point to memory that others change at any moment, one to plain data
//! may not.
#![expect(unsafe_code, reason = "atomics in mapped memory")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Window, WindowError};

impl Window {
    /// The word at `offset`, for one atomic operation.
    fn atomic_u64(&self, offset: u64) -> Result<&AtomicU64, WindowError> {
        self.writable()?;
        let word = self.scalar_at::<u64>(offset)?;
        // SAFETY: `scalar_at` checked range and alignment, `writable` the protection; the mapping
        // lives as long as the borrow of `self`. Nothing but this module accesses it in this
        // process, by volatile or atomic operations; other processes change it as a device would,
        // which an atomic allows.
        Ok(unsafe { AtomicU64::from_ptr(word) })
    }

    /// The half word at `offset`, for one atomic operation.
    fn atomic_u32(&self, offset: u64) -> Result<&AtomicU32, WindowError> {
        self.writable()?;
        let word = self.scalar_at::<u32>(offset)?;
        // SAFETY: as in `atomic_u64`.
        Ok(unsafe { AtomicU32::from_ptr(word) })
    }

    /// `count` words from `offset`, for whoever accesses them by nothing but atomic operations.
    ///
    /// # Errors
    /// As [`Window::write`].
    pub(crate) fn words(&self, offset: u64, count: usize) -> Result<&[AtomicU64], WindowError> {
        self.writable()?;
        let bytes = count.saturating_mul(size_of::<AtomicU64>());
        self.at(offset, bytes)?;
        let first: *const AtomicU64 = self.scalar_at::<u64>(offset)?.cast();
        // SAFETY: `at` checked the range and `scalar_at` the alignment, else as in `atomic_u64`.
        Ok(unsafe { std::slice::from_raw_parts(first, count) })
    }

    /// Atomically replaces a word and returns the old one.
    ///
    /// # Errors
    /// As [`Window::write`].
    pub fn swap_u64(&self, offset: u64, value: u64) -> Result<u64, WindowError> {
        Ok(self.atomic_u64(offset)?.swap(value, Ordering::AcqRel))
    }

    /// Atomically sets bits and returns the old word.
    ///
    /// # Errors
    /// As [`Window::write`].
    pub fn set_bits_u64(&self, offset: u64, bits: u64) -> Result<u64, WindowError> {
        Ok(self.atomic_u64(offset)?.fetch_or(bits, Ordering::AcqRel))
    }

    /// Atomic load that sees what was stored before the value it returns.
    ///
    /// # Errors
    /// As [`Window::write`]: atomics are for windows that both sides write.
    pub fn load_u64(&self, offset: u64) -> Result<u64, WindowError> {
        Ok(self.atomic_u64(offset)?.load(Ordering::Acquire))
    }

    /// Atomic store that publishes everything stored before it.
    ///
    /// # Errors
    /// As [`Window::write`].
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), WindowError> {
        self.atomic_u64(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Atomic 32-bit store that publishes everything stored before it: a doorbell.
    ///
    /// # Errors
    /// As [`Window::write`].
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), WindowError> {
        self.atomic_u32(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Atomic 32-bit load that sees what was stored before the value it returns.
    ///
    /// # Errors
    /// As [`Window::write`].
    pub fn load_u32(&self, offset: u64) -> Result<u32, WindowError> {
        Ok(self.atomic_u32(offset)?.load(Ordering::Acquire))
    }
}
