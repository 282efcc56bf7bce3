//! Chains of capabilities behind a description, as the kernel appends them.
//!
//! Each begins with a header that says where the next one is. What is outside of the description, goes
//! backwards or never ends is refused, whoever said it: a kernel that does so is not understood.

use std::mem::{offset_of, size_of};

use vfio_bindings::bindings::vfio::{
    vfio_info_cap_header, vfio_iommu_type1_info_cap_iova_range, vfio_iommu_type1_info_dma_avail,
    vfio_iova_range, vfio_region_info_cap_sparse_mmap, vfio_region_sparse_mmap_area,
};

use crate::abi::read;
use crate::limits::{MAX_AREAS, MAX_CAPABILITIES};

/// One capability: what it is, and its bytes from its header to the end of the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capability<'d> {
    /// What it describes.
    pub(crate) id: u16,
    bytes: &'d [u8],
}

/// A chain that cannot be, or one of its capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A header does not lie in the description, or in the part that has its fixed fields.
    #[error("a capability at {0:#x} lies outside of the description")]
    Outside(u32),
    /// The chain goes back, or to itself.
    #[error("the capability at {at:#x} is followed by one at {next:#x}, before its end")]
    Backwards {
        /// Where it is.
        at: u32,
        /// Where it says that the next one is.
        next: u32,
    },
    /// There are too many.
    #[error("there are more than {MAX_CAPABILITIES} capabilities")]
    Endless,
    /// A list in a capability is longer than it.
    #[error("a capability has {count} entries, and room for {room}")]
    Entries {
        /// Entries that it is said to have.
        count: u32,
        /// Entries that are there, or that are taken at most.
        room: u32,
    },
    /// An entry makes no sense.
    #[error("{0:#x}+{1:#x} is no area of it")]
    Area(u64, u64),
}

/// Where a header is followed by its capability's own fields.
const HEADER: usize = size_of::<vfio_info_cap_header>();

/// The capabilities of a description whose fixed fields are the first `fixed` bytes, and whose first
/// capability is at `first`; none if that is 0.
///
/// # Errors
/// [`ChainError`].
pub(crate) fn chain(
    description: &[u8],
    fixed: usize,
    first: u32,
) -> Result<Vec<Capability<'_>>, ChainError> {
    let mut all = Vec::new();
    // Where the next header may begin.
    let (mut at, mut begin) = (first, fixed);
    while at != 0 {
        if all.len() == MAX_CAPABILITIES {
            return Err(ChainError::Endless);
        }
        let outside = || ChainError::Outside(at);
        let from = usize::try_from(at).ok().filter(|from| *from >= fixed).ok_or_else(outside)?;
        if from < begin {
            let before = u32::try_from(begin - HEADER).unwrap_or(u32::MAX);
            return Err(ChainError::Backwards { at: before, next: at });
        }
        let bytes = description.get(from..).ok_or_else(outside)?;
        let id = read(bytes, offset_of!(vfio_info_cap_header, id)).ok_or_else(outside)?;
        let next = read(bytes, offset_of!(vfio_info_cap_header, next)).ok_or_else(outside)?;
        all.push(Capability { id: u16::from_ne_bytes(id), bytes });
        (at, begin) = (u32::from_ne_bytes(next), from + HEADER);
    }
    Ok(all)
}

/// `count` pairs of words that begin at `begin`, if they are there.
fn pairs(bytes: &[u8], begin: usize, count: u32) -> Result<Vec<(u64, u64)>, ChainError> {
    const PAIR: usize = 16;
    let there = bytes.len().saturating_sub(begin) / PAIR;
    let room = u32::try_from(there).unwrap_or(u32::MAX).min(MAX_AREAS);
    if count > room {
        return Err(ChainError::Entries { count, room });
    }
    let word = |at| read(bytes, at).map_or(0, u64::from_ne_bytes);
    let each = (0..usize::try_from(count).unwrap_or(0)).map(|number| begin + PAIR * number);
    Ok(each.map(|at| (word(at), word(at + 8))).collect())
}

impl Capability<'_> {
    fn field(&self, at: usize) -> u32 {
        read(self.bytes, at).map_or(0, u32::from_ne_bytes)
    }

    /// Offset and size of each part of a region of `size` bytes that can be mapped, in order and apart.
    ///
    /// # Errors
    /// [`ChainError::Entries`] and [`ChainError::Area`].
    pub(crate) fn areas(&self, size: u64) -> Result<Vec<(u64, u64)>, ChainError> {
        const _: () = assert!(size_of::<vfio_region_sparse_mmap_area>() == 16);
        let count = self.field(offset_of!(vfio_region_info_cap_sparse_mmap, nr_areas));
        let areas = pairs(self.bytes, offset_of!(vfio_region_info_cap_sparse_mmap, areas), count)?;
        let mut from = 0;
        for (offset, length) in &areas {
            let end = offset.checked_add(*length).filter(|end| *end <= size);
            match end {
                Some(end) if *offset >= from && *length > 0 => from = end,
                _ => return Err(ChainError::Area(*offset, *length)),
            }
        }
        Ok(areas)
    }

    /// First and last bus address of each range that devices can be given, in order and apart.
    ///
    /// # Errors
    /// [`ChainError::Entries`] and [`ChainError::Area`].
    pub(crate) fn bus_ranges(&self) -> Result<Vec<(u64, u64)>, ChainError> {
        const _: () = assert!(size_of::<vfio_iova_range>() == 16);
        let count = self.field(offset_of!(vfio_iommu_type1_info_cap_iova_range, nr_iovas));
        let begin = offset_of!(vfio_iommu_type1_info_cap_iova_range, iova_ranges);
        let ranges = pairs(self.bytes, begin, count)?;
        let mut before: Option<u64> = None;
        for (first, last) in &ranges {
            if first > last || before.is_some_and(|before| *first <= before) {
                return Err(ChainError::Area(*first, *last));
            }
            before = Some(*last);
        }
        Ok(ranges)
    }

    /// How many mappings more a container takes.
    pub(crate) fn mappings(&self) -> u32 {
        self.field(offset_of!(vfio_iommu_type1_info_dma_avail, avail))
    }
}

#[cfg(test)]
#[path = "capabilities_tests.rs"]
mod tests;
