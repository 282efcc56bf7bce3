//! A socket that whoever starts `cordon serve` made: told by the number of its descriptor, looked at
//! before anything is served at it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ipc::SocketFile;
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, SocketType, getsockname};

use crate::sys;

/// Why a descriptor is no socket to serve at.
#[derive(Debug, thiserror::Error)]
pub(super) enum InheritedError {
    #[error(
        "Descriptor {0} is standard input, output or error: a socket is inherited as 3 or above"
    )]
    Standard(RawFd),
    #[error("Descriptor {0} is not open here: whoever starts this program must pass it on")]
    Closed(RawFd),
    #[error("Descriptor {0} is no socket")]
    NotASocket(RawFd),
    #[error("Descriptor {0} is a socket of another family than AF_UNIX")]
    Family(RawFd),
    #[error("Descriptor {0} is a Unix socket of another type than SOCK_STREAM")]
    Type(RawFd),
    #[error("Descriptor {0} is a socket that neither listens nor is connected")]
    Idle(RawFd),
    #[error("Descriptor {0} cannot be looked at")]
    System(RawFd, #[source] io::Error),
    #[error("The one client came by {}, and is gone", .0.display())]
    Gone(PathBuf),
}

/// A socket that was inherited: one that listens, or a client.
#[derive(Debug)]
pub(super) struct Inherited {
    number: RawFd,
    /// Nothing once it was a client that was served.
    socket: Option<OwnedFd>,
    listens: bool,
    name: PathBuf,
}

impl Inherited {
    /// The one with this number, which no other program inherits from here on, and which does not block
    /// any more.
    pub(super) fn take(number: RawFd) -> Result<Self, InheritedError> {
        if (0..3).contains(&number) {
            return Err(InheritedError::Standard(number));
        }
        let socket = sys::inherited::take(number).map_err(|_| InheritedError::Closed(number))?;
        Self::of(socket)
    }

    pub(super) fn of(socket: OwnedFd) -> Result<Self, InheritedError> {
        let number = socket.as_raw_fd();
        let failed = |error: Errno| match error {
            Errno::NOTSOCK => InheritedError::NotASocket(number),
            other => InheritedError::System(number, other.into()),
        };
        let address = getsockname(&socket).map_err(failed)?;
        if address.address_family() != AddressFamily::UNIX {
            return Err(InheritedError::Family(number));
        }
        if socket_type(&socket).map_err(failed)? != SocketType::STREAM {
            return Err(InheritedError::Type(number));
        }
        let listens = sys::listens(&socket).map_err(failed)?;
        let listens = listens.ok_or(InheritedError::Idle(number))?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        // By the standard library: macOS has an address of zeros for what was never bound, which others take for a path.
        let listener = UnixListener::from(socket);
        let bound = listener.local_addr().map_err(|error| InheritedError::System(number, error))?;
        if listens && bound.is_unnamed() {
            return Err(InheritedError::Idle(number));
        }
        let path = bound.as_pathname().filter(|_| listens).map(Path::to_owned);
        let socket = OwnedFd::from(listener);
        let name = path.unwrap_or_else(|| format!("descriptor {number}").into());
        Ok(Self { number, socket: Some(socket), listens, name })
    }

    /// Its number, to be kept open.
    pub(super) fn number(&self) -> RawFd {
        self.number
    }

    /// Whether clients come by it, and it is not one itself.
    pub(super) fn listens(&self) -> bool {
        self.listens
    }

    /// Where it listens, or which descriptor it is.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// To be listened at, any number of times. The file, if it has one, is not this program's to remove.
    pub(super) fn listener(&self) -> Result<SocketFile, InheritedError> {
        let socket = self.socket.as_ref().ok_or_else(|| InheritedError::Gone(self.name.clone()))?;
        let socket =
            socket.try_clone().map_err(|error| InheritedError::System(self.number, error))?;
        Ok(SocketFile::handed(socket, self.name.clone(), || {}))
    }

    /// To be served, once.
    pub(super) fn take_client(&mut self) -> Result<UnixStream, InheritedError> {
        let client = self.socket.take().ok_or_else(|| InheritedError::Gone(self.name.clone()))?;
        Ok(client.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn refused(fd: impl Into<OwnedFd>) -> String {
        Inherited::of(fd.into()).unwrap_err().to_string()
    }

    #[test]
    fn a_listener_and_a_client_are_told_apart_and_anything_else_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = Inherited::of(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert!(listener.listens() && listener.name() == path, "{listener:?}");
        let (client, _far) = UnixStream::pair().unwrap();
        let mut client = Inherited::of(client.into()).unwrap();
        let name = format!("descriptor {}", client.number());
        assert!(!client.listens() && client.name() == Path::new(&name), "{client:?}");
        // What it serves must not be held up by it.
        assert!(
            rustix::fs::fcntl_getfl(client.socket.as_ref().unwrap())
                .unwrap()
                .contains(rustix::fs::OFlags::NONBLOCK)
        );

        // A listener may be listened at again, a client is served once.
        for _ in 0..2 {
            assert_eq!(listener.listener().unwrap().path(), path);
        }
        assert!(client.take_client().is_ok());
        let error = client.take_client().unwrap_err();
        assert_eq!(error.to_string(), format!("The one client came by {name}, and is gone"));

        let file = std::fs::File::create(folder.path().join("file")).unwrap();
        assert!(refused(file).ends_with("is no socket"));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refused(tcp).contains("another family than AF_UNIX"));
        assert!(
            refused(UnixDatagram::unbound().unwrap()).contains("another type than SOCK_STREAM")
        );
        let idle = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert!(refused(idle).contains("neither listens nor is connected"));
        for number in 0..3 {
            let error = Inherited::take(number).unwrap_err();
            assert!(matches!(error, InheritedError::Standard(of) if of == number), "{error}");
        }
        for number in [-1, 1 << 20] {
            let error = Inherited::take(number).unwrap_err();
            assert!(matches!(error, InheritedError::Closed(of) if of == number), "{error}");
        }
    }
}
