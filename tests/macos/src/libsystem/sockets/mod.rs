//! Sockets: Darwin's families, options and addresses with a length byte (xnu-11417.101.15, `bsd/sys/socket.h`,
//! `bsd/kern/uipc_syscalls.c`, `bsd/kern/uipc_usrreq.c`).

pub(super) mod messages;
mod names;
pub(super) mod options;

use std::ffi::c_int;

use crate::libsystem::confined::mediated;
use darwin_abi::descriptors::given;
use darwin_abi::{Symbol, error, fail, result, symbols};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_socket" => socket,
    "_socketpair" => socketpair,
    "_bind" => bind,
    "_connect" => connect,
    "_listen" => listen,
    "_accept" => accept,
    "_shutdown" => shutdown,
    "_getsockname" => getsockname,
    "_getpeername" => getpeername,
};

/// Every table of this folder.
pub(super) const TABLES: [&[Symbol]; 4] =
    [SYMBOLS, messages::SYMBOLS, names::SYMBOLS, options::SYMBOLS];

/// SOL_SOCKET.
const SOCKET_LEVEL: c_int = 0xffff;
const AF_UNIX: c_int = 1;
const AF_INET: c_int = 2;
const AF_INET6: c_int = 30;

fn family(darwin: c_int) -> Option<c_int> {
    match darwin {
        AF_UNIX => Some(libc::AF_UNIX),
        AF_INET => Some(libc::AF_INET),
        AF_INET6 => Some(libc::AF_INET6),
        _ => None,
    }
}

/// The local domain has streams and datagrams only (`bsd/kern/uipc_proto.c`), and a type has no flags.
fn check(domain: c_int, kind: c_int) -> Result<c_int, c_int> {
    let linux = family(domain).ok_or(error::EAFNOSUPPORT)?;
    let known = matches!(kind, libc::SOCK_STREAM | libc::SOCK_DGRAM);
    if known || (domain != AF_UNIX && kind == libc::SOCK_RAW) {
        Ok(linux)
    } else {
        Err(error::EPROTONOSUPPORT)
    }
}

extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    mediated!("SYS_socket", crate::libsystem::confined::denies("system-socket", ""));
    match check(domain, kind) {
        Ok(linux) => {
            // SAFETY: plain numbers.
            let fd = given(result(unsafe { libc::socket(linux, kind, protocol) }));
            options::limit_buffer(fd, domain, kind);
            fd
        }
        Err(errno) => fail(errno),
    }
}

unsafe extern "C" fn socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    ends: *mut [c_int; 2],
) -> c_int {
    mediated!("SYS_socketpair");
    match check(domain, kind) {
        // SAFETY: the caller's two places.
        Ok(linux) => unsafe {
            let done = result(libc::socketpair(linux, kind, protocol, ends.cast()));
            if done == 0 {
                for fd in ends.read() {
                    options::limit_buffer(given(fd), domain, kind);
                }
            }
            done
        },
        Err(errno) => fail(errno),
    }
}

/// Sets SO_NOSIGPIPE, or takes it away.
pub(super) fn set_no_sigpipe(fd: c_int, on: bool) -> c_int {
    options::set_no_sigpipe(fd, on)
}

/// Whether a descriptor is one of a socket.
pub(super) fn is_socket(fd: c_int) -> bool {
    options::is_socket(fd)
}

/// Whether it has SO_NOSIGPIPE.
pub(super) fn has_no_sigpipe(fd: c_int) -> bool {
    options::has_no_sigpipe(fd)
}

/// A Linux address for one of Darwin's.
///
/// # Safety
///
/// `address` has `length` bytes.
unsafe fn to_linux(
    address: *const u8,
    length: u32,
) -> Result<(libc::sockaddr_storage, u32), c_int> {
    // SAFETY: all zeros are an address.
    let mut linux: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    if length < 2 || length as usize > size_of::<libc::sockaddr_storage>() {
        return Err(error::EINVAL);
    }
    // SAFETY: as the caller says; there is room for it.
    unsafe {
        let to = (&raw mut linux).cast::<u8>();
        std::ptr::copy_nonoverlapping(address, to, length as usize);
        let domain = family((*address.add(1)).into()).ok_or(error::EAFNOSUPPORT)?;
        linux.ss_family = domain as u16;
    }
    Ok((linux, length))
}

/// Writes a Linux address as Darwin's, as much of it as there is room for. A socket of the local domain without a
/// name has one of 16 bytes.
unsafe fn from_linux(linux: &libc::sockaddr_storage, length: u32, to: *mut u8, room: *mut u32) {
    if to.is_null() || room.is_null() {
        return;
    }
    let domain = match c_int::from(linux.ss_family) {
        libc::AF_INET => AF_INET,
        libc::AF_INET6 => AF_INET6,
        _ => AF_UNIX,
    };
    let length = if domain == AF_UNIX { length.max(16) } else { length };
    // SAFETY: the caller's room; an address is as long as Linux says, or zeros follow.
    unsafe {
        let mut bytes = [0; size_of::<libc::sockaddr_storage>()];
        let from = std::ptr::from_ref(linux).cast::<u8>();
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length as usize);
        bytes[0] = length as u8;
        bytes[1] = domain as u8;
        let count = room.read().min(length);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count as usize);
        room.write(length);
    }
}

unsafe extern "C" fn bind(fd: c_int, address: *const u8, length: u32) -> c_int {
    mediated!("SYS_bind", crate::libsystem::confined::denies("network-bind", ""));
    // SAFETY: the caller's address.
    match unsafe { to_linux(address, length) } {
        // SAFETY: an address of this function's own.
        Ok((linux, length)) => result(unsafe { libc::bind(fd, (&raw const linux).cast(), length) }),
        Err(errno) => fail(errno),
    }
}

unsafe extern "C" fn connect(fd: c_int, address: *const u8, length: u32) -> c_int {
    mediated!("SYS_connect", crate::libsystem::confined::denies("network-outbound", ""));
    // SAFETY: the caller's address.
    match unsafe { to_linux(address, length) } {
        Ok((linux, length)) => {
            // SAFETY: an address of this function's own.
            result(unsafe { libc::connect(fd, (&raw const linux).cast(), length) })
        }
        Err(errno) => fail(errno),
    }
}

extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    mediated!("SYS_listen");
    // SAFETY: plain numbers.
    result(unsafe { libc::listen(fd, backlog) })
}

/// The new socket does not block if the listening one does not (`accept_nocancel` in `bsd/kern/uipc_syscalls.c`).
unsafe extern "C" fn accept(fd: c_int, address: *mut u8, room: *mut u32) -> c_int {
    mediated!("SYS_accept");
    // SAFETY: places of this function's, and the caller's.
    unsafe {
        let mut linux: libc::sockaddr_storage = std::mem::zeroed();
        let mut length = size_of::<libc::sockaddr_storage>() as u32;
        let new = given(result(libc::accept(fd, (&raw mut linux).cast(), &raw mut length)));
        if new < 0 {
            return new;
        }
        if libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK != 0 {
            libc::fcntl(new, libc::F_SETFL, libc::fcntl(new, libc::F_GETFL) | libc::O_NONBLOCK);
        }
        if c_int::from(linux.ss_family) == libc::AF_UNIX {
            options::limit_buffer(new, AF_UNIX, libc::SOCK_STREAM);
        }
        if options::has_no_sigpipe(fd) {
            options::set_no_sigpipe(new, true);
        }
        from_linux(&linux, length, address, room);
        new
    }
}

extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    mediated!("SYS_shutdown");
    // SAFETY: plain numbers, which are the same.
    result(unsafe { libc::shutdown(fd, how) })
}

type Ask = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;

unsafe fn name(ask: Ask, fd: c_int, address: *mut u8, room: *mut u32) -> c_int {
    // SAFETY: places of this function's, and the caller's.
    unsafe {
        let mut linux: libc::sockaddr_storage = std::mem::zeroed();
        let mut length = size_of::<libc::sockaddr_storage>() as u32;
        let done = result(ask(fd, (&raw mut linux).cast(), &raw mut length));
        if done == 0 {
            from_linux(&linux, length, address, room);
        }
        done
    }
}

unsafe extern "C" fn getsockname(fd: c_int, address: *mut u8, room: *mut u32) -> c_int {
    mediated!("SYS_getsockname");
    // SAFETY: the caller's places.
    unsafe { name(libc::getsockname, fd, address, room) }
}

unsafe extern "C" fn getpeername(fd: c_int, address: *mut u8, room: *mut u32) -> c_int {
    mediated!("SYS_getpeername");
    // SAFETY: the caller's places.
    unsafe { name(libc::getpeername, fd, address, room) }
}
