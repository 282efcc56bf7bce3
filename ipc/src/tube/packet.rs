//! Messages over SEQPACKET: one packet each, so a message comes whole or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SocketType;

use super::frame::{FrameError, Header};
use super::{MAX_MESSAGE, TubeError};
use crate::deadline::Deadline;
use crate::handles::Handles;
use crate::poll::{self, Source};
use crate::{rights, sys};

/// A connected SEQPACKET socket.
#[derive(Debug)]
pub(crate) struct PacketTransport(OwnedFd);

impl PacketTransport {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = sys::socket_pair(SocketType::SEQPACKET)?;
        Ok((Self(a), Self(b)))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn send(
        &self,
        bytes: &[u8],
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        loop {
            match rights::send(&self.0, bytes, handles) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => {
                    if poll::wait(&[Source::writable(&self.0, ())], Some(deadline))?.is_empty() {
                        return Err(TubeError::TimedOut);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends without waiting; the bytes that went: all of a packet, or 0 when there is no room.
    pub(crate) fn send_some(&self, bytes: &[u8]) -> Result<usize, TubeError> {
        match rights::send(&self.0, bytes, &[]) {
            Err(Errno::AGAIN) => Ok(0),
            sent => Ok(sent?),
        }
    }

    pub(crate) fn receive(
        &mut self,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<(Header, Handles), TubeError> {
        loop {
            match self.try_receive(buffer) {
                Err(TubeError::TimedOut) => {}
                other => return other,
            }
            if !poll::wait_readable(&self.0, deadline)? {
                return Err(TubeError::TimedOut);
            }
        }
    }

    /// [`TubeError::TimedOut`] when there is nothing yet.
    fn try_receive(&mut self, buffer: &mut Vec<u8>) -> Result<(Header, Handles), TubeError> {
        // Room for the longest message, made once: what is not sent is not touched.
        if buffer.len() < MAX_MESSAGE {
            buffer.resize(MAX_MESSAGE, 0);
        }
        let came = match rights::receive(&self.0, buffer) {
            Ok(came) => came,
            Err(Errno::AGAIN) => return Err(TubeError::TimedOut),
            Err(error) => return Err(error.into()),
        };
        let handles = Handles::from(came.handles);
        if came.truncated || came.handles_truncated {
            return Err(FrameError::Truncated.into());
        }
        if came.bytes == 0 {
            return Err(TubeError::Disconnected);
        }
        let header = Header::parse(&buffer[..came.bytes])?;
        if header.length as usize != came.bytes {
            return Err(FrameError::Mismatch { said: header.length, came: came.bytes }.into());
        }
        if usize::from(header.handles) != handles.len() {
            return Err(FrameError::Handles { said: header.handles, came: handles.len() }.into());
        }
        Ok((header, handles))
    }
}

impl From<PacketTransport> for OwnedFd {
    fn from(transport: PacketTransport) -> Self {
        transport.0
    }
}

impl AsFd for PacketTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
