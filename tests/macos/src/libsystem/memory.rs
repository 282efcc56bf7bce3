//! Memory: mappings by pages of 16 KiB (xnu-11417.101.15, `bsd/kern/kern_mman.c`), and the heap.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use darwin_abi::{Symbol, error, fail, result, set, symbols};

use super::page;
use crate::libsystem::confined::mediated;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_mmap" => mmap,
    "_munmap" => munmap,
    "_mprotect" => mprotect,
    "_malloc" => libc::malloc,
    "_calloc" => libc::calloc,
    "_realloc" => libc::realloc,
    "_free" => libc::free,
    "_posix_memalign" => posix_memalign,
};

/// Numbers of `sys/mman.h`.
mod darwin {
    pub(super) const MAP_SHARED: i32 = 0x1;
    pub(super) const MAP_PRIVATE: i32 = 0x2;
    pub(super) const MAP_FIXED: i32 = 0x10;
    pub(super) const MAP_NORESERVE: i32 = 0x40;
    pub(super) const MAP_ANON: i32 = 0x1000;
}

/// A fixed address must be at a page, or a page and the offset's part of one; a mapping begins where the offset's
/// page does. Shared memory objects are mapped shared and within their length (`bsd/kern/posix_shm.c`).
unsafe extern "C" fn mmap(
    address: usize,
    size: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    mediated!("SYS_mmap");
    // SAFETY: what the caller answers for.
    match unsafe { map(address, size, protection, flags, fd, offset) } {
        Ok(at) => at as *mut c_void,
        Err(errno) => {
            set(errno);
            libc::MAP_FAILED
        }
    }
}

unsafe fn map(
    address: usize,
    size: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> Result<usize, c_int> {
    let anonymous = flags & darwin::MAP_ANON != 0;
    let within = if anonymous { 0 } else { offset as usize % page::SIZE };
    let fixed = flags & darwin::MAP_FIXED != 0;
    let kind = flags & (darwin::MAP_SHARED | darwin::MAP_PRIVATE);
    if size == 0 || !matches!(kind, darwin::MAP_SHARED | darwin::MAP_PRIVATE) {
        return Err(error::EINVAL);
    }
    if fixed && address.wrapping_sub(within) % page::SIZE != 0 {
        return Err(error::EINVAL);
    }
    if !anonymous {
        super::files::shm::may_map(fd, kind == darwin::MAP_SHARED, offset as usize, size)?;
    }
    let mut linux = if kind == darwin::MAP_SHARED { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if flags & darwin::MAP_NORESERVE != 0 {
        linux |= libc::MAP_NORESERVE;
    }
    let whole = page::round(size + within);
    let start = if fixed {
        address - within
    } else {
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        page::map_anywhere(whole, libc::PROT_NONE, reserve).map_err(|_| error::ENOMEM)?
    };
    let (length, fd, offset) = if anonymous {
        linux |= libc::MAP_ANONYMOUS;
        (whole, -1, 0)
    } else {
        (size + within, fd, offset - within as i64)
    };
    // SAFETY: over the room that was made above, or where the caller asks for it and answers for what is there.
    let at = unsafe {
        let flags = linux | libc::MAP_FIXED;
        libc::mmap(start as *mut c_void, length, protection, flags, fd, offset)
    };
    if at == libc::MAP_FAILED {
        let errno = result_errno();
        if !fixed {
            // SAFETY: the room that was made above.
            unsafe { libc::munmap(start as *mut c_void, whole) };
        }
        return Err(errno);
    }
    // What the kernel knows of the task: what an address means to IOKit and to memory entries.
    mach_kernel::unmapped(start as u64, whole as u64);
    if !anonymous && kind == darwin::MAP_SHARED {
        // SAFETY: a descriptor of the caller's, which was just mapped.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        mach_kernel::mapped(start as u64, length as u64, file, offset.unsigned_abs(), most(file));
    }
    Ok(start + within)
}

/// The most that a shared mapping of a descriptor can be protected to.
fn most(file: BorrowedFd<'_>) -> c_int {
    // SAFETY: plain numbers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let write = if flags & libc::O_ACCMODE == libc::O_RDWR { libc::PROT_WRITE } else { 0 };
    libc::PROT_READ | write
}

fn result_errno() -> c_int {
    darwin_abi::from_linux(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

unsafe extern "C" fn munmap(address: usize, size: usize) -> c_int {
    mediated!("SYS_munmap");
    if !address.is_multiple_of(page::SIZE) || size == 0 {
        return fail(error::EINVAL);
    }
    mach_kernel::unmapped(address as u64, page::round(size) as u64);
    // SAFETY: what the caller answers for, in whole pages.
    result(unsafe { libc::munmap(address as *mut c_void, page::round(size)) })
}

unsafe extern "C" fn mprotect(address: usize, size: usize, protection: c_int) -> c_int {
    mediated!("SYS_mprotect");
    if !address.is_multiple_of(page::SIZE) {
        return fail(error::EINVAL);
    }
    // SAFETY: what the caller answers for, in whole pages.
    result(unsafe { libc::mprotect(address as *mut c_void, page::round(size), protection) })
}

unsafe extern "C" fn posix_memalign(
    place: *mut *mut c_void,
    alignment: usize,
    size: usize,
) -> c_int {
    // SAFETY: the caller's place. Its error is the result.
    darwin_abi::from_linux(unsafe { libc::posix_memalign(place, alignment, size) })
}
