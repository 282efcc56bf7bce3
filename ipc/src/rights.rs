//! Bytes and descriptors over a local socket (SCM_RIGHTS): the one place that knows control data.
//!
//! Every process runs it. The peer is distrusted: descriptors belong to the receiver from the moment they
//! are in the table, so all of them are taken in an owning type before anything is looked at, and what
//! nobody wants is closed. Calls never block; the caller waits, with its deadline.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::sys;
use crate::tube::MAX_HANDLES;

/// What one receive brought.
#[derive(Debug)]
pub struct Came {
    /// Bytes in the buffer; 0 at the end of a stream.
    pub bytes: usize,
    /// Descriptors, which close on exec.
    pub handles: Vec<OwnedFd>,
    /// A packet was longer than the buffer: the rest is lost.
    pub truncated: bool,
    /// More than [`MAX_HANDLES`] descriptors were sent: the rest is closed.
    pub handles_truncated: bool,
}

/// Receives once, without waiting.
///
/// # Errors
/// [`Errno::AGAIN`] when nothing is there; otherwise what the system reports. Interruptions are
/// retried.
pub fn receive(socket: &impl AsFd, into: &mut [u8]) -> Result<Came, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
    let flags = RecvFlags::DONTWAIT | sys::RECEIVE_CLOSE_ON_EXEC;
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(into)];
        match rustix::net::recvmsg(socket, parts, &mut control, flags) {
            Ok(came) => {
                let mut handles = Vec::new();
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        handles.extend(rights);
                    }
                }
                handles.iter().for_each(sys::close_on_exec);
                return Ok(Came {
                    bytes: came.bytes,
                    handles,
                    truncated: came.flags.contains(ReturnFlags::TRUNC),
                    handles_truncated: came.flags.contains(ReturnFlags::CTRUNC),
                });
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends once, without waiting and without a signal when the peer is gone; how many bytes went.
/// The descriptors go with the first of them, at most [`MAX_HANDLES`]. Without descriptors it is a
/// plain `sendto`, so that a process which never sends any can be denied `sendmsg` altogether.
///
/// # Errors
/// [`Errno::AGAIN`] when the socket is full; otherwise what the system reports. Interruptions are
/// retried.
pub fn send(socket: &impl AsFd, bytes: &[u8], handles: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | sys::SEND_WITHOUT_SIGNAL;
    loop {
        let sent = if handles.is_empty() {
            rustix::net::send(socket, bytes, flags)
        } else {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(handles));
            rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
        };
        match sent {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
