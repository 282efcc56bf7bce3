//! Tubes by name: where two programs meet that did not start each other (the simulated dext and
//! its clients).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix};

use super::Tube;
use crate::sys;

/// A socket in the file system that tubes connect to. Its file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A file that a dead listener left there is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there; `InvalidInput` for a path that is too long for a
    /// socket address.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = sys::new_socket()?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                let probe = sys::new_socket()?;
                if rustix::net::connect(&probe, &address) != Err(Errno::CONNREFUSED) {
                    return Err(Errno::ADDRINUSE.into());
                }
                std::fs::remove_file(path)?;
                rustix::net::bind(&socket, &address)?;
            }
            other => other?,
        }
        rustix::net::listen(&socket, 64)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Waits for the next peer.
    ///
    /// # Errors
    /// When the process is out of descriptors, or the socket was shut down.
    pub fn accept(&self) -> io::Result<Tube> {
        loop {
            match sys::accept(self.socket.as_fd()) {
                Ok(fd) => return Ok(Tube::from_fd(fd)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Tube {
    /// Connects to the listener at `path`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = sys::new_socket()?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Ok(Self::from_fd(socket)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Tube {
    /// Whether a descriptor that came from elsewhere is a connected socket of the kind that carries
    /// tubes: to be asked before [`Tube::from_fd`] of what was inherited by number.
    ///
    /// # Errors
    /// `InvalidInput`, which says what it is instead.
    pub fn check_socket(fd: impl AsFd) -> io::Result<()> {
        let refuse = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let kind = rustix::net::sockopt::socket_type(&fd)
            .map_err(|_| refuse("it is no socket".to_owned()))?;
        let family = rustix::net::getsockname(&fd)?.address_family();
        if family != FAMILY || kind != sys::SOCKET_TYPE {
            return Err(refuse(format!("it is a socket of another kind ({family:?}, {kind:?})")));
        }
        match rustix::net::getpeername(&fd) {
            Ok(_) => Ok(()),
            Err(error) => Err(refuse(format!("it is a socket without a peer ({error})"))),
        }
    }
}

/// The family of every socket of ours.
pub(crate) const FAMILY: AddressFamily = AddressFamily::UNIX;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn only_a_connected_socket_of_our_kind_is_taken_for_a_tube() {
        let (ours, _theirs) = Tube::pair().unwrap();
        Tube::check_socket(&ours).unwrap();
        let why = |fd: BorrowedFd<'_>| Tube::check_socket(fd).unwrap_err().to_string();
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(why(null.as_fd()).contains("no socket"));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(why(udp.as_fd()).contains("another kind"));
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&directory.path().join("socket")).unwrap();
        assert!(why(listener.as_fd()).contains("without a peer"));
    }
}
