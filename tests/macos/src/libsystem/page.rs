//! Pages of 16 KiB, as every arm64 Mac has them, on a host whose own may be smaller.

use std::io;

/// Of Darwin on arm64.
pub(crate) const SIZE: usize = 16384;

/// Up to a whole number of pages.
pub(crate) fn round(size: usize) -> usize {
    size.wrapping_add(SIZE - 1) & !(SIZE - 1)
}

/// Maps anonymous memory at a page of 16 KiB that is free.
pub(crate) fn map_anywhere(size: usize, protection: i32, flags: i32) -> io::Result<usize> {
    let size = round(size);
    let room = size.checked_add(SIZE).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: new memory, where the kernel chooses; what is not needed of it is given back.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), room, protection, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start as usize;
        let aligned = round(start);
        if aligned > start {
            libc::munmap(start as *mut _, aligned - start);
        }
        let end = aligned + size;
        if start + room > end {
            libc::munmap(end as *mut _, start + room - end);
        }
        Ok(aligned)
    }
}
