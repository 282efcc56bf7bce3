//! What the fuzz targets reach and nobody else does: the bytes of a message before they are decoded, and
//! the STREAM transport, which carries tubes on macOS only.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::deadline::Deadline;
use crate::handles::Handles;
use crate::tube::stream::StreamTransport;
use crate::tube::{Frame, TubeError, frame};

/// The content of a message.
#[must_use]
pub fn body<'f>(frame: &'f Frame<'_>) -> &'f [u8] {
    frame.body
}

/// One end of a tube over STREAM, beneath the types of messages.
#[derive(Debug)]
pub struct Stream(StreamTransport);

impl Stream {
    /// An end, and the socket of its peer.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = StreamTransport::pair()?;
        Ok((Self(ours), theirs.into()))
    }

    /// Sends a message of which all but the header is `body`.
    ///
    /// # Errors
    /// [`TubeError`].
    pub fn send(
        &self,
        id: u32,
        body: &[u8],
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        let header = frame::Header::new(body.len(), id, handles.len()).to_bytes();
        self.0.send(&[&header, body].concat(), handles, deadline)
    }

    /// Sends what there is room for; how many bytes that was.
    ///
    /// # Errors
    /// [`TubeError`].
    pub fn send_some(&self, bytes: &[u8]) -> Result<usize, TubeError> {
        self.0.send_some(bytes)
    }

    /// Receives a message into `buffer`, header and body.
    ///
    /// # Errors
    /// [`TubeError`].
    pub fn receive(
        &mut self,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<(frame::Header, Handles), TubeError> {
        self.0.receive(buffer, deadline)
    }
}
