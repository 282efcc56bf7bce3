//! One function in the connection process: its opener connection and its DMA registrations.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::connection::{Attached, BarWindow, DmaEntry, DmaOutcome, DmaStatistics};
use ipc::{PciAddress, SharedMemory};

use super::memory::MemoryTable;
use super::windows::guest_windows;
use crate::dext::{Client, DextError};
use crate::function::bars::is_mappable;
use crate::{capabilities, failure, start};

/// What attaching brings: what may be said of the function, and the memory of each window, which is
/// not duplicated for it: a confined process cannot.
pub(super) type Exported = (Attached, Vec<Arc<SharedMemory>>);

struct Registration {
    /// Guest address of the region it lies in.
    base: u64,
    size: u64,
}

/// One function.
pub struct Slot {
    client: Client,
    /// Guest memory that it may register.
    pub(super) memory: MemoryTable,
    attached: bool,
    registrations: BTreeMap<u64, Registration>,
    statistics: DmaStatistics,
}

impl Slot {
    /// A function that is open and not claimed.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let (registrations, statistics) = (BTreeMap::new(), DmaStatistics::default());
        let memory = MemoryTable::default();
        Self { client, memory, attached: false, registrations, statistics }
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
            let mapped = match client.map_bar(bar) {
                Ok(mapped) => mapped,
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    warnings.push(format!("BAR {bar} is served by traps only: {error}"));
                    continue;
                }
            };
            let memory = Arc::new(mapped.memory);
            for (offset, length) in guest_windows(bar, &info, memory.size(), msix.as_ref()) {
                windows.push(BarWindow { bar, offset, length, memory_offset: offset });
                handles.push(Arc::clone(&memory));
            }
        }
        let attached = Attached { identity: client.identity(), bars, windows, warnings };
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

    /// Registers a range of guest memory.
    pub(super) fn map(&mut self, entry: &DmaEntry) -> DmaOutcome {
        match self.try_map(entry) {
            Ok(outcome) => outcome,
            Err(failure) => DmaOutcome::Failed(failure),
        }
    }

    fn try_map(&mut self, entry: &DmaEntry) -> Result<DmaOutcome, Failure> {
        if !self.attached {
            return Err(start::invalid(format!("Function {} is not attached", self.address())));
        }
        let found = self.memory.find(entry.address, entry.size)?;
        let base = found.base;
        let registered =
            self.client.register_dma(entry.key, found.address, entry.size, found.behind);
        let (bus_address, bus_length) = registered.map_err(|error| failure(&error))?;
        self.memory.retain(base);
        self.registrations.insert(entry.key, Registration { base, size: entry.size });
        let now = &mut self.statistics;
        now.regions += 1;
        now.bytes += entry.size;
        now.peak_regions = now.peak_regions.max(now.regions);
        now.peak_bytes = now.peak_bytes.max(now.bytes);
        Ok(DmaOutcome::Mapped { bus_address, bus_length })
    }

    /// Removes what this function registered, and nothing else.
    pub(super) fn unmap(&mut self, key: u64) -> DmaOutcome {
        let Some(registration) = self.registrations.get(&key) else {
            let message = format!("Function {} has no registration {key:#x}", self.address());
            return DmaOutcome::Failed(start::invalid(message));
        };
        if let Err(error) = self.client.unregister_dma(key) {
            return DmaOutcome::Failed(failure(&error));
        }
        self.memory.release(registration.base);
        self.statistics.regions -= 1;
        self.statistics.bytes -= registration.size;
        self.registrations.remove(&key);
        DmaOutcome::Unmapped
    }

    /// Removes every registration: the connection is about to close (P1.4).
    pub(super) fn release(&mut self) {
        let keys: Vec<u64> = self.registrations.keys().copied().collect();
        for key in keys {
            if let DmaOutcome::Failed(failure) = self.unmap(key) {
                tracing::warn!("{}; closing the connection will release it", failure.message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dext::fake::Fake;
    use ipc::wire::dext::{IoReturn, selector};

    fn attached() -> (Fake, Slot) {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        let mut slot = Slot::new(client);
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
        let mut slot = Slot::new(client);
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
        let refused = Slot::new(client).attach().unwrap_err();
        assert_eq!(refused.kind, FailureKind::Busy);
        assert!(refused.message.contains("01:00.0"), "{}", refused.message);
        assert_eq!(fake.calls_of(selector::CLAIM).len(), 0);
    }

    #[test]
    fn p7_4_a_bar_that_cannot_be_mapped_is_a_warning_with_bar_device_and_code() {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        fake.fail_map(2, IoReturn::NO_MEMORY);
        let (attached, _) = Slot::new(client).attach().unwrap();
        let [warning] = &attached.warnings[..] else { panic!("{:?}", attached.warnings) };
        for part in ["BAR 2", "01:00.0", "0xe00002bd"] {
            assert!(warning.contains(part), "{warning}");
        }
    }

    #[test]
    fn p2_4_a_range_is_registered_once_under_its_key_and_removed_by_it() {
        let (fake, mut slot) = attached();
        let mapped = slot.map(&entry(0x10000, 0x10000, 0x4000));
        assert!(matches!(mapped, DmaOutcome::Mapped { bus_address: 0x10000, .. }));
        let again = slot.map(&entry(0x10000, 0x10000, 0x4000));
        let DmaOutcome::Failed(refused) = again else { panic!("{again:?}") };
        assert_eq!(refused.code, Some(IoReturn::STILL_OPEN.0));
        assert_eq!(slot.statistics().regions, 1);
        assert_eq!(slot.memory.remove(0x10000).unwrap_err().kind, FailureKind::Busy);
        assert_eq!(slot.unmap(0x10000), DmaOutcome::Unmapped);
        assert_eq!(fake.registered(), []);
        assert_eq!(slot.statistics().peak_bytes, 0x4000);
        slot.memory.remove(0x10000).unwrap();
    }

    #[test]
    fn only_guest_memory_can_be_registered_and_only_own_keys_removed() {
        let (fake, mut slot) = attached();
        for bad in [entry(1, 0, 0x1000), entry(1, 0x1f000, 0x2000), entry(1, u64::MAX, 2)] {
            assert!(matches!(slot.map(&bad), DmaOutcome::Failed(_)), "{bad:?}");
        }
        assert!(matches!(slot.unmap(77), DmaOutcome::Failed(_)));
        assert_eq!(fake.calls_of(selector::UNREGISTER_DMA_REGION).len(), 0);
    }

    #[test]
    fn p1_4_releasing_removes_every_registration() {
        let (fake, mut slot) = attached();
        for page in 0..4 {
            slot.map(&entry(page, 0x10000 + 0x1000 * page, 0x1000));
        }
        assert_eq!(fake.registered().len(), 4);
        slot.release();
        assert_eq!(fake.registered(), []);
        assert_eq!(slot.statistics().regions, 0);
    }
}
