//! DMA_MAP and DMA_UNMAP: the client's guest memory.
//!
//! Memory with a descriptor is given to the container, and so registered with the dext in direct
//! mode. Memory without one (ROM, BARs of other devices) is known and not mapped. An unmap is
//! answered once no device can reach the range. Nothing is kept across an unmap.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::files::{FileError, Files};
use crate::options::{BudgetKind, Options};
use crate::protocol::{Refusal, at_least, refuse, refuse_beyond};
use cordon_vmm::Container;
use cordon_vmm::container::GuestRegion;

const READABLE: u32 = 1;
const WRITABLE: u32 = 1 << 1;
const ALL: u32 = 1 << 1;

#[derive(Debug)]
struct Map {
    size: u64,
    backed: bool,
    /// It was taken back before the server died whose client it is, which was not answered yet.
    is_gone: bool,
}

impl Map {
    /// Whether the container has it.
    fn is_there(&self) -> bool {
        self.backed && !self.is_gone
    }
}

/// The client's maps.
#[derive(Debug)]
pub(crate) struct Maps {
    options: Options,
    regions: BTreeMap<u64, Map>,
    files: Files,
}

/// A DMA_MAP whose range can be.
struct Range {
    iova: u64,
    size: u64,
    offset: u64,
    writable: bool,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "map {:#x}+{:#x}", self.iova, self.size)
    }
}

impl Maps {
    /// None yet.
    pub(crate) fn new(options: Options) -> Self {
        Self { options, regions: BTreeMap::new(), files: Files::default() }
    }

    /// Those that a server recorded which is dead: its client's memory is mapped once more, as part of what the
    /// function reaches.
    pub(crate) fn claim(
        recorded: &[(u64, u64, bool)],
        container: &Container,
        reached: &[GuestRegion],
        options: Options,
    ) -> Result<Self, String> {
        let mut maps = Self::new(options);
        for (iova, size, backed) in recorded {
            let claimed = maps.claim_one((*iova, *size, *backed), container, reached);
            if let Err(why) = claimed {
                maps.clear(container);
                return Err(why);
            }
        }
        Ok(maps)
    }

    fn claim_one(
        &mut self,
        (iova, size, backed): (u64, u64, bool),
        container: &Container,
        reached: &[GuestRegion],
    ) -> Result<(), String> {
        let region = reached.iter().find(|region| backed && region.iova == iova);
        if let Some(region) = region {
            if region.size != size {
                let there = region.size;
                return Err(format!("map {iova:#x}+{size:#x} is a region of {there:#x} bytes"));
            }
            let (memory, offset) = (std::sync::Arc::clone(&region.memory), region.offset);
            self.files.adopt(&memory);
            let region = GuestRegion { iova, size, memory, offset, writable: region.writable };
            container.map_too(region).map_err(|error| error.to_string())?;
        }
        let is_gone = backed && region.is_none();
        self.regions.insert(iova, Map { size, backed, is_gone });
        Ok(())
    }

    /// All of them, in order: address, size, and whether there is memory behind it.
    pub(crate) fn recorded(&self) -> Vec<(u64, u64, bool)> {
        self.regions.iter().map(|(iova, map)| (*iova, map.size, map.backed)).collect()
    }

    /// DMA_MAP.
    pub(super) fn map(
        &mut self,
        container: &Container,
        body: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let range = self.range(body)?;
        let backing = match (descriptors.pop(), descriptors.len()) {
            (_, 1..) => return refuse(libc::EINVAL, format!("{range}: more than one descriptor")),
            (one, 0) => one,
        };
        let (iova, size, backed) = (range.iova, range.size, backing.is_some());
        if let Some(descriptor) = backing {
            container.map_too(self.region(&range, descriptor)?)?;
        }
        self.regions.insert(iova, Map { size, backed, is_gone: false });
        Ok(())
    }

    /// Checks a DMA_MAP against what is mapped.
    fn range(&self, body: &[u8]) -> Result<Range, Refusal> {
        let mut fields = at_least(body, 32)?;
        let (argument, flags) = (fields.word(), fields.word());
        let (offset, iova, size) = (fields.double(), fields.double(), fields.double());
        let range = Range { iova, size, offset, writable: flags & WRITABLE != 0 };
        if argument < 32 || flags & !(READABLE | WRITABLE) != 0 || flags == 0 {
            return refuse(libc::EINVAL, format!("{range}: argsz {argument}, flags {flags:#x}"));
        }
        let Some(end) = iova.checked_add(size).filter(|_| size > 0) else {
            return refuse(libc::EINVAL, format!("{range} is empty or wraps"));
        };
        let before = self.regions.range(..end).next_back();
        if before.is_some_and(|(start, map)| start + map.size > iova) {
            return refuse(libc::EEXIST, format!("{range} overlaps another map"));
        }
        let most = self.options.budget.regions;
        if self.regions.len() >= most {
            let why = format!("{range}: the memory of one client may have {most} regions");
            return refuse_beyond(BudgetKind::Regions, most, libc::ENOSPC, why);
        }
        Ok(range)
    }

    /// The region, with the memory behind it.
    fn region(&mut self, range: &Range, descriptor: OwnedFd) -> Result<GuestRegion, Refusal> {
        let Options { sealed_memory, budget } = self.options;
        let memory = match self.files.take(descriptor, sealed_memory, budget.files) {
            Ok(memory) => memory,
            Err(error) => {
                let why = format!("{range}: {}", ipc::chain(&error));
                return match error {
                    FileError::TooMany(most) => {
                        refuse_beyond(BudgetKind::Files, most, libc::EMFILE, why)
                    }
                    _ => refuse(libc::EINVAL, why),
                };
            }
        };
        let Range { iova, size, offset, writable } = *range;
        if offset.checked_add(size).is_none_or(|end| end > memory.size()) {
            let why = format!("{range}: its memory has {:#x}, not +{offset:#x}", memory.size());
            return refuse(libc::EINVAL, why);
        }
        Ok(GuestRegion { iova, size, memory, offset, writable })
    }

    /// DMA_UNMAP; the body of the answer, which repeats the request.
    pub(super) fn unmap(&mut self, container: &Container, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut fields = at_least(body, 24)?;
        let (argument, flags) = (fields.word(), fields.word());
        let (iova, size) = (fields.double(), fields.double());
        let said = format!("unmap {iova:#x}+{size:#x}");
        if argument < 24 || flags & !ALL != 0 {
            return refuse(libc::EINVAL, format!("{said}: argsz {argument}, flags {flags:#x}"));
        }
        if flags & ALL != 0 {
            if iova != 0 || size != 0 {
                return refuse(libc::EINVAL, format!("{said}: all, and a range"));
            }
            self.clear(container);
        } else {
            match self.regions.get(&iova) {
                Some(map) if map.size == size => {}
                _ => return refuse(libc::ENOENT, format!("{said}: no such map")),
            }
            if let Some(map) = self.regions.remove(&iova)
                && map.is_there()
            {
                container.unmap(iova, size)?;
            }
        }
        Ok(body[..24].to_vec())
    }

    /// Takes everything back: the client is gone.
    pub(crate) fn clear(&mut self, container: &Container) {
        for (iova, map) in std::mem::take(&mut self.regions) {
            if map.is_there()
                && let Err(error) = container.unmap(iova, map.size)
            {
                tracing::warn!("taking back {iova:#x}: {error}");
            }
        }
    }
}
