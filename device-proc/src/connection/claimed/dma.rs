//! What a function's guest may reach by DMA: registrations on behalf of the VMM, and of the guest
//! through its companion (C5). Each is removed only by whom it was made for.

use std::ops::Bound;

use cordon_backend::{BackendError, BusRange, DmaRange, ErrorKind, GroupFunction};
use ipc::Deadline;
use ipc::wire::common::Failure;
use ipc::wire::connection::DmaEntry;

use super::ClaimedFunction;
use crate::{failure, start};

/// On behalf of whom a range was registered; only they may have it removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The VMM: direct mode.
    Vmm,
    /// The guest, by its companion, in the batch of this number.
    Companion(u64),
}

#[derive(Clone, Copy)]
pub(super) struct Registration {
    /// Guest address of the region it lies in.
    base: u64,
    address: u64,
    size: u64,
    pub(super) bus: BusRange,
    pub(super) owner: Owner,
}

impl Registration {
    pub(super) fn is(&self, entry: &DmaEntry) -> bool {
        (self.address, self.size) == (entry.address, entry.size)
    }
}

impl ClaimedFunction {
    /// Registers a range of guest memory on behalf of the VMM; where the device reaches it.
    pub(in crate::connection) fn map(&mut self, entry: &DmaEntry) -> Result<BusRange, Failure> {
        self.register(entry, Owner::Vmm)
    }

    /// Registers a range on behalf of the VMM, unless the process before this one has.
    pub(in crate::connection) fn adopt(&mut self, entry: &DmaEntry) -> Result<BusRange, Failure> {
        self.register_by(entry, Owner::Vmm, |function, range| function.adopt_dma(range))
    }

    /// Removes a registration that was made on behalf of the VMM.
    pub(in crate::connection) fn unmap(&mut self, key: u64) -> Result<(), Failure> {
        self.remove(key, |owner| owner == Owner::Vmm)
    }

    pub(super) fn register(&mut self, entry: &DmaEntry, owner: Owner) -> Result<BusRange, Failure> {
        self.register_by(entry, owner, |function, range| function.register_dma(range))
    }

    fn register_by(
        &mut self,
        entry: &DmaEntry,
        owner: Owner,
        how: impl FnOnce(&mut dyn GroupFunction, &DmaRange<'_>) -> Result<BusRange, BackendError>,
    ) -> Result<BusRange, Failure> {
        if !self.attached {
            return Err(start::invalid(format!("Function {} is not attached", self.address())));
        }
        let DmaEntry { key, address, size } = *entry;
        let found = self.memory.find(address, size)?;
        let granule = self.function.dma_space().granule;
        if [key, address, size, found.behind.offset]
            .iter()
            .any(|value| !value.is_multiple_of(granule))
        {
            let what = format!("{key:#x} for {address:#x}+{size:#x}");
            let message = format!("DMA under {what}: multiples of {granule:#x} are allowed");
            return Err(start::invalid(message));
        }
        let (base, mapped_at) = (found.base, found.address);
        let range = DmaRange { key, size, mapped_at, behind: found.behind };
        let registered = how(self.function.as_mut(), &range);
        let bus = registered.map_err(|error| self.not_registered(&error))?;
        self.memory.retain(base);
        self.registrations.insert(entry.key, Registration { base, address, size, bus, owner });
        self.full = None;
        let now = &mut self.statistics;
        now.regions += 1;
        now.bytes += size;
        now.peak_regions = now.peak_regions.max(now.regions);
        now.peak_bytes = now.peak_bytes.max(now.bytes);
        Ok(bus)
    }

    /// Counts a limit that was reached, and says once which, until there is room again.
    fn not_registered(&mut self, error: &BackendError) -> Failure {
        let max_ranges = self.function.dma_space().max_ranges;
        let now = &mut self.statistics;
        let (counter, limit) = match error.kind {
            ErrorKind::NoSpace if now.regions >= max_ranges => {
                (&mut now.failed_mappings, "the platform has no more mappings")
            }
            ErrorKind::NoSpace => {
                (&mut now.failed_bytes, "the platform maps no more bytes at once")
            }
            ErrorKind::Fragmented => {
                (&mut now.failed_segments, "the platform has no single segment for it")
            }
            _ => return failure(error),
        };
        *counter += 1;
        if self.full != Some(limit) {
            self.full = Some(limit);
            let (regions, bytes) = (now.regions, now.bytes);
            let address = self.function.address();
            tracing::warn!("function {address}: {limit}; {regions} regions, {bytes} bytes mapped");
        }
        failure(error)
    }

    /// Removes what this function registered on behalf of whom `may` says, and nothing else.
    pub(super) fn remove(&mut self, key: u64, may: impl Fn(Owner) -> bool) -> Result<(), Failure> {
        let registration = self.registrations.get(&key).filter(|one| may(one.owner));
        let Some(registration) = registration else {
            let message = format!("Function {} has no registration {key:#x}", self.address());
            return Err(start::invalid(message));
        };
        let done = self.function.unregister_dma(key, registration.bus);
        done.map_err(|error| failure(&error))?;
        self.memory.release(registration.base);
        self.statistics.regions -= 1;
        self.statistics.bytes -= registration.size;
        self.registrations.remove(&key);
        Ok(())
    }

    /// Removes what the companion registered, all of it or of one region of guest memory: the
    /// guest is gone or reset, or the memory goes. Whether that is done, at `until` at the latest; at
    /// least one registration is removed.
    pub(in crate::connection) fn release_companion(
        &mut self,
        base: Option<u64>,
        until: Deadline,
    ) -> bool {
        let is_done = self.remove_each(until, |one| {
            matches!(one.owner, Owner::Companion(_)) && base.is_none_or(|base| one.base == base)
        });
        if base.is_none() && is_done {
            self.forget_batches();
        }
        is_done
    }

    /// Removes what the companion registered of a region of guest memory, and forgets the region. Whether
    /// that is done, at `until` at the latest.
    pub(in crate::connection) fn remove_memory(
        &mut self,
        base: u64,
        until: Deadline,
    ) -> Result<bool, Failure> {
        let is_done = self.release_companion(Some(base), until);
        if is_done {
            self.memory.remove(base)?;
        }
        Ok(is_done)
    }

    /// Removes every registration; what is left at `until` goes with the claim.
    pub(super) fn release_all(&mut self, until: Deadline) {
        if !self.remove_each(until, |_| true) {
            let (address, left) = (self.address(), self.registrations.len());
            tracing::debug!("function {address}: {left} registrations go with its claim");
        }
    }

    /// Removes what `goes` says; whether it came to all of it by `until`. What the backend does not
    /// remove is told and left.
    fn remove_each(&mut self, until: Deadline, goes: impl Fn(&Registration) -> bool) -> bool {
        let mut after = Bound::Unbounded;
        let mut is_first = true;
        loop {
            let mut rest = self.registrations.range((after, Bound::Unbounded));
            let Some(key) = rest.find(|(_, one)| goes(one)).map(|(key, _)| *key) else {
                return true;
            };
            if !std::mem::take(&mut is_first) && until.passed() {
                return false;
            }
            if let Err(failure) = self.remove(key, |_| true) {
                tracing::warn!("{}", failure.message);
            }
            after = Bound::Excluded(key);
        }
    }
}
