//! The guest memory table: which guest addresses are RAM, and where that RAM is mapped here.
//!
//! The VMM side fills it. In a connection process a DMA registration must lie in one region of it,
//! whoever asks; in a function process a companion's rings are read through it.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use cordon_backend::Behind;
use ipc::wire::common::{Failure, FailureKind};
use ipc::{Access, SharedMemory, Window, WindowError};

pub use crate::limits::MAX_REGIONS;
use crate::start;
use crate::sys::Place;

/// Descriptors that are not used for regions: a message brings [`ipc::tube::MAX_HANDLES`] at most, and one that
/// brings more than there is room for ends the process.
const KEPT_FREE: u64 = 128;

/// From which descriptor on none is kept for a region.
static BOUND: AtomicU64 = AtomicU64::new(u64::MAX);

/// Says how many descriptors this process may have. Regions leave some of them free.
pub fn bound_descriptors(most: u64) {
    BOUND.store(most.saturating_sub(KEPT_FREE), Ordering::Relaxed);
}

struct Region {
    size: u64,
    memory: SharedMemory,
    offset: u64,
    /// Where it is mapped, and what is known of that to whoever reports a fault there.
    window: Option<(Window, Place)>,
    writable: bool,
    /// Registrations of it that are left.
    users: u64,
}

/// The table.
pub struct MemoryTable {
    regions: BTreeMap<u64, Region>,
    /// Whether regions are mapped in this process.
    mapped: bool,
}

/// A range of guest memory that was found in the table.
pub struct Found<'t> {
    /// Guest address of its region.
    pub base: u64,
    /// Where the range is mapped in this process, if it is.
    pub address: Option<usize>,
    /// The mapping of its region, if it is mapped.
    pub window: Option<&'t Window>,
    /// Where in the mapping the range begins.
    pub into: u64,
    /// The memory behind it.
    pub behind: Behind<'t>,
}

impl MemoryTable {
    /// An empty table, whose regions are `mapped` in this process or only known by their
    /// descriptors.
    #[must_use]
    pub fn new(mapped: bool) -> Self {
        Self { regions: BTreeMap::new(), mapped }
    }

    /// Adds a region.
    ///
    /// # Errors
    /// [`Failure`] when it is empty, wraps, overlaps another, is more than the descriptor holds,
    /// when the table is full, or when descriptors are short.
    pub fn add(
        &mut self,
        base: u64,
        size: u64,
        fd: OwnedFd,
        offset: u64,
        writable: bool,
    ) -> Result<(), Failure> {
        let said = format!("Guest memory {base:#x}+{size:#x}");
        let end = base.checked_add(size).filter(|_| size > 0);
        let end = end.ok_or_else(|| start::invalid(format!("{said} is empty or wraps")))?;
        let before = self.regions.range(..end).next_back();
        if before.is_some_and(|(start, region)| start + region.size > base) {
            let message = format!("{said} overlaps another region");
            return Err(Failure { kind: FailureKind::Busy, code: None, message });
        }
        if self.regions.len() >= MAX_REGIONS {
            let message = format!("{said}: {MAX_REGIONS} regions are the limit");
            return Err(Failure { kind: FailureKind::NoSpace, code: None, message });
        }
        // A new descriptor is the lowest one that is free.
        if u64::try_from(fd.as_raw_fd()).is_ok_and(|fd| fd >= BOUND.load(Ordering::Relaxed)) {
            let message = format!("{said}: this process has no descriptors left for memory");
            return Err(Failure { kind: FailureKind::NoSpace, code: None, message });
        }
        let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
        let refuse = |why: &str| start::invalid(format!("{said} cannot be mapped: {why}"));
        // The VMM may shorten its own guest's memory; it can end this process anyway.
        let needed =
            offset.checked_add(size).ok_or_else(|| refuse("it wraps in its descriptor"))?;
        let mapped = SharedMemory::from_trusted(fd, needed);
        let mapped = mapped.map_err(|error| refuse(&ipc::chain(&error))).and_then(|memory| {
            if !self.mapped {
                // The kernel pins memory of a file for a device whatever the descriptor allows, and whatever the file is
                // sealed against. A mapping is where it looks.
                memory.may_map(offset, access).map_err(|error| refuse(&ipc::chain(&error)))?;
                return Ok((memory, None));
            }
            let length = usize::try_from(size).map_err(|error| refuse(&error.to_string()))?;
            let window = memory.map(offset, length, access).map_err(|error| match &error {
                WindowError::Map { source, .. } if source.raw_os_error() == Some(libc::ENOMEM) => {
                    let why = "it is more than this process was started for (--guest-memory)";
                    Failure { kind: FailureKind::NoSpace, ..refuse(why) }
                }
                other => refuse(&ipc::chain(other)),
            })?;
            let place = Place::new(window.address(), window.length(), base);
            Ok((memory, Some((window, place))))
        });
        let (memory, window) = mapped?;
        self.regions.insert(base, Region { size, memory, offset, window, writable, users: 0 });
        Ok(())
    }

    /// Removes a region.
    ///
    /// # Errors
    /// [`Failure`] when it is not there, or when registrations of it are left.
    pub fn remove(&mut self, base: u64) -> Result<(), Failure> {
        let region = self.regions.get(&base);
        let region =
            region.ok_or_else(|| start::invalid(format!("No guest memory at {base:#x}")))?;
        if region.users > 0 {
            let message = format!("Guest memory at {base:#x} has {} registrations", region.users);
            return Err(Failure { kind: FailureKind::Busy, code: None, message });
        }
        self.regions.remove(&base);
        Ok(())
    }

    /// Finds `address..address + size`, which must lie in one region.
    ///
    /// # Errors
    /// [`Failure`] otherwise.
    pub fn find(&self, address: u64, size: u64) -> Result<Found<'_>, Failure> {
        let outside = || {
            start::invalid(format!(
                "{address:#x}+{size:#x} does not lie in one region of guest memory"
            ))
        };
        let end = address.checked_add(size).filter(|_| size > 0).ok_or_else(outside)?;
        let (base, region) = self.regions.range(..=address).next_back().ok_or_else(outside)?;
        if end > base + region.size {
            return Err(outside());
        }
        let into = address - base;
        let in_process = usize::try_from(into).map_err(|_| outside())?;
        let window = region.window.as_ref().map(|(window, _)| window);
        let address = window.map(|window| window.address() + in_process);
        let (memory, writable) = (&region.memory, region.writable);
        let behind = Behind { memory, offset: region.offset + into, writable };
        Ok(Found { base: *base, address, window, into, behind })
    }

    /// One registration more.
    pub fn retain(&mut self, base: u64) {
        if let Some(region) = self.regions.get_mut(&base) {
            region.users += 1;
        }
    }

    /// One registration less.
    pub fn release(&mut self, base: u64) {
        if let Some(region) = self.regions.get_mut(&base) {
            region.users = region.users.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram(size: u64) -> OwnedFd {
        SharedMemory::create("ram", size).unwrap().into_fd()
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let mut table = MemoryTable::new(true);
        table.add(0x10000, 0x10000, ram(0x10000), 0, true).unwrap();
        for (base, size, offset, kind) in [
            (0x0, 0x0, 0, FailureKind::InvalidArgument),
            (u64::MAX, 2, 0, FailureKind::InvalidArgument),
            (0x1f000, 0x1000, 0, FailureKind::Busy),
            (0xf000, 0x2000, 0, FailureKind::Busy),
            (0x0, 0x40000, 0, FailureKind::Busy),
            (0x40000, 0x20000, 0, FailureKind::InvalidArgument),
            (0x40000, 0x10000, 0x1000, FailureKind::InvalidArgument),
            (0x40000, 0x10000, u64::MAX, FailureKind::InvalidArgument),
        ] {
            let refused = table.add(base, size, ram(0x10000), offset, true).unwrap_err();
            assert_eq!(refused.kind, kind, "{base:#x}+{size:#x}: {}", refused.message);
        }
    }

    #[test]
    fn a_region_in_use_stays() {
        let mut table = MemoryTable::new(true);
        table.add(0, 0x10000, ram(0x10000), 0, true).unwrap();
        table.retain(0);
        assert_eq!(table.remove(0).unwrap_err().kind, FailureKind::Busy);
        table.release(0);
        table.remove(0).unwrap();
        assert!(table.remove(0).is_err());
    }

    #[test]
    fn memory_that_is_not_mapped_is_known_by_its_descriptor() {
        let mut table = MemoryTable::new(false);
        table.add(0x10000, 0x8000, ram(0x10000), 0x8000, true).unwrap();
        let found = table.find(0x12000, 0x1000).unwrap();
        assert_eq!((found.behind.offset, found.into), (0xa000, 0x2000));
        assert!(found.address.is_none() && found.window.is_none());
        for offset in [0x9000, u64::MAX] {
            let refused = table.add(0x40000, 0x8000, ram(0x10000), offset, true).unwrap_err();
            assert_eq!(refused.kind, FailureKind::InvalidArgument, "{}", refused.message);
        }
    }

    /// Of huge pages of 2 MiB, of which the system need not have any.
    #[cfg(target_os = "linux")]
    #[test]
    fn memory_of_huge_pages_is_known_from_any_page_on_and_nothing_of_it_stays_mapped() {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

        let huge = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).unwrap();
        ftruncate(&huge, 8 << 20).unwrap();
        let number = rustix::fs::fstat(&huge).unwrap().st_ino;
        let mut table = MemoryTable::new(false);
        // As QEMU has it: its memory from 1 MiB on is there in the file too.
        table.add(0x10_0000, 0x20_0000, huge, 0x10_0000, true).unwrap();
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&number.to_string()))
        };
        assert!(!is_mapped());
        table.remove(0x10_0000).unwrap();
        assert!(!is_mapped());
    }

    proptest! {
        #[test]
        fn only_what_lies_in_one_region_is_found(address in 0u64..0x6_0000, size in 0u64..0x4_0000) {
            let mut table = MemoryTable::new(true);
            table.add(0x10000, 0x10000, ram(0x20000), 0x10000, true).unwrap();
            table.add(0x20000, 0x10000, ram(0x10000), 0, false).unwrap();
            let in_first = address >= 0x10000 && address + size <= 0x20000;
            let in_second = address >= 0x20000 && address + size <= 0x30000;
            let found = table.find(address, size);
            prop_assert_eq!(found.is_ok(), size > 0 && (in_first || in_second));
            if let Ok(found) = found {
                let offset = if in_first { address } else { address - 0x20000 };
                prop_assert_eq!(found.behind.offset, offset);
                prop_assert_eq!(found.behind.writable, in_first);
            }
        }
    }

    #[test]
    fn one_region_more_than_there_may_be_is_refused_until_another_goes() {
        let file = ram(0x1000);
        for mapped in [false, true] {
            let mut table = MemoryTable::new(mapped);
            let add = |table: &mut MemoryTable, number: usize| {
                let file = file.try_clone().unwrap();
                table.add(0x1000 * number as u64, 0x1000, file, 0, true)
            };
            for number in 0..MAX_REGIONS {
                add(&mut table, number).unwrap();
            }
            let refused = add(&mut table, MAX_REGIONS).unwrap_err();
            assert_eq!(refused.kind, FailureKind::NoSpace);
            assert!(refused.message.contains("1024 regions are the limit"), "{}", refused.message);
            table.remove(0).unwrap();
            add(&mut table, MAX_REGIONS).unwrap();
        }
    }
}
