//! What a server must make of each command, by the protocol.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use cordon_vfio_user::protocol::command;

use super::client::JSON;
use super::device::{self, Device, PENDING, TABLE};
use super::{MEMORY, MOST_REGIONS};

pub(super) const EINVAL: u32 = 22;
const ENOENT: u32 = 2;
const EEXIST: u32 = 17;
const ENOSPC: u32 = 28;
const EOPNOTSUPP: u32 = 95;

/// Most data of a read or a write.
const MOST_DATA: u64 = 1 << 20;

/// A map: size, and whether there is memory behind it.
type Map = (u64, bool);

/// What is known of a client.
#[derive(Debug, Default)]
pub(super) struct Model {
    maps: BTreeMap<u64, Map>,
    negotiated: bool,
}

/// How a command may be answered.
#[derive(Debug)]
pub(super) enum Verdict {
    Right,
    /// With one of these: whichever the server sees first.
    Refused(Vec<u32>),
    /// That is the device's to say, or needs more than this model knows.
    Either,
}

impl Verdict {
    fn of(reasons: Vec<u32>) -> Self {
        if reasons.is_empty() { Self::Right } else { Self::Refused(reasons) }
    }

    pub(super) fn is_right(&self) -> bool {
        matches!(self, Self::Right)
    }

    pub(super) fn allows(&self, errno: u32) -> bool {
        match self {
            Self::Right => errno == 0,
            Self::Refused(reasons) => reasons.contains(&errno),
            Self::Either => true,
        }
    }
}

/// The reasons that hold.
fn reasons<const N: usize>(all: [(bool, u32); N]) -> Vec<u32> {
    all.into_iter().filter(|(holds, _)| *holds).map(|(_, errno)| errno).collect()
}

fn word(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().unwrap())
}

fn double(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().unwrap())
}

impl Model {
    /// Address and size of one of the client's maps, if it has any.
    pub(super) fn map_of_client(&self, number: u8) -> [u64; 2] {
        let number = usize::from(number) % self.maps.len().max(1);
        self.maps.iter().nth(number).map_or([0, 0], |(iova, (size, _))| [*iova, *size])
    }

    /// Regions and bytes that have memory behind them.
    pub(super) fn backed(&self) -> (usize, u64) {
        let backed = self.maps.values().filter(|(_, backed)| *backed);
        backed.fold((0, 0), |(count, bytes), (size, _)| (count + 1, bytes + size))
    }

    pub(super) fn judge(
        &self,
        flags: u32,
        number: u16,
        body: &[u8],
        sent: &[BorrowedFd<'_>],
        is_there: bool,
    ) -> Verdict {
        let refused = |errno| Verdict::Refused(vec![errno]);
        let takes = matches!(number, command::DMA_MAP | command::SET_IRQS);
        if flags & 0xf != 0 || takes && sent.len() > 16 {
            return refused(EINVAL);
        }
        if number == command::VERSION {
            return if self.negotiated { refused(EINVAL) } else { version(body) };
        }
        if !self.negotiated {
            return refused(EINVAL);
        }
        let asks = |length: usize, more: &dyn Fn() -> bool| {
            let is_right = body.len() >= length && word(body, 0) as usize >= length && more();
            if is_right { Verdict::Right } else { refused(EINVAL) }
        };
        match number {
            command::DMA_MAP if body.len() < 32 => refused(EINVAL),
            command::DMA_MAP => self.map(body, sent),
            command::DMA_UNMAP if body.len() < 24 => refused(EINVAL),
            command::DMA_UNMAP => self.unmap(body),
            command::GET_INFO => asks(16, &|| true),
            command::REGION_INFO => asks(32, &|| word(body, 8) < 9),
            command::IRQ_INFO => asks(16, &|| word(body, 8) < 5),
            command::REGION_READ | command::REGION_WRITE => access(number, body),
            command::RESET if is_there => Verdict::Right,
            command::RESET | command::SET_IRQS => Verdict::Either,
            _ => refused(EOPNOTSUPP),
        }
    }

    fn map(&self, body: &[u8], sent: &[BorrowedFd<'_>]) -> Verdict {
        let (flags, offset) = (word(body, 4), double(body, 8));
        let (iova, size) = (double(body, 16), double(body, 24));
        let end = iova.checked_add(size);
        let overlaps = end.is_some_and(|end| {
            self.maps.iter().any(|(start, (size, _))| *start < end && iova < start + size)
        });
        let is_outside = offset.checked_add(size).is_none_or(|end| end > MEMORY);
        let is_memory = |one: &BorrowedFd<'_>| {
            rustix::fs::fcntl_get_seals(one).is_ok_and(|seals| !seals.is_empty())
        };
        let bad_memory = sent.first().is_some_and(|one| !is_memory(one) || is_outside);
        Verdict::of(reasons([
            (word(body, 0) < 32 || flags & !3 != 0 || flags == 0, EINVAL),
            (size == 0 || end.is_none(), EINVAL),
            (overlaps, EEXIST),
            (self.maps.len() >= MOST_REGIONS, ENOSPC),
            (sent.len() > 1 || bad_memory, EINVAL),
        ]))
    }

    fn unmap(&self, body: &[u8]) -> Verdict {
        let (flags, iova, size) = (word(body, 4), double(body, 8), double(body, 16));
        let all = flags & 2 != 0;
        let is_there = self.maps.get(&iova).is_some_and(|(known, _)| *known == size);
        Verdict::of(reasons([
            (word(body, 0) < 24 || flags & !2 != 0, EINVAL),
            (all && (iova != 0 || size != 0), EINVAL),
            (!all && !is_there, ENOENT),
        ]))
    }

    /// A command was carried out.
    pub(super) fn carry_out(&mut self, number: u16, body: &[u8], backed: bool) {
        match number {
            command::VERSION => self.negotiated = true,
            command::DMA_MAP => {
                self.maps.insert(double(body, 16), (double(body, 24), backed));
            }
            command::DMA_UNMAP if word(body, 4) & 2 != 0 => self.maps.clear(),
            command::DMA_UNMAP => {
                self.maps.remove(&double(body, 8));
            }
            _ => {}
        }
    }

    /// Whether an answer is one to that command.
    pub(super) fn check(&self, number: u16, body: &[u8], answer: &[u8], device: &Device) {
        match number {
            command::VERSION => {
                assert_eq!(answer[..2], [0, 0]);
                assert_eq!(answer.last(), Some(&0));
                let json: serde_json::Value =
                    serde_json::from_slice(&answer[4..answer.len() - 1]).unwrap();
                assert_eq!(json["capabilities"]["max_dma_maps"], MOST_REGIONS);
            }
            command::DMA_UNMAP => assert_eq!(answer, &body[..24]),
            command::GET_INFO => assert_eq!((word(answer, 8), word(answer, 12)), (9, 5)),
            command::REGION_INFO => {
                let index = word(body, 8);
                assert_eq!(
                    (word(answer, 8), Some(double(answer, 16))),
                    (index, device::size(index))
                );
            }
            command::IRQ_INFO => assert_eq!(word(answer, 8), word(body, 8)),
            command::REGION_WRITE => assert_eq!(answer, &body[..16]),
            command::REGION_READ => read(body, answer, device),
            _ => assert!(answer.is_empty(), "{answer:?}"),
        }
    }
}

/// What is not in the list of what clients say is any JSON.
fn version(body: &[u8]) -> Verdict {
    let refused = Verdict::Refused(vec![EINVAL]);
    let Some((head, json)) = body.split_first_chunk::<4>() else { return refused };
    let known = JSON.iter().find(|(text, _)| text.as_bytes() == json);
    match known {
        _ if head[..2] != [0, 0] => refused,
        Some((_, true)) => Verdict::Right,
        Some((_, false)) => refused,
        None => Verdict::Either,
    }
}

fn access(number: u16, body: &[u8]) -> Verdict {
    let refused = Verdict::Refused(vec![EINVAL]);
    if body.len() < 16 {
        return refused;
    }
    let (offset, region, count) = (double(body, 0), word(body, 8), u64::from(word(body, 12)));
    let fits = device::size(region)
        .is_some_and(|size| offset.checked_add(count).is_some_and(|end| end <= size));
    let is_whole = number == command::REGION_READ || body.len() as u64 - 16 == count;
    if (1..=MOST_DATA).contains(&count) && fits && is_whole {
        // A client may have said that it takes less.
        if count > 4096 { Verdict::Either } else { Verdict::Right }
    } else {
        refused
    }
}

fn read(body: &[u8], answer: &[u8], device: &Device) {
    let (offset, region, count) = (double(body, 0), word(body, 8), word(body, 12) as usize);
    assert_eq!(answer[..16], body[..16]);
    let data = &answer[16..];
    assert_eq!(data.len(), count);
    if !device.is_there() {
        assert!(data.iter().all(|byte| *byte == 0xff), "a device that is gone answers");
    } else if region < 6 {
        for (at, byte) in (offset..).zip(data) {
            // These are the client's own.
            let is_msix =
                region == 2 && (TABLE.contains(&(at & !7)) || PENDING.contains(&(at & !7)));
            assert!(is_msix || *byte == device.byte(region, at), "{at:#x} of region {region}");
        }
    }
}
