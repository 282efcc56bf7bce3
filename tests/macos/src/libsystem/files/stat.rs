//! What a file is: `struct stat` of 144 bytes (xnu-11417.101.15, `bsd/sys/stat.h`).

use std::ffi::{c_char, c_int};

use darwin_abi::{Symbol, error, fail, result, symbols};

use super::shm;
use crate::libsystem::confined::mediated;
use crate::libsystem::{kqueue, page};

/// The symbols of this file.
pub(in crate::libsystem) const SYMBOLS: &[Symbol] =
    symbols! { "_stat" => stat, "_lstat" => lstat, "_fstat" => fstat };

#[repr(C)]
struct Time {
    seconds: i64,
    nanoseconds: i64,
}

#[repr(C)]
struct Stat {
    device: i32,
    mode: u16,
    links: u16,
    inode: u64,
    user: u32,
    group: u32,
    special: i32,
    _padding: u32,
    accessed: Time,
    modified: Time,
    changed: Time,
    born: Time,
    size: i64,
    blocks: i64,
    block_size: i32,
    flags: u32,
    generation: u32,
    _spare: i32,
    _spares: [i64; 2],
}

const _: () = assert!(size_of::<Stat>() == 144);

impl Stat {
    fn of(linux: &libc::stat) -> Self {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        Self {
            device: linux.st_dev as i32,
            // The kinds of files have the same numbers.
            mode: linux.st_mode as u16,
            links: u16::try_from(linux.st_nlink).unwrap_or(u16::MAX),
            inode: linux.st_ino,
            user: linux.st_uid,
            group: linux.st_gid,
            special: linux.st_rdev as i32,
            _padding: 0,
            accessed: time(linux.st_atime, linux.st_atime_nsec),
            modified: time(linux.st_mtime, linux.st_mtime_nsec),
            changed: time(linux.st_ctime, linux.st_ctime_nsec),
            born: time(linux.st_ctime, linux.st_ctime_nsec),
            size: linux.st_size,
            blocks: linux.st_blocks,
            block_size: linux.st_blksize,
            flags: 0,
            generation: 0,
            _spare: 0,
            _spares: [0; 2],
        }
    }
}

unsafe fn finish(done: c_int, linux: &libc::stat, to: *mut Stat) -> c_int {
    if result(done) == 0 {
        // SAFETY: the caller's place.
        unsafe { to.write(Stat::of(linux)) };
    }
    done
}

unsafe extern "C" fn stat(path: *const c_char, to: *mut Stat) -> c_int {
    mediated!("SYS_stat64", unsafe {
        crate::libsystem::confined::denies_path("file-read-metadata", path)
    });
    // SAFETY: the caller's string and place.
    unsafe {
        let mut linux = std::mem::zeroed();
        finish(libc::stat(path, &raw mut linux), &linux, to)
    }
}

unsafe extern "C" fn lstat(path: *const c_char, to: *mut Stat) -> c_int {
    mediated!("SYS_lstat64", unsafe {
        crate::libsystem::confined::denies_path("file-read-metadata", path)
    });
    // SAFETY: the caller's string and place.
    unsafe {
        let mut linux = std::mem::zeroed();
        finish(libc::lstat(path, &raw mut linux), &linux, to)
    }
}

/// Of shared memory it is for the sandbox to allow (`bsd/kern/posix_shm.c`, pshm_stat; Seatbelt's operation is
/// ipc-posix-shm-read-metadata), and it has no kind. A kernel queue is a FIFO (`bsd/kern/kern_event.c`, kqueue_stat).
unsafe extern "C" fn fstat(fd: c_int, to: *mut Stat) -> c_int {
    mediated!("SYS_fstat64");
    let object = shm::name(fd);
    if let Some(name) = &object
        && !mach_kernel::permits("ipc-posix-shm-read-metadata", name)
    {
        return fail(error::EPERM);
    }
    // SAFETY: a place of this function's, and the caller's.
    unsafe {
        let mut linux: libc::stat = std::mem::zeroed();
        let done = libc::fstat(fd, &raw mut linux);
        if object.is_some() {
            linux.st_mode &= !libc::S_IFMT;
        } else if kqueue::is(fd) {
            linux.st_mode = libc::S_IFIFO;
            linux.st_size = 0;
        }
        if linux.st_mode & libc::S_IFMT == libc::S_IFREG {
            linux.st_blksize = linux.st_blksize.max(page::SIZE as i32);
        }
        finish(done, &linux, to)
    }
}
