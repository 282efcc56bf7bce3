//! The tube of macOS: a stream of bytes, in which a message begins where the one before it ends. Descriptors
//! come with the first byte of what they were sent with, and are acknowledged.

use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use cordon_ipc::Deadline;
use cordon_ipc::fuzzing::Stream;
use cordon_ipc::tube::frame::{FrameError, HEADER};
use cordon_ipc::tube::{MAX_HANDLES, MAX_MESSAGE, TubeError};

use super::peer::{Message, Witness, framed, header};
use crate::allocations::largest;

/// What happens next.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// The peer sends, in pieces of so many bytes at most (0: all at once), the descriptors with the first.
    Send(Message, u8),
    /// The peer acknowledges.
    Acknowledge,
    /// This side sends so many descriptors, which it keeps until that is acknowledged.
    Hold(u8),
    /// This side receives.
    Receive,
    /// The peer is gone.
    Close,
}

/// The number of an acknowledgement, and how many messages may wait for one.
const ACKNOWLEDGED: u32 = u32::MAX;
const MOST_HELD: usize = 64;

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Message { id: u32, bytes: Vec<u8>, handles: usize },
    Frame,
    TimedOut,
    Disconnected,
}

struct Model {
    stream: Stream,
    peer: Option<OwnedFd>,
    witness: Witness,
    /// What the peer sent and was not received: bytes, and descriptors with the byte at a place.
    bytes: Vec<u8>,
    marks: Vec<(usize, usize)>,
    held: usize,
}

pub fn run(steps: &[Step]) {
    let (stream, peer) = Stream::pair().unwrap();
    let (bytes, marks, witness) = (Vec::new(), Vec::new(), Witness::new());
    let mut model = Model { stream, peer: Some(peer), witness, bytes, marks, held: 0 };
    let _ = steps.iter().all(|step| model.step(step));
    let Model { stream, peer, witness, .. } = model;
    drop((stream, peer));
    witness.assert_all_closed();
}

impl Model {
    /// Whether it goes on: after a bad frame nothing is understood any more.
    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Send(message, pieces) => {
                let (bytes, handles) = message.parts();
                return self.send(&bytes, handles, usize::from(*pieces));
            }
            Step::Acknowledge => return self.send(&framed(ACKNOWLEDGED, &[], 0), 0, 0),
            Step::Close => {
                self.drain();
                self.peer = None;
            }
            Step::Hold(count) => {
                let handles = vec![self.witness.borrow(); usize::from(*count) % MAX_HANDLES + 1];
                let sent = self.stream.send(7, b"held", &handles, Deadline::now());
                match sent {
                    _ if self.held == MOST_HELD => {
                        let Err(TubeError::Frame(FrameError::Acknowledgement)) = sent else {
                            panic!("{sent:?}")
                        };
                    }
                    Ok(()) => self.held += 1,
                    Err(TubeError::Disconnected) if self.peer.is_none() => return false,
                    Err(other) => panic!("{other:?}"),
                }
                self.drain();
            }
            Step::Receive => {
                let wanted = self.wanted();
                let mut buffer = Vec::new();
                let stream = &mut self.stream;
                let (found, allocated) = largest(|| stream.receive(&mut buffer, Deadline::now()));
                let found = match found {
                    Ok((header, handles)) => {
                        let (id, bytes) = (header.id, buffer);
                        Found::Message { id, bytes, handles: handles.len() }
                    }
                    Err(TubeError::Frame(_)) => Found::Frame,
                    Err(TubeError::TimedOut) => Found::TimedOut,
                    Err(TubeError::Disconnected) => Found::Disconnected,
                    Err(other) => panic!("{other:?}"),
                };
                assert_eq!(found, wanted);
                assert!(allocated <= 2 * MAX_MESSAGE, "{allocated} bytes at once");
                self.drain();
                return found != Found::Frame;
            }
        }
        true
    }

    /// Sends, and notes what went; `false` once the system is full.
    fn send(&mut self, bytes: &[u8], handles: usize, pieces: usize) -> bool {
        let Some(peer) = &self.peer else { return true };
        let mut handles = handles;
        for piece in bytes.chunks(if pieces == 0 { usize::MAX } else { pieces }) {
            if !self.witness.send(peer, piece, handles) {
                return false;
            }
            if handles > 0 {
                self.marks.push((self.bytes.len(), handles));
            }
            self.bytes.extend_from_slice(piece);
            handles = 0;
        }
        true
    }

    /// What this side must find.
    fn wanted(&mut self) -> Found {
        loop {
            let early = if self.peer.is_some() { Found::TimedOut } else { Found::Disconnected };
            if self.bytes.len() < HEADER {
                // Too many of them are told at once, and what comes later may be no header anyhow.
                return if self.handles_within(HEADER) > MAX_HANDLES {
                    Found::Frame
                } else {
                    early
                };
            }
            let Some((length, id, said)) = header(&self.bytes) else { return Found::Frame };
            let came = self.handles_within(length);
            if came > MAX_HANDLES {
                return Found::Frame;
            }
            if self.bytes.len() < length {
                return early;
            }
            let bytes: Vec<u8> = self.bytes.drain(..length).collect();
            self.marks.retain(|(at, _)| *at >= length);
            self.marks.iter_mut().for_each(|(at, _)| *at -= length);
            if id != ACKNOWLEDGED {
                let is_whole = said == came;
                return if is_whole {
                    Found::Message { id, bytes, handles: came }
                } else {
                    Found::Frame
                };
            }
            if length != HEADER || said != 0 || came != 0 || self.held == 0 {
                return Found::Frame;
            }
            self.held -= 1;
        }
    }

    /// Descriptors with the bytes up to `end`.
    fn handles_within(&self, end: usize) -> usize {
        self.marks.iter().filter(|(at, _)| *at < end).map(|(_, handles)| handles).sum()
    }

    /// The peer takes what it is sent.
    fn drain(&self) {
        let Some(peer) = &self.peer else { return };
        let mut buffer = [0; 4096];
        while cordon_ipc::rights::receive(peer, &mut buffer).is_ok_and(|came| came.bytes > 0) {}
    }
}
