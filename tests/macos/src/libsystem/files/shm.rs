//! POSIX shared memory by the rules of `bsd/kern/posix_shm.c` (xnu-11417.101.15).

use std::ffi::{CStr, c_char, c_int};

use darwin_abi::descriptors::given;
use darwin_abi::{Symbol, error, fail, result, symbols};

use crate::libsystem::confined::mediated;
use crate::libsystem::page;

/// The symbols of this file.
pub(in crate::libsystem) const SYMBOLS: &[Symbol] = symbols! {
    "_shm_open" => open,
    "_shm_unlink" => unlink,
    "_ftruncate" => ftruncate,
};

/// PSHMNAMLEN.
const NAME: usize = 31;

/// Objects have names of at most 31 bytes.
unsafe extern "C" fn open(
    name: *const c_char,
    flags: c_int,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    mode: u32,
) -> c_int {
    mediated!("SYS_shm_open", unsafe {
        crate::libsystem::confined::denies_path("ipc-posix-shm-read-data", name)
    });
    // SAFETY: the caller's string.
    if unsafe { CStr::from_ptr(name) }.count_bytes() > NAME {
        return fail(error::ENAMETOOLONG);
    }
    // SAFETY: as above; `mode` is not used unless the flags say that it was given.
    given(result(unsafe { libc::shm_open(name, super::to_linux(flags), mode & 0o7777) }))
}

unsafe extern "C" fn unlink(name: *const c_char) -> c_int {
    mediated!("SYS_shm_unlink");
    // SAFETY: the caller's string.
    result(unsafe { libc::shm_unlink(name) })
}

/// The name of the object that a descriptor is of, if it is one.
pub(in crate::libsystem) fn name(fd: c_int) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let path = path.to_str()?.strip_prefix("/dev/shm")?;
    Some(path.trim_end_matches(" (deleted)").to_owned())
}

fn size(fd: c_int) -> Result<usize, c_int> {
    // SAFETY: a place for what is asked.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut stat) != 0 {
            return Err(error::EBADF);
        }
        Ok(stat.st_size as usize)
    }
}

/// The length of an object is set once, in whole pages.
extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    mediated!("SYS_ftruncate");
    if name(fd).is_none() {
        // SAFETY: plain numbers.
        return result(unsafe { libc::ftruncate(fd, length) });
    }
    let Ok(length) = usize::try_from(length) else { return fail(error::EINVAL) };
    match size(fd) {
        // SAFETY: plain numbers.
        Ok(0) => result(unsafe { libc::ftruncate(fd, page::round(length) as i64) }),
        Ok(_) => fail(error::EINVAL),
        Err(errno) => fail(errno),
    }
}

/// An object is mapped shared, and not beyond its length.
pub(in crate::libsystem) fn may_map(
    fd: c_int,
    shared: bool,
    offset: usize,
    length: usize,
) -> Result<(), c_int> {
    if name(fd).is_none() {
        return Ok(());
    }
    let whole = size(fd)?;
    let end = offset.checked_add(length);
    if shared && whole > 0 && end.is_some_and(|end| end <= whole) {
        Ok(())
    } else {
        Err(error::EINVAL)
    }
}
