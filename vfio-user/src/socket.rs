//! A client's socket: messages in, replies out, descriptors beside the header.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipc::poll::{self, Source};
use ipc::{Deadline, Event, rights};
use rustix::io::Errno;

use crate::kept::Kept;
use crate::protocol::{HEADER, Header, MAX_DESCRIPTORS, MAX_MESSAGE, flag};

/// How long a client may take over the rest of a message that it began, or to take a reply.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// A command as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// More descriptors came than a message may have; they are closed.
    pub(crate) too_many: bool,
}

/// Why there is no next message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("the client is gone")]
    EndOfFile,
    #[error("the client stopped in the middle of a message")]
    Stalled,
    #[error(
        "message {id} says it has {size} bytes, between {HEADER} and {MAX_MESSAGE} are allowed"
    )]
    Size { id: u16, command: u16, size: u32 },
    #[error("the server stops")]
    Stopped,
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for SocketError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::EndOfFile,
            other => Self::Io(other.into()),
        }
    }
}

/// Bytes that are asked for at first: the header and the body of what is sent most often, a read or a write
/// of a register, so that one call receives it.
const FIRST: usize = 64;

/// What came of the next message already.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) bytes: [u8; FIRST],
    pub(crate) have: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) too_many: bool,
    /// Instead of more, this came.
    pub(crate) ended: Option<SocketError>,
}

impl Ahead {
    pub(crate) fn new() -> Self {
        let descriptors = Vec::new();
        Self { bytes: [0; FIRST], have: 0, descriptors, too_many: false, ended: None }
    }
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Socket<'s> {
    pub(crate) stream: UnixStream,
    pub(crate) ahead: Ahead,
    /// What keeps the client, if it is kept: see [`crate::kept`].
    pub(crate) kept: Option<Kept>,
    /// Bytes of the message that is served which are in the socket still.
    pub(crate) size: usize,
    /// Readable when the server stops: a client that is waited for in the middle of a message is then
    /// waited for no longer.
    pub(crate) stopped: &'s Event,
}

/// What a client is waited for together with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Client,
    Stop,
}

impl<'s> Socket<'s> {
    /// A client's socket. Nothing that is sent to it waits, whatever it was made by: a client that stops
    /// reading holds up its own answers and no thread.
    pub(crate) fn new(stream: UnixStream, stopped: &'s Event) -> Self {
        rights::prepare(&stream);
        Self { stream, ahead: Ahead::new(), kept: None, size: 0, stopped }
    }

    /// The socket of a client that is kept, at the beginning of a message.
    pub(crate) fn kept(stream: UnixStream, kept: Kept, stopped: &'s Event) -> Self {
        Self { kept: Some(kept), ..Self::new(stream, stopped) }
    }

    /// Whether something of the next message is here already, so that no wait would show it.
    pub(crate) fn is_begun(&self) -> bool {
        self.ahead.have > 0 || self.ahead.ended.is_some()
    }

    /// Receives the beginning of the next message if it has come; whether there is one.
    pub(crate) fn look(&mut self) -> bool {
        if self.is_begun() {
            return true;
        }
        let come = if self.kept.is_some() { rights::peek } else { rights::receive };
        match come(&self.stream, &mut self.ahead.bytes) {
            Err(Errno::AGAIN) => return false,
            Err(error) => self.ahead.ended = Some(error.into()),
            Ok(came) if came.bytes == 0 => self.ahead.ended = Some(SocketError::EndOfFile),
            Ok(came) => {
                self.ahead.have = came.bytes;
                take(came, &mut self.ahead.descriptors, &mut self.ahead.too_many);
            }
        }
        true
    }

    /// Waits for the client, or for the stop.
    pub(crate) fn wait(
        &self,
        client: Source<'_, Token>,
        deadline: Deadline,
    ) -> Result<(), SocketError> {
        let stop = Source::readable(self.stopped, Token::Stop);
        let tokens = poll::wait(&[client, stop], Some(deadline))?;
        match tokens[..] {
            [] => Err(SocketError::Stalled),
            // What is there already is served first.
            [Token::Stop] => Err(SocketError::Stopped),
            _ => Ok(()),
        }
    }

    /// The next message, of which at least one byte has come.
    ///
    /// A client that does not wait for its answers may have sent the beginning of the message after it too.
    /// Descriptors that came with that are that one's: the system ends a read where they came, and a
    /// message is sent with its own.
    pub(crate) fn receive(&mut self) -> Result<Message, SocketError> {
        let deadline = Deadline::after(TIMEOUT);
        if self.kept.is_some() {
            return self.receive_kept(deadline);
        }
        let Ahead { mut bytes, mut have, mut descriptors, mut too_many, ended } =
            std::mem::replace(&mut self.ahead, Ahead::new());
        if let Some(ended) = ended {
            return Err(ended);
        }
        // How many descriptors there were before the last read.
        let mut before = 0;
        while have < HEADER {
            before = descriptors.len();
            have += self.read(&mut bytes[have..], &mut descriptors, &mut too_many, deadline)?;
        }
        let (header, size) = header(&bytes)?;
        let mut body = vec![0; size - HEADER];
        if have > size {
            let rest = have - size;
            self.ahead.bytes[..rest].copy_from_slice(&bytes[size..have]);
            self.ahead.have = rest;
            self.ahead.descriptors = descriptors.split_off(before.min(descriptors.len()));
            self.ahead.too_many = std::mem::take(&mut too_many);
            have = size;
        }
        body[..have - HEADER].copy_from_slice(&bytes[HEADER..have]);
        let mut have = have - HEADER;
        while have < body.len() {
            have += self.read(&mut body[have..], &mut descriptors, &mut too_many, deadline)?;
        }
        Ok(Message { header, body, descriptors, too_many })
    }

    /// Reads at least one byte.
    pub(crate) fn read(
        &self,
        into: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        too_many: &mut bool,
        deadline: Deadline,
    ) -> Result<usize, SocketError> {
        loop {
            match rights::receive(&self.stream, into) {
                Ok(came) if came.bytes == 0 => return Err(SocketError::EndOfFile),
                Ok(came) => {
                    let bytes = came.bytes;
                    take(came, descriptors, too_many);
                    return Ok(bytes);
                }
                Err(Errno::AGAIN) => {
                    self.wait(Source::readable(&self.stream, Token::Client), deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a reply with its body in one piece and at most one descriptor.
    pub(crate) fn reply(
        &mut self,
        to: &Header,
        body: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), SocketError> {
        self.send(to, flag::REPLY, 0, body, descriptor)
    }

    /// Sends an error: a header alone.
    pub(crate) fn error(&mut self, to: &Header, errno: i32) -> Result<(), SocketError> {
        let errno = u32::try_from(errno).unwrap_or_default();
        self.send(to, flag::REPLY | flag::ERROR, errno, &[], None)
    }

    fn send(
        &mut self,
        to: &Header,
        flags: u32,
        error: u32,
        body: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), SocketError> {
        let size = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let header = Header { id: to.id, command: to.command, size, flags, error };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(body);
        self.answer(&bytes, descriptor)
    }

    /// Puts bytes into the socket.
    pub(crate) fn put(
        &self,
        bytes: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), SocketError> {
        let deadline = Deadline::after(TIMEOUT);
        let (mut rest, mut descriptor) = (bytes, descriptor);
        while !rest.is_empty() {
            match rights::send(&self.stream, rest, descriptor.as_slice()) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    descriptor = None;
                }
                Err(Errno::AGAIN) => {
                    self.wait(Source::writable(&self.stream, Token::Client), deadline)?;
                }
                Err(error) if rights::is_full(error, descriptor.as_slice()) => {
                    if !rights::wait_for_room(&self.stream, error, deadline)? {
                        return Err(SocketError::Stalled);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The header of a message, and how many bytes it has.
pub(crate) fn header(bytes: &[u8]) -> Result<(Header, usize), SocketError> {
    let Some((header, _)) = bytes.split_first_chunk() else { return Err(SocketError::Stalled) };
    let header = Header::parse(header);
    let size = usize::try_from(header.size).unwrap_or(usize::MAX);
    if (HEADER..=MAX_MESSAGE).contains(&size) {
        return Ok((header, size));
    }
    let (id, command, size) = (header.id, header.command, header.size);
    Err(SocketError::Size { id, command, size })
}

/// Takes the descriptors of what came, or closes them all when they are too many.
pub(crate) fn take(came: rights::Came, descriptors: &mut Vec<OwnedFd>, too_many: &mut bool) {
    descriptors.extend(came.handles);
    if came.handles_truncated || descriptors.len() > MAX_DESCRIPTORS {
        descriptors.clear();
        *too_many = true;
    }
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::protocol::command;

    fn message(id: u16, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(HEADER + body.len()).unwrap();
        let header = Header { id, command: command::GET_INFO, size, flags: 0, error: 0 };
        [&header.to_bytes()[..], body].concat()
    }

    #[test]
    fn what_a_look_received_is_the_beginning_of_the_next_message() {
        let stopped = Event::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(near, &stopped);
        assert!(!socket.look() && !socket.is_begun());
        // Less than a header, one whole, several at once, more than is received at first.
        let long = vec![7; 3 * FIRST];
        let sent = [message(1, &[1; 20]), message(2, &[]), message(3, &[3; 4]), message(4, &long)];
        far.write_all(&sent[0][..5]).unwrap();
        assert!(socket.look() && socket.is_begun());
        far.write_all(&sent[0][5..]).unwrap();
        sent[1..].iter().for_each(|one| far.write_all(one).unwrap());
        for (id, body) in [(1, &[1; 20][..]), (2, &[]), (3, &[3; 4]), (4, &long)] {
            assert!(socket.look());
            let message = socket.receive().unwrap();
            assert_eq!((message.header.id, &message.body[..]), (id, body));
        }
        assert!(!socket.look() && !socket.is_begun());
        drop(far);
        assert!(socket.look() && socket.is_begun());
        assert!(matches!(socket.receive(), Err(SocketError::EndOfFile)));
    }

    #[test]
    fn what_is_sent_to_a_client_never_waits_by_itself() {
        let stopped = Event::new().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let socket = Socket::new(near, &stopped);
        let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn a_message_that_stays_incomplete_is_waited_for_until_the_stop() {
        let stopped = Event::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut socket = Socket::new(near, &stopped);
        far.write_all(&message(1, &[1; 20])[..30]).unwrap();
        assert!(socket.look());
        stopped.signaller().unwrap().signal();
        assert!(matches!(socket.receive(), Err(SocketError::Stopped)));
    }
}
