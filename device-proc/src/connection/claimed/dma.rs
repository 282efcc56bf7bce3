//! What a function's guest may reach by DMA: registrations on behalf of the VMM, and of the guest
//! through its companion (C5). Each is removed only by whom it was made for.

use std::collections::{BTreeMap, BTreeSet};

use cordon_backend::{BackendError, BusRange, DmaRange, ErrorKind};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::connection::DmaEntry;
use ipc::wire::dma::Outcome;

use super::ClaimedFunction;
use crate::{failure, start};

/// On behalf of whom a range was registered; only they may have it removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
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
    bus: BusRange,
    owner: Owner,
}

impl Registration {
    fn is(&self, entry: &DmaEntry) -> bool {
        (self.address, self.size) == (entry.address, entry.size)
    }
}

/// The companion's last batch, which may come again.
#[derive(Default)]
pub(super) struct LastBatch {
    batch: Option<u64>,
    removed: BTreeSet<u64>,
}

impl ClaimedFunction {
    /// Registers a range of guest memory on behalf of the VMM; where the device reaches it.
    pub(in crate::connection) fn map(&mut self, entry: &DmaEntry) -> Result<BusRange, Failure> {
        self.register(entry, Owner::Vmm)
    }

    /// Removes a registration that was made on behalf of the VMM.
    pub(in crate::connection) fn unmap(&mut self, key: u64) -> Result<(), Failure> {
        self.remove(key, |owner| owner == Owner::Vmm)
    }

    /// Registers a batch of the companion's. Done again under the same number, since the process
    /// that asked died before its guest had the answer, it comes to the same: what was registered
    /// then is recognised, and what is not asked for any more is removed.
    pub(in crate::connection) fn map_batch(
        &mut self,
        batch: u64,
        entries: &[DmaEntry],
    ) -> Vec<Outcome> {
        let mut known = self.begin(batch);
        let recognise = |entry: &DmaEntry, known: &mut BTreeMap<u64, Registration>| {
            let same = known.get(&entry.key).is_some_and(|one| one.is(entry));
            if same { known.remove(&entry.key).map(|one| one.bus) } else { None }
        };
        let recognised: Vec<_> = entries.iter().map(|entry| recognise(entry, &mut known)).collect();
        for key in known.into_keys() {
            let _ = self.remove(key, |owner| owner == Owner::Companion(batch));
        }
        let each = entries.iter().zip(recognised);
        each.map(|(entry, recognised)| {
            let mapped = match recognised {
                Some(bus) => Ok(bus),
                None => self.register(entry, Owner::Companion(batch)),
            };
            match mapped {
                Ok(BusRange { address, length }) => {
                    Outcome::Mapped { bus_address: address, bus_length: length }
                }
                Err(failure) => {
                    tracing::debug!("{}", failure.message);
                    Outcome::Failed(failure.kind)
                }
            }
        })
        .collect()
    }

    /// Removes a batch of the companion's registrations; done again, as [`ClaimedFunction::map_batch`].
    pub(in crate::connection) fn unmap_batch(&mut self, batch: u64, keys: &[u64]) -> Vec<Outcome> {
        for key in self.begin(batch).into_keys() {
            let _ = self.remove(key, |owner| owner == Owner::Companion(batch));
        }
        let mut removed_before = std::mem::take(&mut self.last.removed);
        let mut outcomes = Vec::with_capacity(keys.len());
        for key in keys {
            let is_companions = |owner| matches!(owner, Owner::Companion(_));
            let removed = removed_before.remove(key) || self.remove(*key, is_companions).is_ok();
            outcomes.push(if removed {
                self.last.removed.insert(*key);
                Outcome::Unmapped
            } else {
                Outcome::Failed(FailureKind::InvalidArgument)
            });
        }
        outcomes
    }

    /// A batch begins: what it registered when it was carried out before.
    fn begin(&mut self, batch: u64) -> BTreeMap<u64, Registration> {
        if self.last.batch != Some(batch) {
            self.last = LastBatch { batch: Some(batch), removed: BTreeSet::new() };
            return BTreeMap::new();
        }
        let of_it = self.registrations.iter();
        of_it
            .filter(|(_, one)| one.owner == Owner::Companion(batch))
            .map(|(k, o)| (*k, *o))
            .collect()
    }

    fn register(&mut self, entry: &DmaEntry, owner: Owner) -> Result<BusRange, Failure> {
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
        let registered = self.function.register_dma(&range);
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
    fn remove(&mut self, key: u64, may: impl Fn(Owner) -> bool) -> Result<(), Failure> {
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
    /// guest is gone or reset, or the memory goes.
    pub(in crate::connection) fn release_companion(&mut self, base: Option<u64>) {
        let goes = |one: &Registration| {
            matches!(one.owner, Owner::Companion(_)) && base.is_none_or(|base| one.base == base)
        };
        let of_it = self.registrations.iter().filter(|(_, one)| goes(one)).map(|(key, _)| *key);
        let keys: Vec<u64> = of_it.collect();
        for key in keys {
            if let Err(failure) = self.remove(key, |_| true) {
                tracing::warn!("{}", failure.message);
            }
        }
        self.last = LastBatch::default();
    }

    /// Forgets a region of guest memory, and what the companion registered of it.
    pub(in crate::connection) fn remove_memory(&mut self, base: u64) -> Result<(), Failure> {
        self.release_companion(Some(base));
        self.memory.remove(base)
    }

    /// Removes every registration.
    pub(super) fn release_all(&mut self) {
        let keys: Vec<u64> = self.registrations.keys().copied().collect();
        for key in keys {
            if let Err(failure) = self.remove(key, |_| true) {
                tracing::warn!("{}; giving up the claim will release it", failure.message);
            }
        }
    }
}
