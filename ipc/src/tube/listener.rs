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
                Ok(()) => return Ok(Self::from_fd(socket)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
