//! What a peer sends: messages that are right, nearly right, and none.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use arbitrary::Arbitrary;
use cordon_ipc::tube::frame::HEADER;
use cordon_ipc::tube::{MAX_HANDLES, MAX_MESSAGE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};

/// Most descriptors that this peer sends at once: more than a message may carry.
const MOST: usize = MAX_HANDLES + 4;

/// Bytes and the number of descriptors beside them.
#[derive(Arbitrary, Debug)]
pub enum Message {
    /// As it should be, unless a field of the header is said to be another.
    Framed { id: u32, body: Vec<u8>, handles: u8, wrong: Option<Wrong> },
    /// Any bytes.
    Raw { bytes: Vec<u8>, handles: u8 },
    /// A header that is right, and so many zeros.
    Long { id: u32, body: u32 },
}

/// What a header says instead.
#[derive(Arbitrary, Debug)]
pub enum Wrong {
    Length(u32),
    Shorter(u8),
    Longer(u8),
    Handles(u16),
    Reserved(u8),
}

impl Message {
    /// The bytes, and how many descriptors go with them.
    pub fn parts(&self) -> (Vec<u8>, usize) {
        match self {
            Self::Raw { bytes, handles } => (bytes.clone(), usize::from(*handles) % (MOST + 1)),
            Self::Long { id, body } => {
                let body = *body as usize % (MAX_MESSAGE + 64);
                (framed(*id, &vec![0; body], 0), 0)
            }
            Self::Framed { id, body, handles, wrong } => {
                let handles = usize::from(*handles) % (MOST + 1);
                let mut bytes = framed(*id, body, handles);
                let length = bytes.len() as u32;
                match wrong {
                    None => {}
                    Some(Wrong::Length(said)) => put(&mut bytes, 0, &said.to_le_bytes()),
                    Some(Wrong::Shorter(by)) => {
                        put(&mut bytes, 0, &length.wrapping_sub(u32::from(*by)).to_le_bytes());
                    }
                    Some(Wrong::Longer(by)) => {
                        put(&mut bytes, 0, &(length + u32::from(*by)).to_le_bytes());
                    }
                    Some(Wrong::Handles(said)) => put(&mut bytes, 8, &said.to_le_bytes()),
                    Some(Wrong::Reserved(at)) => bytes[10 + usize::from(*at) % 6] ^= 1,
                }
                (bytes, handles)
            }
        }
    }
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// A message with its header.
pub fn framed(id: u32, body: &[u8], handles: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    put(&mut bytes, 0, &((HEADER + body.len()) as u32).to_le_bytes());
    put(&mut bytes, 4, &id.to_le_bytes());
    put(&mut bytes, 8, &(handles as u16).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The header of a message as the model reads it: length, number, descriptors. `None` if it is none.
pub fn header(bytes: &[u8]) -> Option<(usize, u32, usize)> {
    let bytes = bytes.get(..HEADER)?;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (length, handles) = (word(0) as usize, usize::from(bytes[8]) | usize::from(bytes[9]) << 8);
    let is_one = (HEADER..=MAX_MESSAGE).contains(&length)
        && handles <= MAX_HANDLES
        && bytes[10..].iter().all(|byte| *byte == 0);
    is_one.then_some((length, word(4), handles))
}

/// A descriptor to send again and again, of which it can be told whether any is still open.
pub struct Witness {
    read: OwnedFd,
    write: Option<OwnedFd>,
}

impl Witness {
    pub fn new() -> Self {
        let (read, write) = rustix::pipe::pipe().unwrap();
        Self { read, write: Some(write) }
    }

    /// Sends bytes with so many descriptors beside them; whether the system took them.
    pub fn send(&self, socket: &OwnedFd, bytes: &[u8], handles: usize) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if handles == 0 {
            return send(socket, bytes, flags).is_ok_and(|sent| sent == bytes.len());
        }
        let handles = vec![self.borrow(); handles];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&handles)));
        let parts = [std::io::IoSlice::new(bytes)];
        sendmsg(socket, &parts, &mut control, flags).is_ok_and(|sent| sent == bytes.len())
    }

    pub fn borrow(&self) -> BorrowedFd<'_> {
        self.write.as_ref().unwrap().as_fd()
    }

    /// Whoever had one has closed it.
    pub fn assert_all_closed(mut self) {
        self.write = None;
        let mut wait = [PollFd::new(&self.read, PollFlags::IN)];
        poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        assert!(wait[0].revents().contains(PollFlags::HUP), "a descriptor is still open");
    }
}
