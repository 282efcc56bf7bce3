//! Copies through a mapping that may have lost its pages, made by the kernel.
//!
//! `process_vm_readv` and `process_vm_writev`, with this process at both ends: the kernel looks every
//! page of the mapping up and answers `EFAULT` for one that is not there, where a load or a store of
//! our own would end in SIGBUS. A process may always do so to itself.
#![expect(unsafe_code, reason = "the two calls take addresses")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::fs::FsWord;
use rustix::io::Errno;

use super::cannot_shrink;

/// What `fstatfs` says of ordinary memory.
const TMPFS: FsWord = 0x0102_1994;

/// Whether no access to a mapping can ever find a page missing: ordinary memory that cannot shrink.
/// Of huge pages there may be none left for a hole that was punched.
pub(crate) fn cannot_fault(fd: BorrowedFd<'_>) -> bool {
    cannot_shrink(fd) && rustix::fs::fstatfs(fd).is_ok_and(|system| system.f_type == TMPFS)
}

/// One of the two calls, which have the same shape: which process, what here, what there, flags.
type Call = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

/// Copies from a mapping. After an error some of `into` may be filled.
///
/// # Errors
/// `EFAULT` when a page of the mapping is not there.
///
/// # Safety
/// The addresses from `from` on belong to a mapping of this process that nothing unmaps meanwhile.
pub(crate) unsafe fn copy_from_mapping(from: *const u8, into: &mut [u8]) -> Result<(), Errno> {
    let local = into.as_mut_ptr().cast();
    // SAFETY: `local` is the slice, which is borrowed for writing; the caller's promise.
    unsafe { copy(libc::process_vm_readv, local, from.cast_mut().cast(), into.len()) }
}

/// Copies into a mapping. After an error some of it may have been written.
///
/// # Errors
/// `EFAULT` when a page of the mapping is not there.
///
/// # Safety
/// As [`copy_from_mapping`], and no reference leads there.
pub(crate) unsafe fn copy_to_mapping(from: &[u8], to: *mut u8) -> Result<(), Errno> {
    let local = from.as_ptr().cast_mut().cast();
    // SAFETY: `local` is the slice, which `process_vm_writev` only reads; the caller's promise.
    unsafe { copy(libc::process_vm_writev, local, to.cast(), from.len()) }
}

/// # Safety
/// From `local` and from `remote` on there are `length` bytes that `call` may use as it does.
unsafe fn copy(
    call: Call,
    local: *mut c_void,
    remote: *mut c_void,
    length: usize,
) -> Result<(), Errno> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut done = 0;
    while done < length {
        let part = |base: *mut c_void| libc::iovec {
            iov_base: base.wrapping_byte_add(done),
            iov_len: length - done,
        };
        let (here, there) = (part(local), part(remote));
        // SAFETY: one vector each, which live through the call; what they span is the caller's
        // promise.
        let copied = unsafe { call(own, &raw const here, 1, &raw const there, 1, 0) };
        match usize::try_from(copied) {
            Ok(0) => return Err(Errno::FAULT),
            // It stops at the page that is not there; the next call says so.
            Ok(copied) => done += copied,
            Err(_) => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                error => return Err(error.unwrap_or(Errno::FAULT)),
            },
        }
    }
    Ok(())
}
