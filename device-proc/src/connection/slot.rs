//! One function in the connection process: its opener connection and its DMA registrations.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::connection::{Attached, BarWindow, Carrier, DmaEntry, DmaStatistics};
use ipc::wire::dext::IoReturn;
use ipc::wire::dma::Outcome;
use ipc::{DeviceMemory, PciAddress, Window};

use super::windows::guest_windows;
use crate::dext::{Client, DextError};
use crate::function::bars::is_mappable;
use crate::memory::MemoryTable;
use crate::options::Windows;
use crate::{capabilities, failure, start};

/// What attaching brings: what may be said of the function, and the memory of each window, which is
/// not duplicated for it: a confined process cannot.
pub(super) type Exported = (Attached, Vec<Arc<DeviceMemory>>);

/// On behalf of whom a range was registered; only they may have it removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The VMM: direct mode.
    Vmm,
    /// The guest, by its companion, in the batch of this number.
    Companion(u64),
}

#[derive(Clone, Copy)]
struct Registration {
    /// Guest address of the region it lies in.
    base: u64,
    address: u64,
    size: u64,
    bus: (u64, u64),
    owner: Owner,
}

impl Registration {
    fn is(&self, entry: &DmaEntry) -> bool {
        (self.address, self.size) == (entry.address, entry.size)
    }
}

/// The companion's last batch, which may come again.
#[derive(Default)]
struct LastBatch {
    batch: Option<u64>,
    removed: BTreeSet<u64>,
}

/// Mappings that the platform has for one device.
const MAX_MAPPINGS: u64 = 65_536;

/// One function.
pub struct Slot {
    client: Client,
    /// Guest memory that it may register.
    pub(super) memory: MemoryTable,
    attached: bool,
    registrations: BTreeMap<u64, Registration>,
    last: LastBatch,
    /// The limit that was reached last, until something was registered again.
    full: Option<&'static str>,
    statistics: DmaStatistics,
    /// Mappings of BARs that were handed on as parts of this process's memory.
    mapped: Vec<Window>,
    /// What becomes of the BARs.
    windows: Windows,
}

impl Slot {
    /// A function that is open and not claimed.
    #[must_use]
    pub fn new(client: Client, windows: Windows) -> Self {
        let (registrations, statistics) = (BTreeMap::new(), DmaStatistics::default());
        let memory = MemoryTable::default();
        let last = LastBatch::default();
        Self {
            client,
            memory,
            attached: false,
            registrations,
            last,
            full: None,
            statistics,
            mapped: Vec::new(),
            windows,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.client.address()
    }

    /// Descriptors that it needs.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.client.descriptors()
    }

    /// Hangs up when the dext dies.
    #[must_use]
    pub fn liveness(&self) -> Option<BorrowedFd<'_>> {
        self.client.liveness()
    }

    /// Registrations now and at most.
    #[must_use]
    pub fn statistics(&self) -> DmaStatistics {
        self.statistics
    }

    /// Claims the function and exports its BARs: what may be said of them, and one handle for
    /// each window.
    pub(super) fn attach(&mut self) -> Result<Exported, Failure> {
        let address = self.address();
        if self.attached {
            let message = format!("Function {address} is attached already");
            return Err(Failure { kind: FailureKind::Busy, code: None, message });
        }
        if self.client.is_claimed().map_err(|error| failure(&error))? {
            // The dext would only add a reference, and whoever opened it could take it away.
            let message = format!("Function {address} is claimed by another process");
            return Err(Failure { kind: FailureKind::Busy, code: None, message });
        }
        self.client.claim().map_err(|error| failure(&error))?;
        let exported = self.export().map_err(|error| failure(&error))?;
        self.attached = true;
        Ok(exported)
    }

    fn export(&mut self) -> Result<Exported, DextError> {
        let client = &mut self.client;
        let msix = capabilities::msix(client)?;
        let bars = client.bars()?;
        let (mut windows, mut handles, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        for (bar, info) in (0u8..).zip(bars) {
            let Some(info) = info.filter(is_mappable) else {
                continue;
            };
            // Whatever becomes of it: connections that claimed nothing map what the opener mapped first.
            let mapped = match client.map_bar(bar) {
                Ok(mapped) => mapped,
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    warnings.push(format!("BAR {bar} is served by traps only: {error}"));
                    continue;
                }
            };
            let size = mapped.window.length() as u64;
            let parts = match self.windows {
                Windows::Trapped => Vec::new(),
                Windows::Handed | Windows::Described => {
                    guest_windows(bar, &info, size, msix.as_ref())
                }
            };
            if self.windows == Windows::Described {
                let describe =
                    |(offset, length)| BarWindow { bar, offset, length, memory_offset: offset };
                windows.extend(parts.into_iter().map(describe));
                continue;
            }
            if let Some(memory) = mapped.memory {
                let memory = Arc::new(DeviceMemory::from(memory));
                for (offset, length) in parts {
                    windows.push(BarWindow { bar, offset, length, memory_offset: offset });
                    handles.push(Arc::clone(&memory));
                }
                continue;
            }
            for (offset, length) in parts {
                match DeviceMemory::of(&mapped.window, offset, length) {
                    Ok(memory) => {
                        windows.push(BarWindow { bar, offset, length, memory_offset: 0 });
                        handles.push(Arc::new(memory));
                    }
                    Err(error) => warnings.push(format!(
                        "BAR {bar} from {offset:#x} is served by traps only: it cannot be handed on: {error}"
                    )),
                }
            }
            // What is handed on stays mapped here for as long as the function is attached.
            self.mapped.push(mapped.window);
        }
        let by_port = handles.iter().any(|memory| memory.entry().is_some());
        let carrier = match self.windows {
            Windows::Described => Carrier::Own,
            _ if by_port => Carrier::Port,
            Windows::Handed | Windows::Trapped => Carrier::Descriptors,
        };
        let identity = client.identity();
        let attached = Attached { identity, bars, windows, carrier, warnings };
        Ok((attached, handles))
    }

    /// Resets the function: it comes back after the connection process before this one died, and
    /// whatever it was told then is to be forgotten before it reaches memory again (P8).
    pub(super) fn reset(&mut self) -> Result<(), Failure> {
        if !self.attached {
            return Err(start::invalid(format!("Function {} is not attached", self.address())));
        }
        self.client.reset().map_err(|error| failure(&error))
    }

    /// Registers a range of guest memory on behalf of the VMM; where the device reaches it.
    pub(super) fn map(&mut self, entry: &DmaEntry) -> Result<(u64, u64), Failure> {
        self.register(entry, Owner::Vmm)
    }

    /// Removes a registration that was made on behalf of the VMM.
    pub(super) fn unmap(&mut self, key: u64) -> Result<(), Failure> {
        self.remove(key, |owner| owner == Owner::Vmm)
    }

    /// Registers a batch of the companion's. Done again under the same number, since the process
    /// that asked died before its guest had the answer, it comes to the same: what was registered
    /// then is recognised, and what is not asked for any more is removed.
    pub(super) fn map_batch(&mut self, batch: u64, entries: &[DmaEntry]) -> Vec<Outcome> {
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
                Ok((bus_address, bus_length)) => Outcome::Mapped { bus_address, bus_length },
                Err(failure) => {
                    tracing::debug!("{}", failure.message);
                    Outcome::Failed(failure.kind)
                }
            }
        })
        .collect()
    }

    /// Removes a batch of the companion's registrations; done again, as [`Slot::map_batch`].
    pub(super) fn unmap_batch(&mut self, batch: u64, keys: &[u64]) -> Vec<Outcome> {
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

    fn register(&mut self, entry: &DmaEntry, owner: Owner) -> Result<(u64, u64), Failure> {
        if !self.attached {
            return Err(start::invalid(format!("Function {} is not attached", self.address())));
        }
        let found = self.memory.find(entry.address, entry.size)?;
        let base = found.base;
        let registered =
            self.client.register_dma(entry.key, found.address, entry.size, found.behind);
        let bus = registered.map_err(|error| self.not_registered(&error))?;
        self.memory.retain(base);
        let DmaEntry { address, size, .. } = *entry;
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
    fn not_registered(&mut self, error: &DextError) -> Failure {
        let now = &mut self.statistics;
        let (counter, limit) = match error.code() {
            Some(IoReturn::NO_SPACE) if now.regions >= MAX_MAPPINGS => {
                (&mut now.failed_mappings, "the platform has no more mappings")
            }
            Some(IoReturn::NO_SPACE) => {
                (&mut now.failed_bytes, "the platform maps no more bytes at once")
            }
            Some(IoReturn::NOT_ALIGNED) => {
                (&mut now.failed_segments, "the platform has no single segment for it")
            }
            _ => return failure(error),
        };
        *counter += 1;
        if self.full != Some(limit) {
            self.full = Some(limit);
            let (regions, bytes) = (now.regions, now.bytes);
            let address = self.client.address();
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
        self.client.unregister_dma(key).map_err(|error| failure(&error))?;
        self.memory.release(registration.base);
        self.statistics.regions -= 1;
        self.statistics.bytes -= registration.size;
        self.registrations.remove(&key);
        Ok(())
    }

    /// Removes what the companion registered, all of it or of one region of guest memory: the
    /// guest is gone or reset, or the memory goes.
    pub(super) fn release_companion(&mut self, base: Option<u64>) {
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
    pub(super) fn remove_memory(&mut self, base: u64) -> Result<(), Failure> {
        self.release_companion(Some(base));
        self.memory.remove(base)
    }

    /// Removes every registration: the connection is about to close (P1.4).
    pub(super) fn release(&mut self) {
        let keys: Vec<u64> = self.registrations.keys().copied().collect();
        for key in keys {
            if let Err(failure) = self.remove(key, |_| true) {
                tracing::warn!("{}; closing the connection will release it", failure.message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dext::fake::Fake;
    use ipc::SharedMemory;
    use ipc::wire::dext::{IoReturn, selector};

    fn attached() -> (Fake, Slot) {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        let mut slot = Slot::new(client, Windows::Handed);
        slot.attach().unwrap();
        fake.recover(selector::REGISTER_DMA_REGION);
        let ram = SharedMemory::create("ram", 0x10000).unwrap().into_fd();
        slot.memory.add(0x10000, 0x10000, ram, 0, true).unwrap();
        (fake, slot)
    }

    fn entry(key: u64, address: u64, size: u64) -> DmaEntry {
        DmaEntry { key, address, size }
    }

    #[test]
    fn attaching_claims_and_exports_the_windows() {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        let mut slot = Slot::new(client, Windows::Handed);
        let (attached, handles) = slot.attach().unwrap();
        assert_eq!(fake.calls_of(selector::CLAIM).len(), 1);
        let windows: Vec<_> =
            attached.windows.iter().map(|w| (w.bar, w.offset, w.length)).collect();
        assert_eq!(windows, [(0, 0, 0x8000), (0, 0x10000, 0x10000), (2, 0, 0x10000)]);
        assert_eq!(handles.len(), 3);
        assert_eq!(slot.attach().unwrap_err().kind, FailureKind::Busy);
    }

    #[test]
    fn p1_1_a_function_that_somebody_else_claimed_is_left_alone() {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::BAD_ARGUMENT);
        let refused = Slot::new(client, Windows::Handed).attach().unwrap_err();
        assert_eq!(refused.kind, FailureKind::Busy);
        assert!(refused.message.contains("01:00.0"), "{}", refused.message);
        assert_eq!(fake.calls_of(selector::CLAIM).len(), 0);
    }

    #[test]
    fn p7_4_a_bar_that_cannot_be_mapped_is_a_warning_with_bar_device_and_code() {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        fake.fail_map(2);
        let (attached, _) = Slot::new(client, Windows::Handed).attach().unwrap();
        let [warning] = &attached.warnings[..] else { panic!("{:?}", attached.warnings) };
        for part in ["BAR 2", "01:00.0", "0xe00002c2"] {
            assert!(warning.contains(part), "{warning}");
        }
    }

    #[test]
    fn p2_4_a_range_is_registered_once_under_its_key_and_removed_by_it() {
        let (fake, mut slot) = attached();
        let mapped = slot.map(&entry(0x10000, 0x10000, 0x4000));
        assert_eq!(mapped.unwrap().0, 0x10000);
        let refused = slot.map(&entry(0x10000, 0x10000, 0x4000)).unwrap_err();
        assert_eq!(refused.code, Some(IoReturn::STILL_OPEN.0));
        assert_eq!(slot.statistics().regions, 1);
        assert_eq!(slot.memory.remove(0x10000).unwrap_err().kind, FailureKind::Busy);
        slot.unmap(0x10000).unwrap();
        assert_eq!(fake.registered(), []);
        assert_eq!(slot.statistics().peak_bytes, 0x4000);
        slot.memory.remove(0x10000).unwrap();
    }

    #[test]
    fn only_guest_memory_can_be_registered_and_only_own_keys_removed() {
        let (fake, mut slot) = attached();
        for bad in [entry(1, 0, 0x1000), entry(1, 0x1f000, 0x2000), entry(1, u64::MAX, 2)] {
            assert!(slot.map(&bad).is_err(), "{bad:?}");
        }
        assert!(slot.unmap(77).is_err());
        assert_eq!(fake.calls_of(selector::UNREGISTER_DMA_REGION).len(), 0);
    }

    #[test]
    fn p1_4_releasing_removes_every_registration() {
        let (fake, mut slot) = attached();
        for page in 0..4 {
            slot.map(&entry(page, 0x10000 + 0x1000 * page, 0x1000)).unwrap();
        }
        assert_eq!(fake.registered().len(), 4);
        slot.release();
        assert_eq!(fake.registered(), []);
        assert_eq!(slot.statistics().regions, 0);
    }

    fn pages(keys: std::ops::Range<u64>) -> Vec<DmaEntry> {
        keys.map(|page| entry(0x1000 * page, 0x10000 + 0x1000 * page, 0x1000)).collect()
    }

    fn keys(fake: &Fake) -> Vec<u64> {
        fake.registered().into_iter().map(|(key, _)| key).collect()
    }

    fn mapped(outcomes: &[Outcome]) -> Vec<bool> {
        outcomes.iter().map(|one| matches!(one, Outcome::Mapped { .. })).collect()
    }

    #[test]
    fn c5_2_a_batch_that_comes_again_is_recognised_and_a_duplicate_is_not() {
        let (fake, mut slot) = attached();
        let first = slot.map_batch(7, &pages(0..4));
        let calls = fake.calls_of(selector::REGISTER_DMA_REGION).len();
        assert_eq!(slot.map_batch(7, &pages(0..4)), first);
        assert_eq!(fake.calls_of(selector::REGISTER_DMA_REGION).len(), calls);
        assert_eq!(slot.statistics().regions, 4);
        // The same keys in another batch, or twice in one, are the guest's mistake.
        assert_eq!(mapped(&slot.map_batch(8, &pages(3..5))), [false, true]);
        let twice = [pages(6..7), pages(6..7)].concat();
        assert_eq!(mapped(&slot.map_batch(9, &twice)), [true, false]);
        assert_eq!(mapped(&slot.map_batch(9, &twice)), [true, false]);
    }

    #[test]
    fn c5_2_what_a_repeated_batch_does_not_ask_for_any_more_is_removed() {
        let (fake, mut slot) = attached();
        slot.map_batch(7, &pages(0..4));
        // The guest rewrote its ring while its doorbell was carried out.
        let mut other = pages(2..5);
        other[0].size = 0x800;
        assert_eq!(mapped(&slot.map_batch(7, &other)), [true; 3]);
        assert_eq!(keys(&fake), [0x2000, 0x3000, 0x4000]);
        assert_eq!(slot.unmap_batch(7, &[0x2000]), [Outcome::Failed(FailureKind::InvalidArgument)]);
        assert_eq!(fake.registered().len(), 0);
    }

    #[test]
    fn c5_2_an_unmap_that_comes_again_has_been_done() {
        let (_, mut slot) = attached();
        slot.map_batch(1, &pages(0..4));
        let failed = Outcome::Failed(FailureKind::InvalidArgument);
        let keys = [0, 0x1000, 0x1000, 0x9000];
        let first = slot.unmap_batch(2, &keys);
        assert_eq!(first, [Outcome::Unmapped, Outcome::Unmapped, failed, failed]);
        assert_eq!(slot.unmap_batch(2, &keys), first);
        assert_eq!(slot.unmap_batch(3, &keys), [failed; 4]);
        assert_eq!(slot.statistics().regions, 2);
    }

    #[test]
    fn c5_1_the_companion_and_the_vmm_remove_only_their_own() {
        let (fake, mut slot) = attached();
        slot.map(&entry(0x9000, 0x10000, 0x1000)).unwrap();
        slot.map_batch(1, &pages(0..1));
        assert!(matches!(slot.unmap_batch(2, &[0x9000])[..], [Outcome::Failed(_)]));
        assert!(slot.unmap(0).is_err());
        slot.release_companion(None);
        assert_eq!(keys(&fake), [0x9000]);
        assert_eq!(slot.remove_memory(0x10000).unwrap_err().kind, FailureKind::Busy);
    }

    #[test]
    fn c5_4_memory_that_goes_takes_the_companions_registrations_along() {
        let (fake, mut slot) = attached();
        let ram = SharedMemory::create("ram", 0x10000).unwrap().into_fd();
        slot.memory.add(0x40000, 0x10000, ram, 0, true).unwrap();
        slot.map_batch(1, &[pages(0..2), vec![entry(0x40000, 0x40000, 0x1000)]].concat());
        slot.remove_memory(0x10000).unwrap();
        assert_eq!(keys(&fake), [0x40000]);
    }

    #[test]
    fn c5_3_a_limit_fails_its_entries_and_is_counted() {
        let (fake, mut slot) = attached();
        slot.map_batch(1, &pages(0..1));
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NO_SPACE);
        assert_eq!(mapped(&slot.map_batch(2, &pages(1..3))), [false, false]);
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_ALIGNED);
        assert_eq!(mapped(&slot.map_batch(3, &pages(1..2))), [false]);
        fake.recover(selector::REGISTER_DMA_REGION);
        assert_eq!(mapped(&slot.map_batch(4, &pages(1..3))), [true, true]);
        let now = slot.statistics();
        assert_eq!((now.failed_bytes, now.failed_segments, now.failed_mappings), (2, 1, 0));
        assert_eq!((now.regions, now.peak_bytes), (3, 0x3000));
    }
}
