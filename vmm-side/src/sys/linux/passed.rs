//! A service manager that keeps descriptors for this process, by systemd's conventions.
#![expect(unsafe_code, reason = "what was passed on is known by its number alone")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

/// A socket that leads to the one that NOTIFY_SOCKET names, if it names one.
pub(crate) fn keeper_socket() -> io::Result<Option<UnixDatagram>> {
    let name: OsString = match std::env::var_os("NOTIFY_SOCKET") {
        Some(name) if !name.is_empty() => name,
        _ => return Ok(None),
    };
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(&name)?,
        _ => return Err(io::Error::other("NOTIFY_SOCKET: a path or @NAME is expected")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(Some(socket))
}

/// The descriptors that were passed on whose names are wanted. The others are left as they are, but for being
/// closed in programs that this one runs.
pub(crate) fn passed_on(is_wanted: fn(&str) -> bool) -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Vec::new());
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("they were taken already"));
    }
    let mut taken = Vec::new();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        if !is_wanted(&name) {
            continue;
        }
        // SAFETY: numbers of `sd_notify` begin at 3, so it is not -1; it is looked at here alone, and whether it is
        // open is what is asked.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
        // SAFETY: it is open, and was passed on to this process by its number for whoever asks for this name, which is
        // done once: nothing else owns it.
        taken.push((unsafe { OwnedFd::from_raw_fd(number) }, name));
    }
    Ok(taken)
}
