//! Copies through a mapping that may have lost its pages, made by the kernel. None of it has run on
//! a Mac yet: see docs/macos.md.
//!
//! `mach_vm_read_overwrite` and `mach_vm_write` on this task itself: the kernel answers with a code
//! for a page that is not there, where a load or a store of our own would end in SIGBUS. Memory that
//! is shared with other tasks is written in place.
#![expect(unsafe_code, reason = "the two calls take addresses")]

use std::os::fd::BorrowedFd;

use mach2::traps::mach_task_self;
use mach2::vm::{mach_vm_read_overwrite, mach_vm_write};
use rustix::io::Errno;

use super::cannot_shrink;

/// The bits of a mode that say which kind of file it is.
const FILE_TYPE: u16 = 0o170_000;

/// Whether no access to a mapping can ever find a page missing: POSIX shared memory, which has no
/// file type, while a file in a file system can be shortened.
pub(crate) fn cannot_fault(fd: BorrowedFd<'_>) -> bool {
    cannot_shrink(fd) && rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_mode & FILE_TYPE == 0)
}

/// Most bytes of one `mach_vm_write`, whose count has 32 bits.
const PIECE: usize = 1 << 30;

/// Copies from a mapping. After an error some of `into` may be filled.
///
/// # Errors
/// `EFAULT` when a page of the mapping is not there.
///
/// # Safety
/// The addresses from `from` on belong to a mapping of this process that nothing unmaps meanwhile.
pub(crate) unsafe fn copy_from_mapping(from: *const u8, into: &mut [u8]) -> Result<(), Errno> {
    let (length, mut copied) = (into.len() as u64, 0);
    // SAFETY: our own task; the slice is borrowed for writing and `length` long; the caller's
    // promise for `from`; a place for the count.
    let code = unsafe {
        let to = into.as_mut_ptr() as u64;
        mach_vm_read_overwrite(mach_task_self(), from as u64, length, to, &raw mut copied)
    };
    if code == 0 && copied == length { Ok(()) } else { Err(Errno::FAULT) }
}

/// Copies into a mapping. After an error some of it may have been written.
///
/// # Errors
/// `EFAULT` when a page of the mapping is not there.
///
/// # Safety
/// As [`copy_from_mapping`], and no reference leads there.
pub(crate) unsafe fn copy_to_mapping(from: &[u8], to: *mut u8) -> Result<(), Errno> {
    for (at, piece) in (to as u64..).step_by(PIECE).zip(from.chunks(PIECE)) {
        let count = u32::try_from(piece.len()).map_err(|_| Errno::INVAL)?;
        // SAFETY: our own task; the slice lives through the call; the caller's promise for `to`.
        let code = unsafe { mach_vm_write(mach_task_self(), at, piece.as_ptr() as usize, count) };
        if code != 0 {
            return Err(Errno::FAULT);
        }
    }
    Ok(())
}
