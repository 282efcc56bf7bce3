//! The DART of one function: which bus addresses lead where.
//!
//! *identity*: bus address == key, no platform limits. *strict*: addresses that the platform
//! chose, with no alignment, at most 1.5 GiB and 65,536 mappings, as others measured on hardware.
//! A device's access holds the table for reading, so a region is only gone once no access to it
//! is under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::PeerMemoryError;
use parking_lot::{Mutex, RwLock};

use crate::interrupts::ClientId;
pub(crate) use crate::limits::MAX_IDENTITY_MAPPINGS as IDENTITY_MAPPINGS;
pub(crate) use crate::limits::MAX_STRICT_BYTES as STRICT_BYTES;
pub(crate) use crate::limits::MAX_STRICT_MAPPINGS as STRICT_MAPPINGS;
use crate::memory::ClientMemory;
use crate::options::DartMode;

/// A mapping of the DART.
#[derive(Clone, Debug)]
struct Region {
    owner: ClientId,
    length: u64,
    memory: Arc<ClientMemory>,
    offset: u64,
}

/// An access that failed, or that a limit stopped from being mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DartError {
    /// Nothing is mapped there, it is mapped read-only, or the memory behind it is gone.
    Fault,
    /// A platform limit is reached, or (identity mode) the range is taken.
    Full,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Dart {
    mode: DartMode,
    table: RwLock<Table>,
    /// Mappings and bytes, for those who must not wait for an access that is under way.
    usage: Mutex<(usize, u64)>,
}

#[derive(Debug, Default)]
struct Table {
    regions: BTreeMap<u64, Region>,
    bytes: u64,
    next: u64,
    random: u64,
}

impl Dart {
    pub(crate) fn new(mode: DartMode, seed: u64) -> Self {
        let table = Table { next: 0x4_0000_0000, random: seed | 1, ..Table::default() };
        Self { mode, table: RwLock::new(table), usage: Mutex::default() }
    }

    /// Maps for a connection and returns the bus address.
    pub(crate) fn map(
        &self,
        owner: ClientId,
        key: u64,
        memory: Arc<ClientMemory>,
        offset: u64,
        length: u64,
    ) -> Result<u64, DartError> {
        let mut table = self.table.write();
        let mappings = table.regions.len();
        let bus = match self.mode {
            DartMode::Identity if mappings >= IDENTITY_MAPPINGS => return Err(DartError::Full),
            DartMode::Identity => key,
            DartMode::Strict => {
                if table.bytes + length > STRICT_BYTES || mappings >= STRICT_MAPPINGS {
                    return Err(DartError::Full);
                }
                table.choose(length)
            }
        };
        if table.overlaps(bus, length) {
            return Err(DartError::Full);
        }
        table.bytes += length;
        table.regions.insert(bus, Region { owner, length, memory, offset });
        self.count(&table);
        Ok(bus)
    }

    /// Removes a connection's mapping once nothing uses it. One that has gone already, and whose
    /// address somebody else may have by now, stays gone.
    pub(crate) fn unmap(&self, owner: ClientId, bus: u64) {
        let mut table = self.table.write();
        if table.regions.get(&bus).is_some_and(|region| region.owner == owner)
            && let Some(region) = table.regions.remove(&bus)
        {
            table.bytes -= region.length;
        }
        self.count(&table);
    }

    /// Removes every mapping, whoever made it.
    pub(crate) fn clear(&self) {
        let mut table = self.table.write();
        table.regions.clear();
        table.bytes = 0;
        self.count(&table);
    }

    fn count(&self, table: &Table) {
        let now = (table.regions.len(), table.bytes);
        *self.usage.lock() = now;
    }

    /// Mappings and bytes.
    pub(crate) fn usage(&self) -> (usize, u64) {
        *self.usage.lock()
    }

    /// A device reads. After an error some of `into` may be filled.
    pub(crate) fn read(&self, bus: u64, into: &mut [u8]) -> Result<(), DartError> {
        let table = self.table.read();
        let mut done = 0;
        table.walk(bus, into.len() as u64, |region, at, length| {
            let end = done + length;
            let copied = region.memory.read(at, &mut into[done..end]);
            done = end;
            copied.map_err(|error| fault(&error))
        })
    }

    /// A device writes. After an error some of it may have been written.
    pub(crate) fn write(&self, bus: u64, from: &[u8]) -> Result<(), DartError> {
        let table = self.table.read();
        let mut done = 0;
        table.walk(bus, from.len() as u64, |region, at, length| {
            let end = done + length;
            let copied = region.memory.write(at, &from[done..end]);
            done = end;
            copied.map_err(|error| fault(&error))
        })
    }
}

/// The device sees one kind of fault; people see why.
fn fault(error: &PeerMemoryError) -> DartError {
    tracing::debug!("DMA failed: {error}");
    DartError::Fault
}

impl Table {
    /// The next strict address: after everything so far, at a random odd multiple of 4.
    fn choose(&mut self, length: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let bus = self.next + (self.random & 0xfffc) + 4;
        self.next = bus + length;
        bus
    }

    fn overlaps(&self, bus: u64, length: u64) -> bool {
        let Some(end) = bus.checked_add(length) else {
            return true;
        };
        self.regions
            .range(..end)
            .next_back()
            .is_some_and(|(start, region)| start + region.length > bus)
    }

    /// Calls `access` with each piece of `bus..bus + length`, its offset in the memory and length.
    fn walk(
        &self,
        bus: u64,
        length: u64,
        mut access: impl FnMut(&Region, u64, usize) -> Result<(), DartError>,
    ) -> Result<(), DartError> {
        let (mut at, mut left) = (bus, length);
        while left > 0 {
            let (start, region) = self.regions.range(..=at).next_back().ok_or(DartError::Fault)?;
            let into = at - start;
            if into >= region.length {
                return Err(DartError::Fault);
            }
            let piece = left.min(region.length - into);
            let length = usize::try_from(piece).map_err(|_| DartError::Fault)?;
            access(region, region.offset + into, length)?;
            at = at.checked_add(piece).ok_or(DartError::Fault)?;
            left -= piece;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ipc::{Access, SharedMemory};

    use super::*;
    use crate::memory::Budget;

    const ONE: ClientId = 1;
    const OTHER: ClientId = 2;

    fn memory(size: u64, access: Access) -> Arc<ClientMemory> {
        let file = SharedMemory::create("test", size).unwrap().into_fd();
        Arc::new(ClientMemory::map(&file, size, access, &Budget::of_one_in(1)).unwrap())
    }

    fn ram(size: u64) -> Arc<ClientMemory> {
        memory(size, Access::ReadWrite)
    }

    #[test]
    fn an_access_spans_adjacent_mappings_and_stops_at_a_gap() {
        let dart = Dart::new(DartMode::Identity, 1);
        let memory = ram(16384);
        dart.map(ONE, 0x1000, Arc::clone(&memory), 8192, 0x1000).unwrap();
        dart.map(ONE, 0x2000, memory, 0, 0x1000).unwrap();
        dart.write(0x1ffc, b"12345678").unwrap();
        let mut back = [0; 8];
        dart.read(0x1ffc, &mut back).unwrap();
        assert_eq!(&back, b"12345678");
        assert_eq!(dart.read(0x2ffc, &mut back), Err(DartError::Fault));
        assert_eq!(dart.map(ONE, 0x1800, ram(4096), 0, 0x1000), Err(DartError::Full));
        dart.unmap(ONE, 0x1000);
        assert_eq!(dart.read(0x1ffc, &mut back), Err(DartError::Fault));
    }

    #[test]
    fn memory_that_is_mapped_for_reading_is_not_written() {
        let dart = Dart::new(DartMode::Identity, 1);
        dart.map(ONE, 0x1000, memory(4096, Access::ReadOnly), 0, 0x1000).unwrap();
        dart.read(0x1000, &mut [0; 8]).unwrap();
        assert_eq!(dart.write(0x1000, &[0; 8]), Err(DartError::Fault));
    }

    #[test]
    fn strict_addresses_are_unaligned_and_limited() {
        let dart = Dart::new(DartMode::Strict, 7);
        let memory = ram(1 << 20);
        let mut unaligned = 0;
        for key in 0..16 {
            let bus = dart.map(ONE, key << 20, Arc::clone(&memory), 0, 1 << 20).unwrap();
            unaligned += usize::from(!bus.is_multiple_of(4096));
        }
        assert!(unaligned > 8, "{unaligned}");
        let all = dart.map(ONE, 1 << 40, memory, 0, STRICT_BYTES);
        assert_eq!(all, Err(DartError::Full));
    }

    #[test]
    fn identity_mode_has_a_limit_of_our_own() {
        let dart = Dart::new(DartMode::Identity, 7);
        let memory = ram(4096);
        for key in 0..IDENTITY_MAPPINGS as u64 {
            dart.map(ONE, key << 12, Arc::clone(&memory), 0, 4096).unwrap();
        }
        let more = dart.map(OTHER, 1 << 50, Arc::clone(&memory), 0, 4096);
        assert_eq!(more, Err(DartError::Full));
        dart.unmap(ONE, 0);
        dart.map(OTHER, 1 << 50, memory, 0, 4096).unwrap();
    }

    #[test]
    fn a_mapping_is_removed_by_its_owner_only() {
        let dart = Dart::new(DartMode::Identity, 7);
        dart.map(ONE, 0x1000, ram(4096), 0, 4096).unwrap();
        dart.unmap(OTHER, 0x1000);
        assert_eq!(dart.usage(), (1, 4096));
        dart.clear();
        assert_eq!(dart.usage(), (0, 0));
        dart.map(OTHER, 0x1000, ram(4096), 0, 4096).unwrap();
        dart.unmap(ONE, 0x1000);
        assert_eq!(dart.usage(), (1, 4096));
    }
}
