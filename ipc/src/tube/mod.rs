//! The tube: the one message channel between two processes.
//!
//! A message is a typed value in bincode with up to [`MAX_HANDLES`] descriptors beside it, behind
//! a 16-byte header ([`frame`]). SEQPACKET carries it on Linux, STREAM on macOS and in
//! the portable flavour. Both ends run
//! this code and distrust each other:
//!
//! - lengths and counts are checked against [`MAX_MESSAGE`] and [`MAX_HANDLES`] before anything
//!   is allocated, and against each other afterwards;
//! - truncated control data, a bad header or a length that does not match poisons the tube: what
//!   came is closed, and every later call says [`TubeError::Poisoned`];
//! - every wait has a deadline, and a peer that is gone is [`TubeError::Disconnected`];
//! - receiving takes `&mut self`: it has one owner;
//! - who may not wait posts: what the socket has no room for is kept, [`MAX_UNSENT`] messages at
//!   most, and goes on with [`Tube::flush`] when there is room.

pub mod frame;
mod handshake;
mod listener;
#[cfg(not(any(target_os = "macos", cordon_portable)))]
pub(crate) mod packet;
#[cfg(any(target_os = "macos", cordon_portable, test, feature = "fuzzing"))]
pub(crate) mod stream;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, CodecError};
use crate::deadline::Deadline;
use crate::handles::Handles;
use crate::poll::{self, Source};
use crate::sys;

pub use crate::limits::MAX_HANDLES;
pub use crate::limits::MAX_MESSAGE;
pub use crate::limits::MAX_UNSENT;
pub use handshake::{Agreed, HandshakeError};
pub use listener::Listener;

/// Why a message did not go or come.
#[derive(Debug, thiserror::Error)]
pub enum TubeError {
    /// The peer closed its end or died.
    #[error("The peer is gone")]
    Disconnected,
    /// The deadline passed.
    #[error("The peer did not answer in time")]
    TimedOut,
    /// The peer broke the framing earlier; nothing can be understood any more.
    #[error("The tube is out of step after an earlier error")]
    Poisoned,
    /// The message is no message of this protocol.
    #[error("The peer sent a bad frame: {0}")]
    Frame(#[from] frame::FrameError),
    /// The content cannot be encoded or decoded.
    #[error("The message content is invalid")]
    Codec(#[from] CodecError),
    /// More descriptors than a message may carry.
    #[error("{0} descriptors are more than the {MAX_HANDLES} a message may carry")]
    TooManyHandles(usize),
    /// The system refused.
    #[error("The socket failed")]
    Io(#[source] io::Error),
}

impl From<Errno> for TubeError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Disconnected,
            other => Self::Io(other.into()),
        }
    }
}

impl From<io::Error> for TubeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Received<M> {
    /// The sender's number for it: replies carry their request's.
    pub id: u32,
    /// The content.
    pub message: M,
    /// What came beside it; closed unless taken.
    pub handles: Handles,
}

/// One end of a message channel.
#[derive(Debug)]
pub struct Tube {
    transport: sys::Transport,
    /// The message that came last. Its room is made once.
    incoming: Vec<u8>,
    /// The message that goes. Its room is kept.
    outgoing: Vec<u8>,
    /// Messages that were posted and have not gone yet.
    unsent: VecDeque<Vec<u8>>,
    /// Bytes of the first of them that have gone.
    gone: usize,
    poisoned: bool,
}

impl Tube {
    /// Two connected ends. Both close on exec; the one for a child is handed over by its spawn.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = sys::Transport::pair()?;
        Ok((Self::new(a), Self::new(b)))
    }

    /// A tube over a connected socket of the platform's kind: inherited, accepted or connected.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self::new(sys::Transport::from_fd(fd))
    }

    fn new(transport: sys::Transport) -> Self {
        let (incoming, outgoing, unsent) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { transport, incoming, outgoing, unsent, gone: 0, poisoned: false }
    }

    /// Sends one message. Blocks at most until the deadline when the peer does not read.
    ///
    /// # Errors
    /// [`TubeError`]; after [`TubeError::TimedOut`] nothing of the message was sent over SEQPACKET.
    pub fn send<M: Serialize>(
        &mut self,
        id: u32,
        message: &M,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        if self.poisoned {
            return Err(TubeError::Poisoned);
        }
        if handles.len() > MAX_HANDLES {
            return Err(TubeError::TooManyHandles(handles.len()));
        }
        self.flush()?;
        while self.has_unsent() {
            if poll::wait(&[Source::writable(&self.transport, ())], Some(deadline))?.is_empty() {
                return Err(TubeError::TimedOut);
            }
            self.flush()?;
        }
        self.encode(id, message, handles.len())?;
        self.transport.send(&self.outgoing, handles, deadline)
    }

    fn encode<M: Serialize>(
        &mut self,
        id: u32,
        message: &M,
        handles: usize,
    ) -> Result<(), TubeError> {
        self.outgoing.clear();
        self.outgoing.resize(frame::HEADER, 0);
        codec::encode_into(&mut self.outgoing, message, MAX_MESSAGE - frame::HEADER)?;
        let body = self.outgoing.len() - frame::HEADER;
        let header = frame::Header::new(body, id, handles);
        self.outgoing[..frame::HEADER].copy_from_slice(&header.to_bytes());
        Ok(())
    }

    /// Sends one message as far as there is room, without waiting. The rest is kept for
    /// [`Tube::flush`], in order with what else is sent.
    ///
    /// # Errors
    /// [`TubeError`]; [`TubeError::TimedOut`] when [`MAX_UNSENT`] messages are kept already, and
    /// this one is not.
    pub fn post<M: Serialize>(&mut self, id: u32, message: &M) -> Result<(), TubeError> {
        if self.poisoned {
            return Err(TubeError::Poisoned);
        }
        if self.unsent.len() >= MAX_UNSENT {
            return Err(TubeError::TimedOut);
        }
        self.encode(id, message, 0)?;
        self.unsent.push_back(std::mem::take(&mut self.outgoing));
        self.flush()
    }

    /// Whether messages that were posted have not gone: there is something to do when the tube can be
    /// written to.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends of what was posted as much as there is room for, without waiting.
    ///
    /// # Errors
    /// [`TubeError`].
    pub fn flush(&mut self) -> Result<(), TubeError> {
        while let Some(first) = self.unsent.front() {
            let rest = first.get(self.gone..).unwrap_or_default();
            let sent = self.transport.send_some(rest)?;
            if sent == 0 {
                break;
            }
            self.gone += sent;
            if self.gone >= first.len() {
                self.gone = 0;
                self.unsent.pop_front();
            }
        }
        Ok(())
    }

    /// Receives one message.
    ///
    /// # Errors
    /// [`TubeError`]. After [`TubeError::Codec`] the framing is intact and the caller may go on;
    /// after [`TubeError::Frame`] the tube is poisoned.
    pub fn receive<M: DeserializeOwned>(
        &mut self,
        deadline: Deadline,
    ) -> Result<Received<M>, TubeError> {
        let frame = self.receive_frame(deadline)?;
        let message = frame.decode()?;
        Ok(Received { id: frame.id, message, handles: frame.handles })
    }

    /// Receives one message, for a caller that learns from its number what it is.
    ///
    /// # Errors
    /// [`TubeError`]; after [`TubeError::Frame`] the tube is poisoned.
    pub fn receive_frame(&mut self, deadline: Deadline) -> Result<Frame<'_>, TubeError> {
        if self.poisoned {
            return Err(TubeError::Poisoned);
        }
        let (header, handles) =
            self.transport.receive(&mut self.incoming, deadline).inspect_err(|error| {
                self.poisoned = matches!(error, TubeError::Frame(_));
            })?;
        let body = frame::HEADER..header.length as usize;
        Ok(Frame { id: header.id, body: self.incoming.get(body).unwrap_or_default(), handles })
    }
}

/// A message that is not decoded yet.
#[derive(Debug)]
pub struct Frame<'t> {
    /// The sender's number for it.
    pub id: u32,
    pub(crate) body: &'t [u8],
    /// What came beside it; closed unless taken.
    pub handles: Handles,
}

impl Frame<'_> {
    /// The content.
    ///
    /// # Errors
    /// [`TubeError::Codec`] when it is no `M`.
    pub fn decode<M: DeserializeOwned>(&self) -> Result<M, TubeError> {
        Ok(codec::decode(self.body)?)
    }
}

impl From<Tube> for OwnedFd {
    /// Gives the end up, to be sent to another process.
    fn from(tube: Tube) -> Self {
        tube.transport.into()
    }
}

impl AsFd for Tube {
    /// The socket: to wait on, and to hand to a child that is being spawned.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}
