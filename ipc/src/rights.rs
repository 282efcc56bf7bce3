//! Bytes and descriptors over a local socket (SCM_RIGHTS): the one place that knows control data.
//!
//! Every process runs it. The peer is distrusted: descriptors belong to the receiver from the moment they
//! are in the table, so all of them are taken in an owning type before anything is looked at, and what
//! nobody wants is closed. Calls never block; the caller waits, with its deadline.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::deadline::Deadline;
use crate::poll::{self, Source};
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

/// Makes sure that nothing which is sent over a socket from elsewhere waits or raises a signal: to be
/// called once for each socket that this crate did not make.
pub fn prepare(socket: &impl AsFd) {
    sys::prepare_socket(socket.as_fd());
    let _ = rustix::io::ioctl_fionbio(socket, true);
}

/// Receives once, without waiting.
///
/// # Errors
/// [`Errno::AGAIN`] when nothing is there; otherwise what the system reports. Interruptions are
/// retried.
pub fn receive(socket: &impl AsFd, into: &mut [u8]) -> Result<Came, Errno> {
    receive_as(socket, into, RecvFlags::empty())
}

/// [`receive`] that leaves everything where it is, with duplicates of its descriptors. Where in a stream it looks
/// is the system's to say (SO_PEEK_OFF).
///
/// # Errors
/// As [`receive`].
pub fn peek(socket: &impl AsFd, into: &mut [u8]) -> Result<Came, Errno> {
    receive_as(socket, into, RecvFlags::PEEK)
}

fn receive_as(socket: &impl AsFd, into: &mut [u8], how: RecvFlags) -> Result<Came, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
    let flags = RecvFlags::DONTWAIT | sys::RECEIVE_CLOSE_ON_EXEC | how;
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
                // How the room for them lies on the stack decides whether one more fits.
                let too_many = handles.len() > MAX_HANDLES;
                handles.truncate(MAX_HANDLES);
                return Ok(Came {
                    bytes: came.bytes,
                    handles,
                    truncated: came.flags.contains(ReturnFlags::TRUNC),
                    handles_truncated: too_many || came.flags.contains(ReturnFlags::CTRUNC),
                });
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends once, without waiting and without a signal when the peer is gone; how many bytes went. macOS
/// has no flags for either: there the socket must have been made so, see [`prepare`].
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

/// How long a socket is left alone that says that it can be written to and then takes no descriptor.
const NO_ROOM_YET: Duration = Duration::from_millis(1);

/// Whether a send failed only because the socket's buffer is full: AGAIN, and of descriptors also
/// MSGSIZE, which is what macOS says when the bytes beside them would fit and they would not.
#[must_use]
pub fn is_full(error: Errno, handles: &[BorrowedFd<'_>]) -> bool {
    error == Errno::AGAIN || (error == Errno::MSGSIZE && !handles.is_empty())
}

/// Waits until there may be room again after [`is_full`]; `false` when the deadline passed first.
///
/// # Errors
/// As [`poll::wait`].
pub fn wait_for_room(
    socket: &impl AsFd,
    error: Errno,
    deadline: Deadline,
) -> std::io::Result<bool> {
    if poll::wait(&[Source::writable(socket, ())], Some(deadline))?.is_empty() {
        return Ok(false);
    }
    if error == Errno::MSGSIZE {
        // Room for a byte is not room for a descriptor, so the wait alone may come back at once.
        let pause = Deadline::after(NO_ROOM_YET.min(deadline.remaining().unwrap_or_default()));
        poll::wait(&[Source::hangup(socket, ())], Some(pause))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for one more than asked for is there or is not, by how it lies on the stack: the answer is the
    /// same in each build.
    #[test]
    fn one_descriptor_too_many_is_told_and_closed() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); MAX_HANDLES + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let sent =
            rustix::net::sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(1));
        let came = receive(&b, &mut [0; 8]).unwrap();
        assert!(came.handles_truncated);
        assert!(came.handles.len() <= MAX_HANDLES, "{}", came.handles.len());
    }
}
