//! Messages over SEQPACKET: one packet each, so a message comes whole or not at all.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::frame::{FrameError, Header};
use super::{MAX_HANDLES, MAX_MESSAGE, TubeError};
use crate::deadline::Deadline;
use crate::handles::Handles;
use crate::poll::{self, Source};

/// A connected SEQPACKET socket.
#[derive(Debug)]
pub(crate) struct PacketTransport(OwnedFd);

impl PacketTransport {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let kind = SocketType::SEQPACKET;
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// A message without descriptors goes by `sendto`, so that a process which never sends any
    /// can be denied `sendmsg` altogether (the function process is).
    pub(crate) fn send(
        &self,
        bytes: &[u8],
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let sent = if handles.is_empty() {
                rustix::net::send(&self.0, bytes, flags)
            } else {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(handles));
                rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if poll::wait(&[Source::writable(&self.0, ())], Some(deadline))?.is_empty() {
                        return Err(TubeError::TimedOut);
                    }
                }
                Err(error) => return Err(error.into()),
            }
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
        buffer.resize(MAX_MESSAGE, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let came = loop {
            let iov = &mut [IoSliceMut::new(buffer)];
            match rustix::net::recvmsg(&self.0, iov, &mut control, flags) {
                Ok(came) => break came,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(TubeError::TimedOut),
                Err(error) => return Err(error.into()),
            }
        };
        let handles = collect(&mut control);
        if came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(FrameError::Truncated.into());
        }
        if came.bytes == 0 {
            return Err(TubeError::Disconnected);
        }
        buffer.truncate(came.bytes);
        let header = Header::parse(buffer)?;
        if header.length as usize != came.bytes {
            return Err(FrameError::Mismatch { said: header.length, came: came.bytes }.into());
        }
        if usize::from(header.handles) != handles.len() {
            return Err(FrameError::Handles { said: header.handles, came: handles.len() }.into());
        }
        Ok((header, handles))
    }
}

/// Every descriptor of the control data, owned from here on.
fn collect(control: &mut RecvAncillaryBuffer<'_>) -> Handles {
    let mut handles = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            handles.extend(fds);
        }
    }
    handles.into()
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
