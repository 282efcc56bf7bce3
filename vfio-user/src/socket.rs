//! A client's socket: messages in, replies out, descriptors beside the header.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipc::poll::{self, Source};
use ipc::{Deadline, Event, rights};
use rustix::io::Errno;

use crate::protocol::{HEADER, Header, MAX_DESCRIPTORS, MAX_MESSAGE, flag};

/// How long a client may take over the rest of a message that it began, or to take a reply.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A command as it came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    /// More descriptors came than a message may have; they are closed.
    pub(super) too_many: bool,
}

/// Why there is no next message.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
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

/// A connected client.
#[derive(Debug)]
pub(super) struct Socket<'s> {
    stream: UnixStream,
    /// Readable when the server stops: a client that is waited for in the middle of a message is then
    /// waited for no longer.
    stopped: &'s Event,
}

/// What a client is waited for together with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Client,
    Stop,
}

impl<'s> Socket<'s> {
    pub(super) fn new(stream: UnixStream, stopped: &'s Event) -> Self {
        Self { stream, stopped }
    }

    /// Waits for the client, or for the stop.
    fn wait(&self, client: Source<'_, Token>, deadline: Deadline) -> Result<(), SocketError> {
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
    pub(super) fn receive(&self) -> Result<Message, SocketError> {
        let deadline = Deadline::after(TIMEOUT);
        let mut bytes = [0; HEADER];
        let (mut descriptors, mut too_many) = (Vec::new(), false);
        let mut have = 0;
        while have < HEADER {
            have += self.read(&mut bytes[have..], &mut descriptors, &mut too_many, deadline)?;
        }
        let header = Header::parse(&bytes);
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if !(HEADER..=MAX_MESSAGE).contains(&size) {
            let (id, command, size) = (header.id, header.command, header.size);
            return Err(SocketError::Size { id, command, size });
        }
        let mut body = vec![0; size - HEADER];
        let mut have = 0;
        while have < body.len() {
            have += self.read(&mut body[have..], &mut descriptors, &mut too_many, deadline)?;
        }
        Ok(Message { header, body, descriptors, too_many })
    }

    /// Reads at least one byte.
    fn read(
        &self,
        into: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        too_many: &mut bool,
        deadline: Deadline,
    ) -> Result<usize, SocketError> {
        loop {
            match rights::receive(&self.stream, into) {
                Ok(came) => {
                    descriptors.extend(came.handles);
                    if came.handles_truncated || descriptors.len() > MAX_DESCRIPTORS {
                        descriptors.clear();
                        *too_many = true;
                    }
                    return if came.bytes == 0 {
                        Err(SocketError::EndOfFile)
                    } else {
                        Ok(came.bytes)
                    };
                }
                Err(Errno::AGAIN) => {
                    self.wait(Source::readable(&self.stream, Token::Client), deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a reply with its body in one piece and at most one descriptor.
    pub(super) fn reply(
        &self,
        to: &Header,
        body: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), SocketError> {
        self.send(to, flag::REPLY, 0, body, descriptor)
    }

    /// Sends an error: a header alone.
    pub(super) fn error(&self, to: &Header, errno: i32) -> Result<(), SocketError> {
        let errno = u32::try_from(errno).unwrap_or_default();
        self.send(to, flag::REPLY | flag::ERROR, errno, &[], None)
    }

    fn send(
        &self,
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
        let deadline = Deadline::after(TIMEOUT);
        let (mut rest, mut descriptor) = (&bytes[..], descriptor);
        while !rest.is_empty() {
            match rights::send(&self.stream, rest, descriptor.as_slice()) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    descriptor = None;
                }
                Err(Errno::AGAIN) => {
                    self.wait(Source::writable(&self.stream, Token::Client), deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
