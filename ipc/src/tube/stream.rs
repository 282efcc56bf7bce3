//! Messages over STREAM, for systems without SEQPACKET (macOS): the header's length field frames
//! them. Descriptors ride on the first byte of their message.
//!
//! A descriptor that is closed by its sender while it is still on its way may arrive broken there. So
//! the sender keeps a duplicate until the receiver acknowledges the message: a header alone, with a
//! number that no message has. Acknowledgements come in the order of the messages and are never
//! seen outside of this file.
//!
//! Compiled for Linux in tests and in the portable flavour, where it is the tube of every process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::net::SocketType;

use super::frame::{FrameError, HEADER, Header};
use super::{MAX_HANDLES, TubeError};
use crate::deadline::Deadline;
use crate::handles::Handles;
use crate::limits::MAX_HELD as MOST_HELD;
use crate::poll;
use crate::{rights, sys};

/// A connected STREAM socket and what of a message has come so far.
#[derive(Debug)]
pub(crate) struct StreamTransport {
    socket: OwnedFd,
    partial: Vec<u8>,
    handles: Vec<OwnedFd>,
    /// What was sent and not acknowledged, a message each.
    held: Mutex<VecDeque<Vec<OwnedFd>>>,
}

/// The number of an acknowledgement.
const ACKNOWLEDGED: u32 = u32::MAX;
/// How long an acknowledgement may take to be taken: it is 16 bytes.
const TIMEOUT: Duration = Duration::from_secs(1);

impl StreamTransport {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = sys::socket_pair(SocketType::STREAM)?;
        Ok((Self::from_fd(a), Self::from_fd(b)))
    }

    pub(crate) fn from_fd(socket: OwnedFd) -> Self {
        sys::prepare_socket(socket.as_fd());
        let (partial, handles, held) = (Vec::new(), Vec::new(), Mutex::default());
        Self { socket, partial, handles, held }
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<Vec<OwnedFd>>> {
        self.held.lock()
    }

    /// Keeps what goes with a message until the receiver has it.
    fn hold(&self, handles: &[BorrowedFd<'_>]) -> Result<(), TubeError> {
        let duplicates: Result<Vec<OwnedFd>, _> =
            handles.iter().map(|handle| rustix::io::fcntl_dupfd_cloexec(handle, 3)).collect();
        let mut held = self.held();
        if held.len() >= MOST_HELD {
            // A receiver that acknowledges nothing is out of step.
            return Err(TubeError::Frame(FrameError::Acknowledgement));
        }
        held.push_back(duplicates?);
        Ok(())
    }

    pub(crate) fn send(
        &self,
        bytes: &[u8],
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        if !handles.is_empty() {
            self.hold(handles)?;
        }
        self.send_all(bytes, handles, deadline).inspect_err(|error| {
            if !handles.is_empty() && matches!(error, TubeError::TimedOut) {
                // They are at most on their way with bytes that nobody will acknowledge.
                self.held().pop_back();
            }
        })
    }

    fn send_all(
        &self,
        bytes: &[u8],
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        let mut rest = bytes;
        let mut handles = handles;
        while !rest.is_empty() {
            match rights::send(&self.socket, rest, handles) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    handles = &[];
                }
                Err(error) if rights::is_full(error, handles) => {
                    if !rights::wait_for_room(&self.socket, error, deadline)? {
                        return Err(TubeError::TimedOut);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends without waiting; the bytes that went, 0 when there is no room.
    pub(crate) fn send_some(&self, bytes: &[u8]) -> Result<usize, TubeError> {
        match rights::send(&self.socket, bytes, &[]) {
            Err(Errno::AGAIN) => Ok(0),
            sent => Ok(sent?),
        }
    }

    /// A message that is not complete at the deadline is kept and completed by the next call.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<(Header, Handles), TubeError> {
        loop {
            let wanted = if self.partial.len() < HEADER {
                HEADER
            } else {
                let header = Header::parse(&self.partial)?;
                if self.partial.len() == header.length as usize {
                    if header.id != ACKNOWLEDGED {
                        return self.complete(header, buffer);
                    }
                    self.acknowledged(header)?;
                    continue;
                }
                header.length as usize
            };
            self.read(wanted, deadline)?;
        }
    }

    /// The oldest message that was held has arrived.
    fn acknowledged(&mut self, header: Header) -> Result<(), TubeError> {
        self.partial.clear();
        // What came beside it is closed here: it would count as the next message's.
        let came = std::mem::take(&mut self.handles);
        let whole = header.length as usize == HEADER && header.handles == 0 && came.is_empty();
        match self.held().pop_front().filter(|_| whole) {
            Some(_arrived) => Ok(()),
            None => Err(FrameError::Acknowledgement.into()),
        }
    }

    fn complete(
        &mut self,
        header: Header,
        buffer: &mut Vec<u8>,
    ) -> Result<(Header, Handles), TubeError> {
        let came = self.handles.len();
        let handles = Handles::from(std::mem::take(&mut self.handles));
        std::mem::swap(buffer, &mut self.partial);
        self.partial.clear();
        if usize::from(header.handles) != came {
            return Err(FrameError::Handles { said: header.handles, came }.into());
        }
        if came > 0 {
            let received = Header::new(0, ACKNOWLEDGED, 0).to_bytes();
            match self.send_all(&received, &[], Deadline::after(TIMEOUT)) {
                // Whoever is gone holds nothing any more.
                Ok(()) | Err(TubeError::Disconnected) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((header, handles))
    }

    /// Reads at least one byte towards a message of `wanted` bytes, never past it.
    fn read(&mut self, wanted: usize, deadline: Deadline) -> Result<(), TubeError> {
        let have = self.partial.len();
        self.partial.resize(wanted, 0);
        let came = loop {
            match rights::receive(&self.socket, &mut self.partial[have..]) {
                Ok(came) => break came,
                Err(Errno::AGAIN) => match poll::wait_readable(&self.socket, deadline) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.partial.truncate(have);
                        return Err(TubeError::TimedOut);
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(error) => {
                    self.partial.truncate(have);
                    return Err(error.into());
                }
            }
        };
        self.partial.truncate(have + came.bytes);
        self.handles.extend(came.handles);
        if came.handles_truncated || self.handles.len() > MAX_HANDLES {
            self.handles.clear();
            return Err(FrameError::Truncated.into());
        }
        if came.bytes == 0 {
            // In the middle of a message too: the peer died while it wrote.
            return Err(TubeError::Disconnected);
        }
        Ok(())
    }
}

impl From<StreamTransport> for OwnedFd {
    /// What was received in part is lost: only a fresh end is given up.
    fn from(transport: StreamTransport) -> Self {
        transport.socket
    }
}

impl AsFd for StreamTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tube::MAX_MESSAGE;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    fn message(id: u32, body: &[u8], handles: usize) -> Vec<u8> {
        let mut bytes = Header::new(body.len(), id, handles).to_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn messages_keep_their_bounds_and_their_descriptors() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        a.send(&message(1, b"one", 0), &[], soon()).unwrap();
        a.send(&message(2, b"", 1), &[null.as_fd()], soon()).unwrap();
        a.send(&message(3, b"three", 2), &[null.as_fd(), null.as_fd()], soon()).unwrap();
        let mut buffer = Vec::new();
        for (id, body, handles) in [(1, &b"one"[..], 0), (2, b"", 1), (3, b"three", 2)] {
            let (header, came) = b.receive(&mut buffer, soon()).unwrap();
            assert_eq!((header.id, &buffer[HEADER..], came.len()), (id, body, handles));
        }
    }

    /// Whether somebody still has the writing end of a pipe.
    fn is_held(read: &OwnedFd) -> bool {
        rustix::fs::fcntl_setfl(read, rustix::fs::OFlags::NONBLOCK).unwrap();
        rustix::io::read(read, &mut [0; 1]) == Err(Errno::AGAIN)
    }

    #[test]
    fn a_descriptor_stays_open_at_its_sender_until_the_receiver_has_it() {
        let (mut a, mut b) = StreamTransport::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send(&message(1, b"x", 1), &[write.as_fd()], soon()).unwrap();
        drop(write);
        assert_eq!(a.held().len(), 1);
        let mut buffer = Vec::new();
        let (_, came) = b.receive(&mut buffer, soon()).unwrap();
        assert_eq!(came.len(), 1);
        drop(came);
        // The receiver has closed its own; the sender's goes with the acknowledgement, which is
        // read in passing.
        assert!(is_held(&read));
        assert!(matches!(a.receive(&mut buffer, Deadline::now()), Err(TubeError::TimedOut)));
        assert!(a.held().is_empty() && !is_held(&read));
        // Also between messages, in both directions at once.
        let null = std::fs::File::open("/dev/null").unwrap();
        for id in 2..100 {
            a.send(&message(id, b"there", 1), &[null.as_fd()], soon()).unwrap();
            b.send(&message(id, b"back", 1), &[null.as_fd()], soon()).unwrap();
            assert_eq!(b.receive(&mut buffer, soon()).unwrap().0.id, id);
            assert_eq!(a.receive(&mut buffer, soon()).unwrap().0.id, id);
            assert!(a.held().len() <= 1 && b.held().len() <= 1);
        }
    }

    #[test]
    fn acknowledgements_of_nothing_and_none_at_all_are_out_of_step() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        a.send_all(&message(ACKNOWLEDGED, b"", 0), &[], soon()).unwrap();
        let error = b.receive(&mut Vec::new(), soon()).unwrap_err();
        assert!(matches!(error, TubeError::Frame(FrameError::Acknowledgement)), "{error}");
        // One that has a descriptor, which is not the next message's.
        let (a, mut b) = StreamTransport::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        b.send(&message(1, b"", 1), &[write.as_fd()], soon()).unwrap();
        let beside = &[write.as_fd()];
        a.send_all(&message(ACKNOWLEDGED, b"", 0), beside, soon()).unwrap();
        let error = b.receive(&mut Vec::new(), soon()).unwrap_err();
        assert!(matches!(error, TubeError::Frame(FrameError::Acknowledgement)), "{error}");
        drop((a, b, write));
        assert!(!is_held(&read));
        let (a, _b) = StreamTransport::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let sent = (1..100).find_map(|id| {
            a.send(&message(id, b"", 1), &[null.as_fd()], soon()).err().map(|error| (id, error))
        });
        let (id, error) = sent.unwrap();
        assert!(matches!(error, TubeError::Frame(FrameError::Acknowledgement)), "{error}");
        assert_eq!(usize::try_from(id).unwrap(), MOST_HELD + 1);
    }

    #[test]
    fn a_message_in_pieces_is_put_together_across_deadlines() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        let bytes = message(7, &[0xab; 100], 0);
        let mut buffer = Vec::new();
        for piece in bytes.chunks(9) {
            let early = b.receive(&mut buffer, Deadline::now());
            assert!(matches!(early, Err(TubeError::TimedOut)));
            a.send(piece, &[], soon()).unwrap();
        }
        let (header, _) = b.receive(&mut buffer, soon()).unwrap();
        assert_eq!((header.id, &buffer[HEADER..]), (7, &[0xab; 100][..]));
    }

    #[test]
    fn the_largest_message_goes_through_small_socket_buffers() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        let bytes = message(9, &vec![0x5a; MAX_MESSAGE - HEADER], 0);
        std::thread::scope(|scope| {
            scope.spawn(|| a.send(&bytes, &[], soon()).unwrap());
            let mut buffer = Vec::new();
            b.receive(&mut buffer, soon()).unwrap();
            assert_eq!(buffer, bytes);
        });
    }

    #[test]
    fn what_is_sent_without_waiting_goes_in_pieces() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        let bytes = message(9, &vec![0x5a; MAX_MESSAGE - HEADER], 0);
        let mut rest = &bytes.repeat(4)[..];
        let (mut buffer, mut came) = (Vec::new(), 0);
        while !rest.is_empty() || came < 4 {
            let sent = a.send_some(rest).unwrap();
            rest = &rest[sent..];
            match b.receive(&mut buffer, Deadline::now()) {
                Ok(_) => came += usize::from(buffer == bytes),
                Err(error) => assert!(matches!(error, TubeError::TimedOut), "{error}"),
            }
        }
    }

    /// On macOS a full buffer has no room for descriptors long before it has none for bytes, and says so
    /// by another error, as if the message could never go.
    #[test]
    fn a_descriptor_that_finds_no_room_waits_for_it() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        let filling = message(1, &[1; 16], 0);
        let mut filled = 0;
        // Also in part: what is left over goes first.
        let rest = loop {
            match a.send_some(&filling).unwrap() {
                sent if sent == filling.len() => filled += 1,
                sent => break if sent == 0 { &[][..] } else { &filling[sent..] },
            }
        };
        let (null, more) =
            (std::fs::File::open("/dev/null").unwrap(), usize::from(!rest.is_empty()));
        let early = a.send(
            &message(2, b"", 1),
            &[null.as_fd()],
            Deadline::after(Duration::from_millis(20)),
        );
        assert!(matches!(early, Err(TubeError::TimedOut)), "{early:?}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                a.send_all(rest, &[], soon()).unwrap();
                a.send(&message(3, b"", 1), &[null.as_fd()], soon()).unwrap();
            });
            let mut buffer = Vec::new();
            for _ in 0..filled + more {
                assert_eq!(b.receive(&mut buffer, soon()).unwrap().0.id, 1);
            }
            let (header, came) = b.receive(&mut buffer, soon()).unwrap();
            assert_eq!((header.id, came.len()), (3, 1));
        });
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_anything_is_read() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        a.send(&[0xff; HEADER], &[], soon()).unwrap();
        let error = b.receive(&mut Vec::new(), soon()).unwrap_err();
        assert!(matches!(error, TubeError::Frame(FrameError::Length(u32::MAX))), "{error}");
    }

    #[test]
    fn death_in_the_middle_of_a_message_is_a_disconnect() {
        let (a, mut b) = StreamTransport::pair().unwrap();
        a.send(&message(1, &[1; 50], 0)[..30], &[], soon()).unwrap();
        drop(a);
        assert!(matches!(b.receive(&mut Vec::new(), soon()), Err(TubeError::Disconnected)));
    }
}
