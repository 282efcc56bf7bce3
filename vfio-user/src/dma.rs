//! DMA_MAP and DMA_UNMAP: the client's guest memory.
//!
//! Memory with a descriptor is given to the container, and so registered with the dext in direct
//! mode. Memory without one (ROM, BARs of other devices) is known and not mapped. An unmap is
//! answered once no device can reach the range. Nothing is kept across an unmap.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use ipc::SharedMemory;

use crate::protocol::{MAX_MAPS, Refusal, at_least, refuse};
use cordon_vmm::Container;
use cordon_vmm::container::GuestRegion;

const READABLE: u32 = 1;
const WRITABLE: u32 = 1 << 1;
const ALL: u32 = 1 << 1;

struct Map {
    size: u64,
    backed: bool,
}

/// The client's maps.
#[derive(Default)]
pub(super) struct Maps(BTreeMap<u64, Map>);

impl Maps {
    /// DMA_MAP.
    pub(super) fn map(
        &mut self,
        container: &Container,
        body: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let mut fields = at_least(body, 32)?;
        let (argument, flags) = (fields.word(), fields.word());
        let (offset, iova, size) = (fields.double(), fields.double(), fields.double());
        let said = format!("map {iova:#x}+{size:#x}");
        if argument < 32 || flags & !(READABLE | WRITABLE) != 0 || flags == 0 {
            return refuse(libc::EINVAL, format!("{said}: argsz {argument}, flags {flags:#x}"));
        }
        let Some(end) = iova.checked_add(size).filter(|_| size > 0) else {
            return refuse(libc::EINVAL, format!("{said} is empty or wraps"));
        };
        let before = self.0.range(..end).next_back();
        if before.is_some_and(|(start, map)| start + map.size > iova) {
            return refuse(libc::EEXIST, format!("{said} overlaps another map"));
        }
        if self.0.len() >= MAX_MAPS {
            return refuse(libc::ENOSPC, format!("{said}: {MAX_MAPS} maps are the limit"));
        }
        let backing = match (descriptors.pop(), descriptors.len()) {
            (_, 1..) => return refuse(libc::EINVAL, format!("{said}: more than one descriptor")),
            (None, 0) => None,
            (Some(one), 0) => Some(one),
        };
        let backed = backing.is_some();
        if let Some(descriptor) = backing {
            let memory = match SharedMemory::from_trusted(descriptor) {
                Ok(memory) => memory,
                Err(error) => {
                    return refuse(libc::EINVAL, format!("{said}: {}", ipc::chain(&error)));
                }
            };
            if offset.checked_add(size).is_none_or(|end| end > memory.size()) {
                return refuse(libc::EINVAL, format!("{said}: its memory does not hold it"));
            }
            let writable = flags & WRITABLE != 0;
            container.map(GuestRegion { iova, size, memory, offset, writable })?;
        }
        self.0.insert(iova, Map { size, backed });
        Ok(())
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
            match self.0.get(&iova) {
                Some(map) if map.size == size => {}
                _ => return refuse(libc::ENOENT, format!("{said}: no such map")),
            }
            if let Some(map) = self.0.remove(&iova)
                && map.backed
            {
                container.unmap(iova, size)?;
            }
        }
        Ok(body[..24].to_vec())
    }

    /// Takes everything back: the client is gone.
    pub(super) fn clear(&mut self, container: &Container) {
        for (iova, map) in std::mem::take(&mut self.0) {
            if map.backed
                && let Err(error) = container.unmap(iova, map.size)
            {
                tracing::warn!("taking back {iova:#x}: {error}");
            }
        }
    }
}
