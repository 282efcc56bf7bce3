//! Options of sockets, and what a socket has by default.

use std::ffi::{c_int, c_void};

use darwin_abi::{Symbol, error, fail, result, symbols};

use crate::libsystem::runner::lacks;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] =
    symbols! { "_setsockopt" => setsockopt, "_getsockopt" => getsockopt };

use super::SOCKET_LEVEL as SOL_SOCKET;
use crate::libsystem::confined::mediated;
const SO_NOSIGPIPE: c_int = 0x1022;
/// `sys/un.h`.
const SOL_LOCAL: c_int = 0;
const LOCAL_PEERPID: c_int = 2;

/// A priority that nothing else asks for: where SO_NOSIGPIPE is kept, since it has to go with the socket to
/// whichever process gets it.
const NO_SIGPIPE: c_int = 5;

/// The option that is the same in Linux, of those that take a number.
fn number(level: c_int, name: c_int) -> Option<(c_int, c_int)> {
    let name = match (level, name) {
        (SOL_SOCKET, 0x4) => libc::SO_REUSEADDR,
        (SOL_SOCKET, 0x8) => libc::SO_KEEPALIVE,
        (SOL_SOCKET, 0x20) => libc::SO_BROADCAST,
        (SOL_SOCKET, 0x1001) => libc::SO_SNDBUF,
        (SOL_SOCKET, 0x1002) => libc::SO_RCVBUF,
        (SOL_SOCKET, 0x1007) => libc::SO_ERROR,
        (SOL_SOCKET, 0x1008) => libc::SO_TYPE,
        (libc::IPPROTO_TCP, 1) => return Some((level, libc::TCP_NODELAY)),
        _ => return None,
    };
    Some((libc::SOL_SOCKET, name))
}

/// SO_SNDTIMEO and SO_RCVTIMEO, which take a `timeval`.
fn timeout(level: c_int, name: c_int) -> Option<c_int> {
    match (level, name) {
        (SOL_SOCKET, 0x1005) => Some(libc::SO_SNDTIMEO),
        (SOL_SOCKET, 0x1006) => Some(libc::SO_RCVTIMEO),
        _ => None,
    }
}

fn set(fd: c_int, level: c_int, name: c_int, value: c_int) -> c_int {
    // SAFETY: a number of this function's own.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) }
}

fn get(fd: c_int, level: c_int, name: c_int) -> Option<c_int> {
    let (mut value, mut length) = (0, 4);
    // SAFETY: places of this function's own.
    let done = unsafe {
        libc::getsockopt(fd, level, name, (&raw mut value).cast::<c_void>(), &mut length)
    };
    (done == 0).then_some(value)
}

/// LOCAL_PEERPID (`uipc_ctloutput` in `bsd/kern/uipc_usrreq.c`): the process at the other end.
fn peer(fd: c_int) -> Option<c_int> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as u32;
    // SAFETY: places of this function's own.
    let got = unsafe {
        let place = (&raw mut found).cast::<c_void>();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &mut length)
    };
    (got == 0).then_some(found.pid)
}

/// Whether a descriptor is one of a socket.
pub(super) fn is_socket(fd: c_int) -> bool {
    get(fd, libc::SOL_SOCKET, libc::SO_TYPE).is_some()
}

/// Whether a descriptor is a socket that raises no SIGPIPE.
pub(super) fn has_no_sigpipe(fd: c_int) -> bool {
    get(fd, libc::SOL_SOCKET, libc::SO_PRIORITY) == Some(NO_SIGPIPE)
}

pub(super) fn set_no_sigpipe(fd: c_int, on: bool) -> c_int {
    set(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, if on { NO_SIGPIPE } else { 0 })
}

/// A stream of the local domain has a buffer of 8 KiB, a datagram socket takes 2 KiB at once (`PIPSIZ`,
/// `unpdg_sendspace` in `bsd/kern/uipc_usrreq.c`). Linux counts its own overhead too, most of a small message: this is
/// what holds as many of those as 8 KiB do on a Mac, and some tens of KiB of large ones.
pub(super) fn limit_buffer(fd: c_int, domain: c_int, kind: c_int) {
    const STREAM: c_int = 32768;
    if fd >= 0 && domain == super::AF_UNIX && kind == libc::SOCK_STREAM {
        set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, STREAM);
    }
}

unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: u32,
) -> c_int {
    mediated!("SYS_setsockopt");
    if (length as usize) < size_of::<c_int>() {
        return fail(error::EINVAL);
    }
    // SAFETY: the caller's value, of at least that length.
    unsafe {
        if (level, name) == (SOL_SOCKET, SO_NOSIGPIPE) {
            return result(set_no_sigpipe(fd, value.cast::<c_int>().read() != 0));
        }
        if let Some((level, name)) = number(level, name) {
            return result(set(fd, level, name, value.cast::<c_int>().read()));
        }
        let Some(name) = timeout(level, name) else {
            lacks(format_args!("socket option {name:#x} of level {level:#x}"))
        };
        if length < 16 {
            return fail(error::EINVAL);
        }
        let value = value.cast::<u8>();
        let time = libc::timeval {
            tv_sec: value.cast::<i64>().read(),
            tv_usec: value.add(8).cast::<i32>().read().into(),
        };
        let time = (&raw const time).cast();
        result(libc::setsockopt(fd, libc::SOL_SOCKET, name, time, 16))
    }
}

unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    to: *mut c_void,
    room: *mut u32,
) -> c_int {
    mediated!("SYS_getsockopt");
    // SAFETY: the caller's places, with room for a number.
    unsafe {
        let value = if (level, name) == (SOL_LOCAL, LOCAL_PEERPID) {
            peer(fd)
        } else if (level, name) == (SOL_SOCKET, SO_NOSIGPIPE) {
            Some(has_no_sigpipe(fd).into())
        } else if let Some((linux, option)) = number(level, name) {
            let value = get(fd, linux, option);
            let errno = option == libc::SO_ERROR && linux == libc::SOL_SOCKET;
            value.map(|value| if errno { darwin_abi::from_linux(value) } else { value })
        } else {
            lacks(format_args!("socket option {name:#x} of level {level:#x}"))
        };
        let Some(value) = value else { return result(-1) };
        if room.read() < 4 {
            return fail(error::EINVAL);
        }
        to.cast::<c_int>().write(value);
        room.write(4);
    }
    0
}
