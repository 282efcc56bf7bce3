//! The DART of one function: which bus addresses lead where.
//!
//! *identity*: bus address == key, no platform limits. *strict*: addresses that the platform
//! chose, with no alignment, at most 1.5 GiB and 65,536 mappings, as others measured on hardware.
//! A device's access holds the table for reading, so a region is only gone once no access to it
//! is under way.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use ipc::{Access, SharedMemory, Window};
use parking_lot::{Mutex, RwLock};

use crate::options::DartMode;

/// Most bytes mapped at once in strict mode.
pub(crate) const STRICT_BYTES: u64 = 3 << 29;
/// Most mappings at once in strict mode.
pub(crate) const STRICT_MAPPINGS: usize = 65_536;

/// A client's memory, mapped here once however often it is registered.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    window: Window,
    writable: bool,
}

/// Memory of clients by file, so that 65,536 registrations of one guest are one mapping.
#[derive(Debug, Default)]
pub(crate) struct MemoryCache(Mutex<HashMap<(i128, u64, bool), Weak<ClientMemory>>>);

impl MemoryCache {
    /// Maps the file behind `fd`, or finds it mapped already. `None` when it cannot be mapped.
    pub(crate) fn map(&self, fd: OwnedFd, writable: bool) -> Option<Arc<ClientMemory>> {
        let stat = rustix::fs::fstat(fd.as_fd()).ok()?;
        let key = (i128::from(stat.st_dev), stat.st_ino, writable);
        let mut cache = self.0.lock();
        if let Some(memory) = cache.get(&key).and_then(Weak::upgrade) {
            return Some(memory);
        }
        cache.retain(|_, memory| memory.strong_count() > 0);
        let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
        // Guest RAM of any VMM is taken, sealed or not: a client that shortens it ends the
        // simulation, as it would end a real machine's DMA.
        let window = SharedMemory::from_trusted(fd).ok()?.map_all(access).ok()?;
        let memory = Arc::new(ClientMemory { window, writable });
        cache.insert(key, Arc::downgrade(&memory));
        Some(memory)
    }
}

impl ClientMemory {
    /// Whether `length` bytes from `offset` lie in it.
    pub(crate) fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.window.length() as u64)
    }
}

/// A mapping of the DART.
#[derive(Clone, Debug)]
struct Region {
    length: u64,
    memory: Arc<ClientMemory>,
    offset: u64,
}

/// An access that the DART stopped, or that a limit stopped from being mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DartError {
    /// Nothing is mapped there.
    Fault,
    /// The mapping is read-only.
    ReadOnly,
    /// A platform limit is reached, or (identity mode) the range is taken.
    Full,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Dart {
    mode: DartMode,
    table: RwLock<Table>,
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
        Self { mode, table: RwLock::new(table) }
    }

    /// Maps and returns the bus address.
    pub(crate) fn map(
        &self,
        key: u64,
        memory: Arc<ClientMemory>,
        offset: u64,
        length: u64,
    ) -> Result<u64, DartError> {
        let mut table = self.table.write();
        let bus = match self.mode {
            DartMode::Identity => key,
            DartMode::Strict => {
                let full =
                    table.bytes + length > STRICT_BYTES || table.regions.len() >= STRICT_MAPPINGS;
                if full {
                    return Err(DartError::Full);
                }
                table.choose(length)
            }
        };
        if table.overlaps(bus, length) {
            return Err(DartError::Full);
        }
        table.bytes += length;
        table.regions.insert(bus, Region { length, memory, offset });
        Ok(bus)
    }

    /// Removes a mapping once nothing uses it.
    pub(crate) fn unmap(&self, bus: u64) {
        let mut table = self.table.write();
        if let Some(region) = table.regions.remove(&bus) {
            table.bytes -= region.length;
        }
    }

    /// Mappings and bytes.
    pub(crate) fn usage(&self) -> (usize, u64) {
        let table = self.table.read();
        (table.regions.len(), table.bytes)
    }

    /// A device reads.
    pub(crate) fn read(&self, bus: u64, into: &mut [u8]) -> Result<(), DartError> {
        let table = self.table.read();
        let mut done = 0;
        table.walk(bus, into.len() as u64, |region, at, length| {
            let end = done + length;
            let copied = region.memory.window.copy_out(at, &mut into[done..end]);
            done = end;
            copied.map_err(|_| DartError::Fault)
        })
    }

    /// A device writes.
    pub(crate) fn write(&self, bus: u64, from: &[u8]) -> Result<(), DartError> {
        let table = self.table.read();
        let mut done = 0;
        table.walk(bus, from.len() as u64, |region, at, length| {
            if !region.memory.writable {
                return Err(DartError::ReadOnly);
            }
            let end = done + length;
            let copied = region.memory.window.copy_in(at, &from[done..end]);
            done = end;
            copied.map_err(|_| DartError::Fault)
        })
    }

    /// A device publishes a word: everything it wrote before is seen by who sees the word.
    pub(crate) fn publish(&self, bus: u64, word: u32) -> Result<(), DartError> {
        let table = self.table.read();
        table.walk(bus, 4, |region, at, length| {
            if !region.memory.writable {
                return Err(DartError::ReadOnly);
            }
            let aligned = length == 4 && region.memory.window.store_u32(at, word).is_ok();
            if aligned {
                return Ok(());
            }
            let bytes = &word.to_le_bytes()[..length];
            region.memory.window.copy_in(at, bytes).map_err(|_| DartError::Fault)
        })
    }
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
    use super::*;

    fn memory(size: u64) -> Arc<ClientMemory> {
        let fd = SharedMemory::create("test", size).unwrap().into_fd();
        MemoryCache::default().map(fd, true).unwrap()
    }

    #[test]
    fn an_access_spans_adjacent_mappings_and_stops_at_a_gap() {
        let dart = Dart::new(DartMode::Identity, 1);
        let ram = memory(16384);
        dart.map(0x1000, Arc::clone(&ram), 8192, 0x1000).unwrap();
        dart.map(0x2000, ram, 0, 0x1000).unwrap();
        dart.write(0x1ffc, b"12345678").unwrap();
        let mut back = [0; 8];
        dart.read(0x1ffc, &mut back).unwrap();
        assert_eq!(&back, b"12345678");
        assert_eq!(dart.read(0x2ffc, &mut back), Err(DartError::Fault));
        assert_eq!(dart.map(0x1800, memory(4096), 0, 0x1000), Err(DartError::Full));
        dart.unmap(0x1000);
        assert_eq!(dart.read(0x1ffc, &mut back), Err(DartError::Fault));
    }

    #[test]
    fn strict_addresses_are_unaligned_and_limited() {
        let dart = Dart::new(DartMode::Strict, 7);
        let ram = memory(1 << 20);
        let mut unaligned = 0;
        for key in 0..16 {
            let bus = dart.map(key << 20, Arc::clone(&ram), 0, 1 << 20).unwrap();
            unaligned += usize::from(!bus.is_multiple_of(4096));
        }
        assert!(unaligned > 8, "{unaligned}");
        let all = dart.map(1 << 40, ram, 0, STRICT_BYTES);
        assert_eq!(all, Err(DartError::Full));
    }
}
