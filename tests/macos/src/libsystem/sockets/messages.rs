//! Sending and receiving, with and without descriptors, by Darwin's rules:
//!
//! - MSG_DONTWAIT has no effect on a send: only the socket's own state counts (`sosendcheck` in
//!   `bsd/kern/uipc_socket.c`, xnu-11417.101.15);
//! - descriptors that do not fit into a full buffer fail with EMSGSIZE, blocking or not (the same function: the
//!   control data is longer than what is left of the buffer's limit, which `uipc_send` in
//!   `bsd/kern/uipc_usrreq.c` lowers by what the peer has not read);
//! - control data is one header of 12 bytes with descriptors of 4 bytes, whose length is all of the control data
//!   (`unp_internalize` in `bsd/kern/uipc_usrreq.c`), aligned to 4 bytes (`bsd/sys/socket.h`, `CMSG_ALIGN`);
//! - kernel queues cannot be sent (`file_issendable` in `bsd/kern/kern_descrip.c`, which asks `fg_sendable`);
//! - a send to a peer that is gone raises SIGPIPE unless the socket has SO_NOSIGPIPE (`sosend` in
//!   `bsd/kern/uipc_socket.c`): there is no MSG_NOSIGNAL.

use std::ffi::{c_int, c_void};

use darwin_abi::descriptors::given;
use darwin_abi::{Symbol, error, fail, from_linux, set, symbols};

use super::{SOCKET_LEVEL, options};
use crate::libsystem::confined::mediated;
use crate::libsystem::kqueue;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_send" => send,
    "_sendmsg" => sendmsg,
    "_recv" => recv,
    "_recvmsg" => recvmsg,
};

const SCM_RIGHTS: c_int = 1;
const MSG_CTRUNC: c_int = 0x20;
const MSG_TRUNC: c_int = 0x10;
/// UIPC_MAX_CMSG_FD.
const MOST: usize = 512;

/// `struct msghdr`.
#[repr(C)]
struct Header {
    name: *mut u8,
    name_length: u32,
    buffers: *mut libc::iovec,
    buffer_count: c_int,
    control: *mut u8,
    control_length: u32,
    flags: c_int,
}

/// `struct cmsghdr`.
#[repr(C)]
struct Control {
    length: u32,
    level: c_int,
    kind: c_int,
}

const _: () = assert!(size_of::<Header>() == 48 && size_of::<Control>() == 12);

/// Room for control data in Linux's form.
#[repr(C, align(8))]
struct Room([u8; 16 + 4 * MOST]);

/// Flags of a receive: here MSG_DONTWAIT counts.
fn receive_flags(darwin: c_int) -> c_int {
    let pairs = [(0x2, libc::MSG_PEEK), (0x40, libc::MSG_WAITALL), (0x80, libc::MSG_DONTWAIT)];
    let set = pairs.iter().filter(|(one, _)| darwin & one != 0);
    set.fold(0, |all, (_, linux)| all | linux)
}

fn blocks(fd: c_int) -> bool {
    // SAFETY: plain numbers.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK == 0 }
}

fn last_errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// What a failed send gives, and its signal.
fn failed(fd: c_int, linux: c_int) -> isize {
    if linux == libc::EPIPE && !options::has_no_sigpipe(fd) {
        // SAFETY: plain numbers.
        unsafe { libc::raise(libc::SIGPIPE) };
    }
    set(from_linux(linux));
    -1
}

unsafe extern "C" fn send(fd: c_int, buffer: *const c_void, size: usize, _flags: c_int) -> isize {
    mediated!("SYS_sendto");
    // SAFETY: the caller's buffer.
    match unsafe { libc::send(fd, buffer, size, libc::MSG_NOSIGNAL) } {
        -1 => failed(fd, last_errno()),
        count => count,
    }
}

unsafe extern "C" fn sendmsg(fd: c_int, header: &Header, _flags: c_int) -> isize {
    mediated!("SYS_sendmsg");
    // SAFETY: all zeros are an empty header.
    let mut linux: libc::msghdr = unsafe { std::mem::zeroed() };
    linux.msg_iov = header.buffers;
    linux.msg_iovlen = header.buffer_count.max(0) as usize;
    let address;
    if !header.name.is_null() && header.name_length > 0 {
        // SAFETY: the caller's address.
        address = match unsafe { super::to_linux(header.name, header.name_length) } {
            Ok(address) => address,
            Err(errno) => return fail(errno) as isize,
        };
        linux.msg_name = (&raw const address.0).cast_mut().cast();
        linux.msg_namelen = address.1;
    }
    let mut room = Room([0; 16 + 4 * MOST]);
    let with_control = !header.control.is_null() && header.control_length > 0;
    if with_control {
        // SAFETY: the caller's control data, as long as it says.
        let bytes =
            unsafe { std::slice::from_raw_parts(header.control, header.control_length as usize) };
        match internalize(bytes, &mut room) {
            Ok(length) => {
                linux.msg_control = room.0.as_mut_ptr().cast();
                linux.msg_controllen = length;
            }
            Err(errno) => return fail(errno) as isize,
        }
    }
    if !with_control {
        // SAFETY: a header whose parts are the caller's.
        return match unsafe { libc::sendmsg(fd, &raw const linux, libc::MSG_NOSIGNAL) } {
            -1 => failed(fd, last_errno()),
            count => count,
        };
    }
    // SAFETY: as above.
    unsafe { send_descriptors(fd, &linux) }
}

/// Never waits for room for the descriptors, but for that of the bytes after them.
unsafe fn send_descriptors(fd: c_int, linux: &libc::msghdr) -> isize {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: a header whose parts are the caller's.
    let sent = match unsafe { libc::sendmsg(fd, linux, flags) } {
        -1 if last_errno() == libc::EAGAIN => return fail(error::EMSGSIZE) as isize,
        -1 => return failed(fd, last_errno()),
        sent => sent as usize,
    };
    // SAFETY: the caller's buffers.
    let buffers = unsafe { std::slice::from_raw_parts(linux.msg_iov, linux.msg_iovlen) };
    let whole: usize = buffers.iter().map(|buffer| buffer.iov_len).sum();
    if sent == whole || !blocks(fd) {
        return sent as isize;
    }
    let mut skip = sent;
    for buffer in buffers {
        let from = skip.min(buffer.iov_len);
        skip -= from;
        let mut at = from;
        while at < buffer.iov_len {
            // SAFETY: what is left of the caller's buffer.
            let more = unsafe {
                let rest = buffer.iov_base.cast::<u8>().add(at).cast();
                libc::send(fd, rest, buffer.iov_len - at, libc::MSG_NOSIGNAL)
            };
            if more < 0 {
                return failed(fd, last_errno());
            }
            at += more as usize;
        }
    }
    whole as isize
}

/// Control data in Linux's form; its length.
fn internalize(bytes: &[u8], room: &mut Room) -> Result<usize, c_int> {
    const HEADER: usize = size_of::<Control>();
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map(i32::from_ne_bytes).ok_or(error::EINVAL)
    };
    let (length, level, kind) = (word(0)? as usize, word(4)?, word(8)?);
    if (level, kind) != (SOCKET_LEVEL, SCM_RIGHTS) || length != bytes.len() || length < HEADER {
        return Err(error::EINVAL);
    }
    let count = (length - HEADER) / 4;
    if count > MOST {
        return Err(error::EINVAL);
    }
    for index in 0..count {
        let fd = word(HEADER + 4 * index)?;
        // SAFETY: plain numbers.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(error::EBADF);
        }
        if kqueue::is(fd) {
            return Err(error::EINVAL);
        }
    }
    let size = count as u32 * 4;
    // SAFETY: the room is aligned for a header, and large enough for it and as many descriptors.
    unsafe {
        let header = room.0.as_mut_ptr().cast::<libc::cmsghdr>();
        (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        let to = libc::CMSG_DATA(header);
        std::ptr::copy_nonoverlapping(bytes.as_ptr().add(HEADER), to, size as usize);
        Ok(libc::CMSG_SPACE(size) as usize)
    }
}

unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, size: usize, flags: c_int) -> isize {
    mediated!("SYS_recvfrom");
    // SAFETY: the caller's buffer.
    darwin_abi::result(unsafe { libc::recv(fd, buffer, size, receive_flags(flags)) })
}

unsafe extern "C" fn recvmsg(fd: c_int, header: &mut Header, flags: c_int) -> isize {
    mediated!("SYS_recvmsg");
    let mut room = Room([0; 16 + 4 * MOST]);
    // SAFETY: all zeros are an empty header and an address; the buffers are the caller's.
    unsafe {
        let mut linux: libc::msghdr = std::mem::zeroed();
        let mut address: libc::sockaddr_storage = std::mem::zeroed();
        linux.msg_iov = header.buffers;
        linux.msg_iovlen = header.buffer_count.max(0) as usize;
        linux.msg_control = room.0.as_mut_ptr().cast();
        linux.msg_controllen = room.0.len();
        linux.msg_name = (&raw mut address).cast();
        linux.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
        let count = libc::recvmsg(fd, &raw mut linux, receive_flags(flags));
        if count < 0 {
            return darwin_abi::result(count);
        }
        header.flags = 0;
        if linux.msg_flags & libc::MSG_TRUNC != 0 {
            header.flags |= MSG_TRUNC;
        }
        if linux.msg_flags & libc::MSG_CTRUNC != 0 {
            header.flags |= MSG_CTRUNC;
        }
        if !header.name.is_null() {
            if linux.msg_namelen > 0 {
                let room = &raw mut header.name_length;
                super::from_linux(&address, linux.msg_namelen, header.name, room);
            } else {
                header.name_length = 0;
            }
        }
        externalize(&linux, header);
        count
    }
}

/// Control data in Darwin's form. What there is no room for is cut off and said to be; its descriptors are open all
/// the same (`copyout_control` in `bsd/kern/uipc_syscalls.c`, after `unp_externalize`).
unsafe fn externalize(linux: &libc::msghdr, header: &mut Header) {
    let mut bytes = Vec::new();
    // SAFETY: control data that the kernel wrote.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(linux);
        while let Some(one) = at.as_ref() {
            if (one.cmsg_level, one.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let size = one.cmsg_len - libc::CMSG_LEN(0) as usize;
                bytes.extend((12 + size as u32).to_ne_bytes());
                bytes.extend(SOCKET_LEVEL.to_ne_bytes());
                bytes.extend(SCM_RIGHTS.to_ne_bytes());
                let numbers = std::slice::from_raw_parts(libc::CMSG_DATA(at), size);
                for number in numbers.as_chunks().0 {
                    given(c_int::from_ne_bytes(*number));
                }
                bytes.extend(numbers);
            }
            at = libc::CMSG_NXTHDR(linux, at);
        }
    }
    let room = if header.control.is_null() { 0 } else { header.control_length as usize };
    if bytes.len() > room {
        header.flags |= MSG_CTRUNC;
        bytes.truncate(room);
    }
    // SAFETY: the caller's room, as large as it says.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), header.control, bytes.len()) };
    header.control_length = bytes.len() as u32;
}
