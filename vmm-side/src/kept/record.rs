//! What there is of a group, as the next instance of the VMM reads it: a file in memory, which the keeper has too and
//! which is rewritten in place, so that a keeper that is slow knows it as well.
//!
//! It has two slots, and what is written goes into the older one; which one counts is said by a number and a sum. So
//! a kill at any moment leaves one of them whole: the one before the change or the one after it.
//!
//! ```text
//! slot: magic 8 │ version 4 │ length 4 │ sequence 8 │ sum 8 │ what there is: `length` bytes
//! ```
//!
//! It is an instance of this library that wrote it. All the same nothing in it is believed that could hurt: how long
//! it is and what it counts is bounded, and what it says of memory is checked against the files.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use ipc::codec::CodecError;
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::connection::{DmaEntry, Mapped};
use ipc::{PciAddress, SharedMemory};
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::limits::MAX_RECORD;

/// Of the layout of everything in this file.
pub(super) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"cordkept";
const HEADER: usize = 32;
const SLOT: u64 = MAX_RECORD as u64;

/// What there is of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// How many descriptors are the group's own.
    pub(super) group: u8,
    /// Its functions that are in use; nothing is kept where there is none.
    pub(super) functions: Vec<FunctionRecord>,
}

/// What there is of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FunctionRecord {
    /// How many descriptors are its own.
    pub(super) descriptors: u8,
    /// Whether the kernel was told of an event for wanting it back.
    pub(super) request: bool,
    pub(super) identity: Identity,
    pub(super) bars: [Option<BarInfo>; 6],
    pub(super) regions: Vec<RegionRecord>,
    /// What was registered, or may have been; and where the device reaches it.
    pub(super) ranges: Vec<(DmaEntry, Option<Mapped>)>,
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegionRecord {
    pub(super) base: u64,
    pub(super) size: u64,
    /// By its number among the files that are kept.
    pub(super) file: u32,
    pub(super) offset: u64,
    pub(super) writable: bool,
}

impl Record {
    /// Whether it can be: nothing is there twice, wraps or lies over another, and what is registered lies in a region.
    ///
    /// # Errors
    /// [`StoreError::Absurd`].
    fn check(&self) -> Result<(), StoreError> {
        let mut addresses = std::collections::BTreeSet::new();
        for function in &self.functions {
            let address = function.identity.address;
            let absurd = |what: String| StoreError::Absurd(format!("function {address}: {what}"));
            if !addresses.insert(address) {
                return Err(absurd("it is there twice".to_owned()));
            }
            if self.group == 0 || function.descriptors == 0 {
                return Err(absurd("nothing keeps it open".to_owned()));
            }
            function.check().map_err(absurd)?;
        }
        Ok(())
    }
}

impl FunctionRecord {
    /// Where it is.
    pub(super) fn address(&self) -> PciAddress {
        self.identity.address
    }

    fn check(&self) -> Result<(), String> {
        let mut end = 0;
        for RegionRecord { base, size, offset, .. } in &self.regions {
            let said = format!("guest memory {base:#x}+{size:#x}");
            if *base < end {
                return Err(format!("{said} is out of order or overlaps"));
            }
            let ends = base.checked_add(*size).zip(offset.checked_add(*size));
            (end, _) = ends.filter(|_| *size > 0).ok_or(format!("{said} is empty or wraps"))?;
        }
        let mut before = None;
        for (DmaEntry { key, address, size }, mapped) in &self.ranges {
            let said = format!("registration {key:#x} of {address:#x}+{size:#x}");
            if before.replace(*key).is_some_and(|before| before >= *key) {
                return Err(format!("{said} is out of order or there twice"));
            }
            let inside = |region: &RegionRecord| {
                let last = address.checked_add(*size).filter(|_| *size > 0);
                *address >= region.base
                    && last.is_some_and(|last| last <= region.base + region.size)
            };
            if !self.regions.iter().any(inside) {
                return Err(format!("{said} lies in no region"));
            }
            if mapped.is_some_and(|one| one.bus_address.checked_add(one.bus_length).is_none()) {
                return Err(format!("{said} wraps on the bus"));
            }
        }
        Ok(())
    }
}

/// FNV-1a: what is half written, or was never one of these, has another sum.
fn sum(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The bytes of a slot with the record of this number.
fn slot(sequence: u64, record: &[u8]) -> Vec<u8> {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
    let (version, sequence) = (VERSION.to_le_bytes(), sequence.to_le_bytes());
    let sum = sum(&[&version, &length, &sequence, record]).to_le_bytes();
    [&MAGIC[..], &version, &length, &sequence, &sum, record].concat()
}

/// What is in a slot: its number and its record.
fn parse(bytes: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or(StoreError::Torn)?;
    let part = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).unwrap_or_default();
    let wide = |at: usize| <[u8; 8]>::try_from(&header[at..at + 8]).unwrap_or_default();
    if header[..8] != MAGIC {
        return Err(StoreError::Torn);
    }
    let version = u32::from_le_bytes(part(8));
    if version != VERSION {
        return Err(StoreError::Version(version));
    }
    let length = usize::try_from(u32::from_le_bytes(part(12))).unwrap_or(usize::MAX);
    let record = rest.get(..length).ok_or(StoreError::Torn)?;
    let said = u64::from_le_bytes(wide(24));
    if sum(&[&part(8), &part(12), &wide(16), record]) != said {
        return Err(StoreError::Torn);
    }
    Ok((u64::from_le_bytes(wide(16)), record))
}

/// The file of a record.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    sequence: u64,
    /// What was written last.
    last: Vec<u8>,
}

impl RecordFile {
    /// A new one, empty.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub(super) fn create() -> Result<Self, StoreError> {
        let memory = SharedMemory::create("cordon-kept", 2 * SLOT).map_err(StoreError::Write)?;
        Ok(Self { file: File::from(memory.into_fd()), sequence: 0, last: Vec::new() })
    }

    /// Writes what there is from here on, unless that was written last.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] and [`StoreError::Write`]; what was written before still counts.
    pub(super) fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        let most = MAX_RECORD - HEADER;
        let bytes = ipc::codec::encode(record, most).map_err(|error| match error {
            CodecError::TooLarge { size, .. } => StoreError::TooLarge { size, most },
            other => StoreError::Malformed(other),
        })?;
        if bytes == self.last {
            return Ok(());
        }
        let sequence = self.sequence + 1;
        self.file
            .write_all_at(&slot(sequence, &bytes), sequence % 2 * SLOT)
            .map_err(StoreError::Write)?;
        (self.sequence, self.last) = (sequence, bytes);
        Ok(())
    }

    /// Reads the record behind a descriptor.
    ///
    /// # Errors
    /// [`StoreError`] of what is no whole record of this version, or makes no sense.
    pub(super) fn read(fd: OwnedFd) -> Result<(Self, Record), StoreError> {
        let size = SharedMemory::size_of(&fd).ok().filter(|size| *size == 2 * SLOT);
        let memory = SharedMemory::from_peer(fd, size.ok_or(StoreError::Torn)?);
        let file = File::from(memory.map_err(|_| StoreError::Torn)?.into_fd());
        let mut slots = [(); 2].map(|()| vec![0; MAX_RECORD]);
        for (at, bytes) in (0..).zip(&mut slots) {
            file.read_exact_at(bytes, at * SLOT).map_err(StoreError::Passed)?;
        }
        let [first, second] = [&slots[0], &slots[1]].map(|bytes| parse(bytes));
        let (sequence, last) = match (first, second) {
            (Ok(one), Ok(other)) => {
                if one.0 > other.0 {
                    one
                } else {
                    other
                }
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => one,
            (Err(error @ StoreError::Version(_)), Err(_)) | (Err(_), Err(error)) => {
                return Err(error);
            }
        };
        let record: Record = ipc::codec::decode(last).map_err(StoreError::Malformed)?;
        record.check()?;
        let last = last.to_vec();
        Ok((Self { file, sequence, last }, record))
    }
}

impl AsFd for RecordFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[path = "record_tests.rs"]
mod tests;
