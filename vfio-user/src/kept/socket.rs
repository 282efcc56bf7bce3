//! The socket of a client that is kept: its messages stay in it until their answers were sent.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ipc::poll::{self, Source};
use ipc::{Deadline, rights};
use rustix::io::Errno;

use super::{Phase, consume};
use crate::limits::MAX_KEPT_MESSAGE;
use crate::protocol::{HEADER, Header};
use crate::socket::{Ahead, Message, Socket, SocketError, TIMEOUT, Token, header, take};
use crate::sys;

/// How long a message of which a part is in the socket is left alone.
const PAUSE: Duration = Duration::from_millis(1);

impl Socket<'_> {
    /// [`Socket::receive`] of a client that is kept: what is received is in the socket still.
    pub(crate) fn receive_kept(&mut self, deadline: Deadline) -> Result<Message, SocketError> {
        // What is sent most often is looked at whole by one call.
        self.look();
        let Ahead { bytes, have, descriptors, too_many, ended } =
            std::mem::replace(&mut self.ahead, Ahead::new());
        if let Some(ended) = ended {
            return Err(ended);
        }
        let (header, size) = match have {
            HEADER.. => header(&bytes)?,
            _ => header(&self.look_at(HEADER, deadline)?.body)?,
        };
        self.ahead = Ahead::new();
        if size > MAX_KEPT_MESSAGE {
            return self.receive_torn(header, size, deadline);
        }
        self.size = size;
        // A look that filled its room goes on to the next descriptors that there are, of whichever message.
        if have == size && have < bytes.len() {
            let body = bytes[HEADER..size].to_vec();
            return Ok(Message { header, body, descriptors, too_many });
        }
        drop(descriptors);
        let Message { mut body, descriptors, too_many, .. } = self.look_at(size, deadline)?;
        body.drain(..HEADER);
        Ok(Message { header, body, descriptors, too_many })
    }

    /// Looks at so many bytes from the beginning of the message on, with what came beside them. There is room for one byte
    /// more: a look that fills its room brings the next descriptors that there are, so these are of what follows.
    fn look_at(&mut self, size: usize, deadline: Deadline) -> Result<Message, SocketError> {
        sys::look_from_begin(&self.stream)?;
        let (mut body, mut have) = (vec![0; size + 1], 0);
        let (mut descriptors, mut too_many) = (Vec::new(), false);
        while have < size {
            match rights::peek(&self.stream, &mut body[have..]) {
                Ok(came) if came.bytes == 0 => return Err(SocketError::EndOfFile),
                Ok(came) => {
                    have += came.bytes;
                    if have <= size {
                        take(came, &mut descriptors, &mut too_many);
                    }
                }
                Err(Errno::AGAIN) => self.pause(deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        self.ahead = Ahead::new();
        if have > size {
            (self.ahead.bytes[0], self.ahead.have) = (body[size], 1);
        }
        body.truncate(size);
        let header = Header { id: 0, command: 0, size: 0, flags: 0, error: 0 };
        Ok(Message { header, body, descriptors, too_many })
    }

    /// Waits a moment for more of a message that is in the socket in part, which is readable for that.
    fn pause(&self, deadline: Deadline) -> Result<(), SocketError> {
        if deadline.passed() {
            return Err(SocketError::Stalled);
        }
        let stop = Source::readable(self.stopped, Token::Stop);
        match poll::wait(&[stop], Some(Deadline::after(PAUSE).min(deadline)))?[..] {
            [] => Ok(()),
            _ => Err(SocketError::Stopped),
        }
    }

    /// Takes a message out of the socket that is too long to stay there.
    fn receive_torn(
        &mut self,
        header: Header,
        size: usize,
        deadline: Deadline,
    ) -> Result<Message, SocketError> {
        if let Some(kept) = &mut self.kept {
            kept.journal.set(Phase::Torn);
        }
        self.size = 0;
        let (mut descriptors, mut too_many) = (Vec::new(), false);
        let (mut body, mut have) = (vec![0; size], 0);
        while have < size {
            have += self.read(&mut body[have..], &mut descriptors, &mut too_many, deadline)?;
        }
        body.drain(..HEADER);
        Ok(Message { header, body, descriptors, too_many })
    }

    /// The message that is served has no answer.
    pub(crate) fn no_reply(&mut self) -> Result<(), SocketError> {
        self.answer(&[], None)
    }

    /// The client sees the end of its connection, also where somebody else has it open.
    pub(crate) fn end(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.journal.set(Phase::Torn);
            let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
        }
    }

    /// Answers the message that is served, by steps of [`crate::kept`] where the client is kept.
    pub(crate) fn answer(
        &mut self,
        bytes: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), SocketError> {
        let Some(kept) = &mut self.kept else { return self.put(bytes, descriptor) };
        let length = bytes.len();
        // Of a message that is not in the socket any more nothing says whether its answer was staged.
        if self.size > 0 && descriptor.is_none() && length <= MAX_KEPT_MESSAGE {
            let written = kept.journal.write_answer(bytes);
            written.map_err(|error| SocketError::Io(io::Error::other(error)))?;
            kept.journal.set(Phase::Executed { rest: self.ahead.have, length });
            if kept.stage(bytes)? {
                kept.journal.set(Phase::Staged { rest: self.ahead.have, length });
                self.send_staged(length)?;
                // The last of it: the client has its answer already.
                consume(&self.stream, std::mem::take(&mut self.size))?;
                return self.open();
            }
        }
        kept.journal.set(Phase::Torn);
        self.put(bytes, descriptor)?;
        consume(&self.stream, std::mem::take(&mut self.size))?;
        self.open()
    }

    /// Sends what is in the pipe.
    fn send_staged(&self, length: usize) -> Result<(), SocketError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let (mut left, deadline) = (length, Deadline::after(TIMEOUT));
        while left > 0 {
            match kept.send(&self.stream, left) {
                Ok(sent) => left = left.saturating_sub(sent),
                Err(Errno::INTR) => {}
                // Also where somebody else has taken what was in the pipe.
                Err(Errno::AGAIN) if deadline.passed() => return Err(SocketError::Stalled),
                Err(Errno::AGAIN) => {
                    self.wait(Source::writable(&self.stream, Token::Client), deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message is to be served.
    #[expect(clippy::unnecessary_wraps, reason = "the last step of an answer")]
    fn open(&mut self) -> Result<(), SocketError> {
        if let Some(kept) = &mut self.kept {
            kept.journal.set(Phase::Open);
        }
        Ok(())
    }
}
