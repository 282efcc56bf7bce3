//! The capability lists of a function, standard and extended.
//!
//! The lists are the device's, which is not trusted: a loop, a pointer to nowhere or a device that
//! is gone ends the walk. Config space is read through a closure that returns the aligned 4 bytes
//! at an offset, so the same walk serves a process that asks a device and one that has a copy.

mod parse;

use std::convert::Infallible;

pub use parse::{
    AfCapability, ExpressCapability, MsiCapability, MsixCapability, PortType, PowerCapability,
    VendorCapability, VendorExtendedCapability,
};

use crate::bytes;
pub use crate::limits::MAX_EXTENDED;
pub use crate::limits::MAX_STANDARD;
use crate::registers::{CAPABILITY_POINTER, EXTENDED, HEADER, STATUS, status};

/// Which capability it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CapabilityId {
    /// In the first 256 bytes.
    Standard(u8),
    /// In the extended config space.
    Extended(u16),
}

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Which one.
    pub id: CapabilityId,
    /// Offset of its first byte: 0x40..=0xfc, or 0x100..=0xffc.
    pub offset: u16,
    /// Version of an extended capability; 0 for standard ones, which have it elsewhere.
    pub version: u8,
}

/// A reader of config space that is in memory; bytes that are not there are zero.
pub fn reader(bytes: &[u8]) -> impl FnMut(u16) -> Result<u32, Infallible> + '_ {
    |offset| Ok(bytes::word(bytes, offset.into()))
}

/// Yields the standard capabilities and then the extended ones.
///
/// # Errors
/// Those of `read`, which end the walk.
pub fn walk<E, R>(read: R) -> Walk<R>
where
    R: FnMut(u16) -> Result<u32, E>,
{
    Walk { read, next: Next::First, seen: [0; 16], left: MAX_STANDARD, extended: true }
}

/// As [`walk`], the standard capabilities only.
///
/// # Errors
/// Those of `read`.
pub fn walk_standard<E, R>(read: R) -> Walk<R>
where
    R: FnMut(u16) -> Result<u32, E>,
{
    Walk { extended: false, ..walk(read) }
}

/// The first capability `id`; reads no further than to it.
///
/// # Errors
/// Those of `read`.
pub fn find<E>(
    read: impl FnMut(u16) -> Result<u32, E>,
    id: CapabilityId,
) -> Result<Option<Capability>, E> {
    let extended = matches!(id, CapabilityId::Extended(_));
    let mut walk = Walk { extended, ..walk(read) };
    if extended {
        walk.start_extended();
    }
    walk.find(|found| !matches!(found, Ok(other) if other.id != id)).transpose()
}

#[derive(Clone, Copy, Debug)]
enum Next {
    First,
    Standard(u16),
    Extended(u16),
    End,
}

/// The iterator of [`walk`].
#[derive(Debug)]
pub struct Walk<R> {
    read: R,
    next: Next,
    /// One bit for each dword that was an entry.
    seen: [u64; 16],
    left: usize,
    extended: bool,
}

impl<E, R: FnMut(u16) -> Result<u32, E>> Walk<R> {
    fn start_extended(&mut self) {
        self.left = MAX_EXTENDED;
        self.next = if self.extended { Next::Extended(0x100) } else { Next::End };
    }

    fn first(&mut self) -> Result<u16, E> {
        let pair = (self.read)(dword(STATUS))?;
        let [_, _, low, high] = pair.to_le_bytes();
        if pair == u32::MAX || u16::from_le_bytes([low, high]) & status::CAPABILITIES == 0 {
            return Ok(0);
        }
        let [pointer, ..] = (self.read)(dword(CAPABILITY_POINTER))?.to_le_bytes();
        Ok(u16::from(pointer & 0xfc))
    }

    /// Whether the entry at `at` is another one of this list.
    fn enter(&mut self, at: u16, start: usize) -> bool {
        let dword = usize::from(at / 4);
        let Some(word) = self.seen.get_mut(dword / 64) else { return false };
        let bit = 1u64 << (dword % 64);
        let is_new = usize::from(at) >= start && *word & bit == 0 && self.left > 0;
        *word |= bit;
        self.left = self.left.saturating_sub(1);
        is_new
    }

    fn standard(&mut self, at: u16) -> Result<Option<Capability>, E> {
        if !self.enter(at, HEADER) {
            return Ok(None);
        }
        let header = (self.read)(at)?;
        let [id, next, ..] = header.to_le_bytes();
        self.next = Next::Standard((next & 0xfc).into());
        let id = CapabilityId::Standard(id);
        Ok((header != u32::MAX).then_some(Capability { id, offset: at, version: 0 }))
    }

    fn extended(&mut self, at: u16) -> Result<Option<Capability>, E> {
        if !self.enter(at, EXTENDED) {
            return Ok(None);
        }
        let header = (self.read)(at)?;
        let [low, high, version, _] = header.to_le_bytes();
        let next = u16::try_from(header >> 20).unwrap_or(0) & 0xffc;
        self.next = Next::Extended(next);
        let id = CapabilityId::Extended(u16::from_le_bytes([low, high]));
        let entry = Capability { id, offset: at, version: version & 0xf };
        Ok((header != 0 && header != u32::MAX).then_some(entry))
    }
}

impl<E, R: FnMut(u16) -> Result<u32, E>> Iterator for Walk<R> {
    type Item = Result<Capability, E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = match self.next {
                Next::End => return None,
                Next::First => match self.first() {
                    Ok(at) => {
                        self.next = Next::Standard(at);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Next::Standard(at) => self.standard(at),
                Next::Extended(at) => self.extended(at),
            };
            let in_standard = !matches!(self.next, Next::Extended(_));
            match found {
                Ok(Some(entry)) => return Some(Ok(entry)),
                Ok(None) if in_standard => self.start_extended(),
                Ok(None) => self.next = Next::End,
                Err(error) => {
                    self.next = Next::End;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Offset of the dword that holds the byte at `at`, below 4096.
fn dword(at: usize) -> u16 {
    u16::try_from(at & !3).unwrap_or(0)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
