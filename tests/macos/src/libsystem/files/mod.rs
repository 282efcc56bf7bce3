//! Files and descriptors: Darwin's flags and requests (xnu-11417.101.15, `bsd/sys/fcntl.h`, `bsd/sys/filio.h`).

pub(super) mod directories;
mod no_sigpipe;
pub(super) mod shm;
pub(super) mod stat;

use std::ffi::{c_char, c_int, c_ulong, c_void};

use darwin_abi::descriptors::{closing, given, is_given};
use darwin_abi::{Symbol, error, fail, result, symbols};

use super::runner::lacks;
use super::signals;
use crate::libsystem::confined::mediated;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_open" => open,
    "_openat" => openat,
    "_close" => close,
    "_read" => read,
    "_write" => write,
    "_readv" => readv,
    "_writev" => writev,
    "_pread" => pread,
    "_pwrite" => pwrite,
    "_lseek" => lseek,
    "_dup" => dup,
    "_dup2" => dup2,
    "_pipe" => pipe,
    "_fcntl" => fcntl,
    "_ioctl" => ioctl,
    "_isatty" => isatty,
    "_flock" => flock,
    "_unlink" => unlink,
    "_unlinkat" => unlinkat,
    "_mkdir" => mkdir,
    "_chmod" => chmod,
    "_fchownat" => fchownat,
    "_chdir" => chdir,
    "_chroot" => chroot,
    "_getcwd" => getcwd,
    "_readlink" => readlink,
    "_symlink" => symlink,
};

/// Flags of `open` and of a descriptor's status: Darwin's, Linux's.
const FLAGS: [(c_int, c_int); 10] = [
    (0x4, libc::O_NONBLOCK),
    (0x8, libc::O_APPEND),
    (0x40, libc::O_ASYNC),
    (0x100, libc::O_NOFOLLOW),
    (0x200, libc::O_CREAT),
    (0x400, libc::O_TRUNC),
    (0x800, libc::O_EXCL),
    (0x2_0000, libc::O_NOCTTY),
    (0x10_0000, libc::O_DIRECTORY),
    (0x100_0000, libc::O_CLOEXEC),
];

/// Linux's flags for Darwin's.
pub(super) fn to_linux(flags: c_int) -> c_int {
    let known = FLAGS.iter().fold(libc::O_ACCMODE, |all, (darwin, _)| all | darwin);
    if flags & !known != 0 {
        lacks(format_args!("open with flags {flags:#x}"));
    }
    let set = FLAGS.iter().filter(|(darwin, _)| flags & darwin != 0);
    set.fold(flags & libc::O_ACCMODE, |all, (_, linux)| all | linux)
}

fn from_linux(flags: c_int) -> c_int {
    let set = FLAGS.iter().filter(|(_, linux)| flags & linux != 0);
    set.fold(flags & libc::O_ACCMODE, |all, (darwin, _)| all | darwin)
}

unsafe extern "C" fn open(
    path: *const c_char,
    flags: c_int,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    mode: u32,
) -> c_int {
    mediated!("SYS_open", unsafe { crate::libsystem::confined::denies_path(opening(flags), path) });
    // SAFETY: the caller's string; `mode` is not used unless the flags say that it was given.
    given(result(unsafe { libc::open(path, to_linux(flags), mode & 0o7777) }))
}

unsafe extern "C" fn openat(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    mode: u32,
) -> c_int {
    mediated!("SYS_openat", unsafe {
        crate::libsystem::confined::denies_path(opening(flags), path)
    });
    // SAFETY: as above.
    given(result(unsafe { libc::openat(at(folder), path, to_linux(flags), mode & 0o7777) }))
}

/// AT_FDCWD is -2.
pub(super) fn at(folder: c_int) -> c_int {
    if folder == -2 { libc::AT_FDCWD } else { folder }
}

extern "C" fn close(fd: c_int) -> c_int {
    mediated!("SYS_close");
    if fd >= darwin_abi::HIDDEN {
        // What the runner has there is nothing to the program.
        return fail(error::EBADF);
    }
    super::kqueue::forget(fd);
    closing(fd);
    // SAFETY: the caller's descriptor.
    result(unsafe { libc::close(fd) })
}

unsafe extern "C" fn read(fd: c_int, buffer: *mut c_void, size: usize) -> isize {
    mediated!("SYS_read");
    // SAFETY: the caller's buffer.
    result(unsafe { libc::read(fd, buffer, size) })
}

/// What opening with these flags of Darwin's is to the sandbox.
fn opening(flags: c_int) -> &'static str {
    const O_ACCMODE: c_int = 3;
    const O_CREAT: c_int = 0x200;
    match (flags & O_CREAT != 0, flags & O_ACCMODE) {
        (true, _) => "file-write-create",
        (false, 0) => "file-read-data",
        (false, _) => "file-write-data",
    }
}

unsafe extern "C" fn readv(fd: c_int, buffers: *const libc::iovec, count: c_int) -> isize {
    mediated!("SYS_readv");
    // SAFETY: the caller's buffers; the layout is the same.
    result(unsafe { libc::readv(fd, buffers, count) })
}

/// On a socket with SO_NOSIGPIPE it raises no signal, which only a send can do here.
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, size: usize) -> isize {
    mediated!("SYS_write");
    if signals::pipe_kills() && super::sockets::has_no_sigpipe(fd) {
        // SAFETY: the caller's buffer.
        return result(unsafe { libc::send(fd, buffer, size, libc::MSG_NOSIGNAL) });
    }
    if signals::pipe_kills() && no_sigpipe::is_set(fd) {
        // SAFETY: the caller's buffer.
        return result(unsafe { no_sigpipe::write(fd, buffer, size) });
    }
    // SAFETY: the caller's buffer.
    result(unsafe { libc::write(fd, buffer, size) })
}

unsafe extern "C" fn writev(fd: c_int, buffers: *const libc::iovec, count: c_int) -> isize {
    mediated!("SYS_writev");
    if signals::pipe_kills() && super::sockets::has_no_sigpipe(fd) {
        // SAFETY: a header of zeros but for the caller's buffers.
        return result(unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = buffers.cast_mut();
            header.msg_iovlen = count as usize;
            libc::sendmsg(fd, &raw const header, libc::MSG_NOSIGNAL)
        });
    }
    // SAFETY: the caller's buffers.
    result(unsafe { libc::writev(fd, buffers, count) })
}

unsafe extern "C" fn pread(fd: c_int, buffer: *mut c_void, size: usize, offset: i64) -> isize {
    mediated!("SYS_pread");
    // SAFETY: the caller's buffer.
    result(unsafe { libc::pread(fd, buffer, size, offset) })
}

unsafe extern "C" fn pwrite(fd: c_int, buffer: *const c_void, size: usize, offset: i64) -> isize {
    mediated!("SYS_pwrite");
    // SAFETY: the caller's buffer.
    result(unsafe { libc::pwrite(fd, buffer, size, offset) })
}

extern "C" fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64 {
    mediated!("SYS_lseek");
    // SAFETY: plain numbers. SEEK_HOLE and SEEK_DATA have each other's numbers.
    let whence = match whence {
        3 => libc::SEEK_HOLE,
        4 => libc::SEEK_DATA,
        other => other,
    };
    // SAFETY: plain numbers.
    result(unsafe { libc::lseek(fd, offset, whence) })
}

extern "C" fn dup(fd: c_int) -> c_int {
    mediated!("SYS_dup");
    // SAFETY: plain numbers.
    let new = given(result(unsafe { libc::dup(fd) }));
    super::kqueue::duplicated(fd, new);
    new
}

extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    mediated!("SYS_dup2");
    if fd != to {
        super::kqueue::forget(to);
    }
    // SAFETY: plain numbers.
    let new = given(result(unsafe { libc::dup2(fd, to) }));
    super::kqueue::duplicated(fd, new);
    new
}

unsafe extern "C" fn pipe(ends: *mut c_int) -> c_int {
    mediated!("SYS_pipe");
    // SAFETY: the caller's two places.
    unsafe {
        let done = result(libc::pipe(ends));
        if done == 0 {
            given(ends.read());
            given(ends.add(1).read());
        }
        done
    }
}

unsafe extern "C" fn fcntl(
    fd: c_int,
    request: c_int,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    argument: usize,
) -> c_int {
    mediated!("SYS_fcntl");
    const F_DUPFD: c_int = 0;
    const F_GETFD: c_int = 1;
    const F_SETFD: c_int = 2;
    const F_GETFL: c_int = 3;
    const F_SETFL: c_int = 4;
    const F_FULLFSYNC: c_int = 51;
    const F_GETPATH: c_int = 50;
    const F_DUPFD_CLOEXEC: c_int = 67;
    const F_SETNOSIGPIPE: c_int = 73;
    const F_GETNOSIGPIPE: c_int = 74;
    // mac_file_check_fcntl (bsd/kern/kern_descrip.c): which commands is the profile's to say.
    let command = match request {
        F_DUPFD => "F_DUPFD",
        F_GETFD => "F_GETFD",
        F_SETFD => "F_SETFD",
        F_GETFL => "F_GETFL",
        F_SETFL => "F_SETFL",
        F_FULLFSYNC => "F_FULLFSYNC",
        F_GETPATH => "F_GETPATH",
        F_DUPFD_CLOEXEC => "F_DUPFD_CLOEXEC",
        F_SETNOSIGPIPE => "F_SETNOSIGPIPE",
        F_GETNOSIGPIPE => "F_GETNOSIGPIPE",
        _ => lacks(format_args!("fcntl request {request}")),
    };
    if super::confined::denies("system-fcntl", command) {
        return fail(error::EPERM);
    }
    let number = argument as c_int;
    if fd >= darwin_abi::HIDDEN {
        // What the runner has there is nothing to the program.
        return fail(error::EBADF);
    }
    // SAFETY: plain numbers, and the caller's buffer of MAXPATHLEN bytes for F_GETPATH.
    unsafe {
        match request {
            F_DUPFD | F_DUPFD_CLOEXEC => {
                let request =
                    if request == F_DUPFD { libc::F_DUPFD } else { libc::F_DUPFD_CLOEXEC };
                let new = given(result(libc::fcntl(fd, request, number)));
                super::kqueue::duplicated(fd, new);
                new
            }
            F_GETFD if !is_given(fd) => fail(error::EBADF),
            F_GETFD => result(libc::fcntl(fd, libc::F_GETFD)),
            F_SETFD => result(libc::fcntl(fd, libc::F_SETFD, number)),
            F_GETFL => match result(libc::fcntl(fd, libc::F_GETFL)) {
                -1 => -1,
                flags => from_linux(flags),
            },
            F_SETFL => result(libc::fcntl(fd, libc::F_SETFL, to_linux(number))),
            F_FULLFSYNC => result(libc::fsync(fd)),
            F_GETPATH => path_of(fd, argument as *mut u8),
            F_SETNOSIGPIPE if super::sockets::is_socket(fd) => {
                result(super::sockets::set_no_sigpipe(fd, number != 0))
            }
            F_SETNOSIGPIPE => result(no_sigpipe::set(fd, number != 0)),
            F_GETNOSIGPIPE if super::sockets::is_socket(fd) => {
                super::sockets::has_no_sigpipe(fd).into()
            }
            F_GETNOSIGPIPE => no_sigpipe::is_set(fd).into(),
            _ => lacks(format_args!("fcntl request {request}")),
        }
    }
}

/// F_GETPATH.
unsafe fn path_of(fd: c_int, buffer: *mut u8) -> c_int {
    const MAXPATHLEN: usize = 1024;
    match std::fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(path) => {
            use std::os::unix::ffi::OsStrExt as _;
            let bytes = path.as_os_str().as_bytes();
            if bytes.len() >= MAXPATHLEN {
                return fail(error::ENAMETOOLONG);
            }
            // SAFETY: the caller's buffer of MAXPATHLEN bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, bytes.len());
                buffer.add(bytes.len()).write(0);
            }
            0
        }
        Err(_) => fail(error::EBADF),
    }
}

unsafe extern "C" fn ioctl(
    fd: c_int,
    request: c_ulong,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    argument: *mut c_void,
) -> c_int {
    mediated!("SYS_ioctl");
    const FIOCLEX: c_ulong = 0x2000_6601;
    const FIONBIO: c_ulong = 0x8004_667e;
    const FIONREAD: c_ulong = 0x4004_667f;
    const TIOCGWINSZ: c_ulong = 0x4008_7468;
    // SAFETY: the caller's argument, of the request's type; the layouts are the same.
    unsafe {
        match request {
            FIOCLEX => result(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC)),
            FIONBIO => result(libc::ioctl(fd, libc::FIONBIO, argument)),
            FIONREAD => result(libc::ioctl(fd, libc::FIONREAD, argument)),
            TIOCGWINSZ => result(libc::ioctl(fd, libc::TIOCGWINSZ, argument)),
            _ => lacks(format_args!("ioctl request {request:#x}")),
        }
    }
}

extern "C" fn isatty(fd: c_int) -> c_int {
    // SAFETY: plain numbers.
    let is = unsafe { libc::isatty(fd) };
    if is == 0 {
        result(-1);
    }
    is
}

extern "C" fn flock(fd: c_int, operation: c_int) -> c_int {
    mediated!("SYS_flock");
    // SAFETY: plain numbers, which are the same.
    result(unsafe { libc::flock(fd, operation) })
}

unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    mediated!("SYS_unlink", unsafe {
        crate::libsystem::confined::denies_path("file-write-unlink", path)
    });
    // SAFETY: the caller's string.
    result(unsafe { libc::unlink(path) })
}

unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    mediated!("SYS_unlinkat", unsafe {
        crate::libsystem::confined::denies_path("file-write-unlink", path)
    });
    const AT_REMOVEDIR: c_int = 0x80;
    let flags = if flags & AT_REMOVEDIR != 0 { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: the caller's string.
    result(unsafe { libc::unlinkat(at(folder), path, flags) })
}

unsafe extern "C" fn fchownat(
    folder: c_int,
    path: *const c_char,
    user: u32,
    group: u32,
    flags: c_int,
) -> c_int {
    mediated!("SYS_fchownat", unsafe {
        crate::libsystem::confined::denies_path("file-write-owner", path)
    });
    const AT_SYMLINK_NOFOLLOW: c_int = 0x20;
    let flags = if flags & AT_SYMLINK_NOFOLLOW != 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    // SAFETY: the caller's string.
    result(unsafe { libc::fchownat(at(folder), path, user, group, flags) })
}

unsafe extern "C" fn mkdir(path: *const c_char, mode: u16) -> c_int {
    mediated!("SYS_mkdir", unsafe {
        crate::libsystem::confined::denies_path("file-write-create", path)
    });
    // SAFETY: the caller's string.
    result(unsafe { libc::mkdir(path, mode.into()) })
}

unsafe extern "C" fn chmod(path: *const c_char, mode: u16) -> c_int {
    mediated!("SYS_chmod", unsafe {
        crate::libsystem::confined::denies_path("file-write-data", path)
    });
    // SAFETY: the caller's string.
    result(unsafe { libc::chmod(path, mode.into()) })
}

unsafe extern "C" fn chdir(path: *const c_char) -> c_int {
    mediated!("SYS_chdir");
    // SAFETY: the caller's string.
    result(unsafe { libc::chdir(path) })
}

unsafe extern "C" fn chroot(path: *const c_char) -> c_int {
    mediated!("SYS_chroot");
    // SAFETY: the caller's string.
    result(unsafe { libc::chroot(path) })
}

unsafe extern "C" fn getcwd(buffer: *mut c_char, size: usize) -> *mut c_char {
    // SAFETY: the caller's buffer.
    let path = unsafe { libc::getcwd(buffer, size) };
    if path.is_null() {
        result(-1);
    }
    path
}

unsafe extern "C" fn readlink(path: *const c_char, buffer: *mut c_char, size: usize) -> isize {
    mediated!("SYS_readlink", unsafe {
        crate::libsystem::confined::denies_path("file-read-metadata", path)
    });
    // SAFETY: the caller's string and buffer.
    result(unsafe { libc::readlink(path, buffer, size) })
}

unsafe extern "C" fn symlink(target: *const c_char, path: *const c_char) -> c_int {
    mediated!("SYS_symlink", unsafe {
        crate::libsystem::confined::denies_path("file-write-create", path)
    });
    // SAFETY: the caller's strings.
    result(unsafe { libc::symlink(target, path) })
}
