//! Tubes by name: where two programs meet that did not start each other (the simulated dext and
//! its clients).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::Tube;
use crate::socket_file::{SocketFile, SocketFileError};
use crate::sys;

/// A socket in the file system that tubes connect to. Its file is removed on drop.
#[derive(Debug)]
pub struct Listener(SocketFile);

impl Listener {
    /// Listens at `path`, in the place of a socket that nobody listens at.
    ///
    /// # Errors
    /// [`SocketFileError`].
    pub fn bind(path: &Path) -> Result<Self, SocketFileError> {
        SocketFile::listen_for_tubes(path).map(Self)
    }

    /// Waits for the next peer. A shortage of descriptors or memory is waited out.
    ///
    /// # Errors
    /// When nobody can be served here any more.
    pub fn accept(&self) -> io::Result<Tube> {
        self.0.accept().map(Tube::from_fd)
    }

    /// The next peer, if one waits.
    ///
    /// # Errors
    /// What the system reports.
    pub fn try_accept(&self) -> io::Result<Option<Tube>> {
        Ok(self.0.try_accept()?.map(Tube::from_fd))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tube {
    /// Connects to the listener at `path`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = sys::socket(sys::TUBE_SOCKET)?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => {
                    // Not before: connecting waits while the listener's queue is full.
                    rustix::io::ioctl_fionbio(&socket, true)?;
                    return Ok(Self::from_fd(socket));
                }
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
        if family != rustix::net::AddressFamily::UNIX || kind != sys::TUBE_SOCKET {
            return Err(refuse(format!("it is a socket of another kind ({family:?}, {kind:?})")));
        }
        match rustix::net::getpeername(&fd) {
            Ok(_) => Ok(()),
            Err(error) => Err(refuse(format!("it is a socket without a peer ({error})"))),
        }
    }
}

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
