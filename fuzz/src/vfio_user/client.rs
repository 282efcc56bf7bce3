//! What a client sends, and what it is answered.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use cordon_ipc::rights;
use cordon_vfio_user::protocol::{HEADER, Header, command};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::model::Model;
use super::{Descriptors, device};
use crate::lists;

/// A command.
#[derive(Arbitrary, Debug)]
pub(super) enum Command {
    Version {
        major: u16,
        minor: u16,
        json: u8,
    },
    Map {
        argument: Field,
        flags: Flags,
        offset: Place,
        iova: Place,
        size: Place,
        beside: Beside,
    },
    Unmap {
        argument: Field,
        flags: Flags,
        range: Range,
        beside: Vec<u8>,
    },
    /// What it asks about: 0 the device, 1 a region, 2 an interrupt index.
    Info {
        of: u8,
        argument: Field,
        index: u8,
    },
    /// One event for each vector.
    Assign {
        index: u8,
        start: u8,
        count: u8,
    },
    SetIrqs {
        flags: u8,
        index: u8,
        start: u8,
        count: u8,
        data: Vec<u8>,
        beside: Vec<u8>,
    },
    Read {
        region: u8,
        offset: Offset,
        count: Count,
    },
    Write {
        region: u8,
        offset: Offset,
        data: Vec<u8>,
        said: Option<u8>,
    },
    Reset,
    Raw {
        number: u16,
        body: Vec<u8>,
        beside: Vec<u8>,
    },
}

/// A size of an argument: as it should be, or, rarely, any.
#[derive(Arbitrary, Debug)]
pub(super) struct Field {
    #[arbitrary(with = lists::rarely)]
    any: Option<u32>,
}

/// Flags that make sense, or, rarely, any.
#[derive(Arbitrary, Debug)]
pub(super) struct Flags {
    right: u8,
    #[arbitrary(with = lists::rarely)]
    any: Option<u8>,
}

/// Descriptors beside a map.
#[derive(Arbitrary, Debug)]
pub(super) enum Beside {
    Nothing,
    Memory,
    Any(Vec<u8>),
}

/// What is unmapped.
#[derive(Arbitrary, Debug)]
pub(super) enum Range {
    /// A map that there is.
    Known(u8),
    /// One of another size.
    Nearly(u8, Place),
    Any(Place, Place),
}

/// An offset in a region.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Offset {
    /// So far before its end.
    BeforeEnd(u8),
    Place(Place),
}

impl Offset {
    fn number(self, region: u8) -> u64 {
        match self {
            Self::BeforeEnd(back) => {
                let size = device::size(region.into()).unwrap_or_default();
                size.wrapping_sub(u64::from(back % 9))
            }
            Self::Place(place) => place.number(),
        }
    }
}

/// An offset, an address or a size.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    /// In pages.
    Page(u8),
    /// A byte more, or less.
    Near(u8, bool),
    Byte(u16),
    Any(u64),
    /// Counted from the end of everything.
    Last(u8),
}

impl Place {
    fn number(self) -> u64 {
        match self {
            Self::Page(page) => u64::from(page % 20) << 12,
            Self::Near(page, more) => {
                (u64::from(page % 20) << 12).wrapping_add_signed(if more { 1 } else { -1 })
            }
            Self::Byte(byte) => byte.into(),
            Self::Any(any) => any,
            Self::Last(byte) => u64::MAX - u64::from(byte),
        }
    }
}

#[derive(Arbitrary, Debug)]
pub(super) enum Count {
    Few(u8),
    Small(u8),
    Any(u32),
}

/// Capabilities that clients say, and whether they can be.
pub(super) const JSON: [(&str, bool); 6] = [
    ("{}\0", true),
    ("", true),
    ("{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":1048576}}\0", true),
    ("{\"capabilities\":{\"max_data_xfer_size\":0}}\0", false),
    ("{\"capabilities\":[]}\0", false),
    ("{}", false),
];

impl Command {
    /// Number, body and descriptors.
    pub(super) fn message<'d>(
        &self,
        descriptors: &'d Descriptors,
        model: &Model,
    ) -> (u16, Vec<u8>, Vec<BorrowedFd<'d>>) {
        let fds = |kinds: &[u8]| {
            kinds.iter().take(20).map(|kind| borrowed(descriptors, *kind)).collect::<Vec<_>>()
        };
        let words =
            |all: &[u32]| all.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let doubles =
            |all: &[u64]| all.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let size = |field: &Field, right: u32| field.any.unwrap_or(right);
        match self {
            Self::Version { major, minor, json } => {
                let (json, _) = JSON[usize::from(*json) % JSON.len()];
                let body = [&(major % 2).to_le_bytes(), &minor.to_le_bytes()[..], json.as_bytes()];
                (command::VERSION, body.concat(), Vec::new())
            }
            Self::Map { argument, flags, offset, iova, size: length, beside } => {
                let flags = flags.any.unwrap_or(1 + flags.right % 3);
                let head = words(&[size(argument, 32), flags.into()]);
                let places = [*offset, *iova, *length].map(Place::number);
                let beside = match beside {
                    Beside::Nothing => Vec::new(),
                    Beside::Memory => fds(&[0]),
                    Beside::Any(kinds) => fds(kinds),
                };
                (command::DMA_MAP, [head, doubles(&places)].concat(), beside)
            }
            Self::Unmap { argument, flags, range, beside } => {
                let flags = flags.any.unwrap_or(if flags.right < 16 { 2 } else { 0 });
                let head = words(&[size(argument, 24), flags.into()]);
                let places = match range {
                    _ if flags == 2 => [0, 0],
                    Range::Known(number) => model.map_of_client(*number),
                    Range::Nearly(number, size) => [model.map_of_client(*number)[0], size.number()],
                    Range::Any(iova, size) => [*iova, *size].map(Place::number),
                };
                (command::DMA_UNMAP, [head, doubles(&places)].concat(), fds(beside))
            }
            Self::Info { of, argument, index } => {
                let index = u32::from(*index % 12);
                match of % 3 {
                    0 => (command::GET_INFO, words(&[size(argument, 16), 0, 0, 0]), Vec::new()),
                    1 => {
                        let body = words(&[size(argument, 32), 0, index, 0, 0, 0, 0, 0]);
                        (command::REGION_INFO, body, Vec::new())
                    }
                    _ => (command::IRQ_INFO, words(&[size(argument, 16), 0, index, 0]), Vec::new()),
                }
            }
            Self::Assign { index, start, count } => {
                let (start, count) = (start % 10, count % 10);
                // Events by descriptors, and a trigger.
                let numbers = [4 | 1 << 5, index % 5, start, count].map(u32::from);
                let head = words(&[&[20], &numbers[..]].concat());
                (command::SET_IRQS, head, fds(&vec![2; count.into()]))
            }
            Self::SetIrqs { flags, index, start, count, data, beside } => {
                let numbers = [*flags, index % 6, *start, *count].map(u32::from);
                let head = words(&[&[20], &numbers[..]].concat());
                (command::SET_IRQS, [&head[..], data].concat(), fds(beside))
            }
            Self::Read { region, offset, count } => {
                let count = match count {
                    Count::Few(count) => u32::from(count % 10),
                    Count::Small(count) => (*count).into(),
                    Count::Any(any) => *any,
                };
                (command::REGION_READ, access(*region, *offset, count), Vec::new())
            }
            Self::Write { region, offset, data, said } => {
                let said = said.map_or(data.len() as u32, u32::from);
                let head = access(*region, *offset, said);
                (command::REGION_WRITE, [&head[..], data].concat(), Vec::new())
            }
            Self::Reset => (command::RESET, Vec::new(), Vec::new()),
            Self::Raw { number, body, beside } => (number % 16, body.clone(), fds(beside)),
        }
    }
}

fn access(region: u8, offset: Offset, count: u32) -> Vec<u8> {
    let region = region % 12;
    let offset = offset.number(region).to_le_bytes();
    [&offset[..], &u32::from(region).to_le_bytes(), &count.to_le_bytes()].concat()
}

fn borrowed(descriptors: &Descriptors, kind: u8) -> BorrowedFd<'_> {
    match kind % 4 {
        0 | 1 => descriptors.memory.as_fd(),
        2 => descriptors.event.as_fd(),
        _ => descriptors.other.as_fd(),
    }
}

/// Sends a message in one piece.
pub(super) fn send(far: &UnixStream, header: &Header, body: &[u8], beside: &[BorrowedFd<'_>]) {
    let bytes = [&header.to_bytes()[..], body].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(beside)));
    }
    let parts = [std::io::IoSlice::new(&bytes)];
    let sent = sendmsg(far, &parts, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
}

/// What was answered, all of which has been sent already.
pub(super) fn receive(far: &UnixStream) -> Option<Reply> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(came) = rights::receive(far, &mut buffer)
        && came.bytes > 0
    {
        bytes.extend_from_slice(&buffer[..came.bytes]);
    }
    let (header, body) = bytes.split_first_chunk::<HEADER>()?;
    let header = Header::parse(header);
    assert_eq!(header.size as usize, bytes.len(), "one answer to one command");
    Some(Reply { header, body: body.to_vec() })
}
