//! The tube of Linux: a packet is a message.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use cordon_ipc::codec;
use cordon_ipc::tube::{MAX_HANDLES, MAX_MESSAGE, TubeError};
use cordon_ipc::wire::function::Request;
use cordon_ipc::{Deadline, Tube, fuzzing};

use super::peer::{Message, Witness, header};
use crate::allocations::largest;

/// What happens next.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// The peer sends.
    Send(Message),
    /// This side receives, and decodes.
    Receive,
    /// The peer is gone.
    Close,
}

/// What a packet comes to.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Message { id: u32, body: Vec<u8>, handles: usize },
    Frame,
    Poisoned,
    TimedOut,
    Disconnected,
}

fn expected(bytes: &[u8], handles: usize) -> Expected {
    if bytes.len() > MAX_MESSAGE || handles > MAX_HANDLES {
        return Expected::Frame;
    }
    if bytes.is_empty() {
        return Expected::Disconnected;
    }
    match header(bytes) {
        Some((length, id, said)) if length == bytes.len() && said == handles => {
            Expected::Message { id, body: bytes[16..].to_vec(), handles }
        }
        _ => Expected::Frame,
    }
}

pub fn run(steps: &[Step]) {
    let (mut tube, peer) = Tube::pair().unwrap();
    let (mut peer, witness) = (Some(OwnedFd::from(peer)), Witness::new());
    let (mut queue, mut poisoned) = (VecDeque::new(), false);
    for step in steps {
        match step {
            Step::Send(message) => {
                let (bytes, handles) = message.parts();
                // What the system refuses, because it is full, was not sent.
                if let Some(peer) = &peer
                    && witness.send(peer, &bytes, handles)
                {
                    queue.push_back(expected(&bytes, handles));
                }
            }
            Step::Close => peer = None,
            Step::Receive => {
                let wanted = match (poisoned, peer.is_some()) {
                    (true, _) => Expected::Poisoned,
                    (false, true) => queue.pop_front().unwrap_or(Expected::TimedOut),
                    (false, false) => queue.pop_front().unwrap_or(Expected::Disconnected),
                };
                let (found, allocated) = largest(|| receive(&mut tube));
                assert_eq!(found, wanted);
                // The room for a message, decoded and as it is compared here.
                assert!(allocated <= 8 * MAX_MESSAGE, "{allocated} bytes at once");
                poisoned |= found == Expected::Frame;
            }
        }
    }
    drop((tube, peer));
    witness.assert_all_closed();
}

fn receive(tube: &mut Tube) -> Expected {
    match tube.receive_frame(Deadline::now()) {
        Ok(frame) => {
            let body = fuzzing::body(&frame).to_vec();
            let decoded = frame.decode::<Request>();
            assert_eq!(decoded.ok(), codec::decode(&body).ok());
            Expected::Message { id: frame.id, body, handles: frame.handles.len() }
        }
        Err(TubeError::Frame(_)) => Expected::Frame,
        Err(TubeError::Poisoned) => Expected::Poisoned,
        Err(TubeError::TimedOut) => Expected::TimedOut,
        Err(TubeError::Disconnected) => Expected::Disconnected,
        Err(other) => panic!("{other:?}"),
    }
}
