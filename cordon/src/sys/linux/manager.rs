//! A service manager that started this program, by the conventions of systemd: sockets that it passed on,
//! and what it is told.
//!
//! What it is told goes by a socket that is connected before this program confines itself, since it can make
//! none afterwards; so the `sd-notify` crate reads the environment and writes the messages, and they are
//! sent here. Whoever should read them is never waited for, but once: for `READY=1`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use ipc::Deadline;
use ipc::poll::{self, Source};
use sd_notify::NotifyState;

/// Of the environment, and for this process alone.
pub(crate) const VARIABLES: [&str; 7] = [
    "FDSTORE",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// How long there may be no room for the message that this program is ready.
const ROOM: Duration = Duration::from_secs(1);

/// The sockets that were passed on, by number and name.
pub(crate) fn passed() -> io::Result<Vec<(RawFd, String)>> {
    // The names are for another process when the sockets are, and say nothing then.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Vec::new());
    }
    Ok(sd_notify::listen_fds_with_names()?.collect())
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that the environment names, if it does.
    pub(crate) fn connect() -> io::Result<Self> {
        let socket = match std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => Some(connected(&name).map_err(|error| {
                let name = name.display();
                io::Error::other(format!("the service manager is not at {name}: {error}"))
            })?),
        };
        let watchdog = sd_notify::watchdog_enabled().filter(|_| socket.is_some());
        Ok(Self { socket, watchdog })
    }

    /// The descriptor that is needed.
    pub(crate) fn number(&self) -> Option<RawFd> {
        self.socket.as_ref().map(UnixDatagram::as_raw_fd)
    }

    /// Without a sign of life for so long it takes this program for hung.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Everything is served.
    pub(crate) fn ready(&self, status: &str) {
        if let Some(socket) = &self.socket {
            let _ = poll::wait(&[Source::writable(socket, ())], Some(Deadline::after(ROOM)));
        }
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// What there is to say, for people.
    pub(crate) fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(status)]);
    }

    /// The end has begun.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// A sign of life.
    pub(crate) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(text.as_bytes()) {
            tracing::debug!("the service manager is not told {text:?}: {error}");
        }
    }
}

/// A socket that sends to `name`, a path or, after an `@`, an abstract name.
fn connected(name: &OsString) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("a path or @NAME is expected")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
