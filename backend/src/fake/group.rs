//! The connection process's side of a fake function: claim, memory and DMA.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use ipc::{PciAddress, SharedMemory};

use super::Operation;
use super::description::ASSIGNED_BASE;
use super::handle::Handle;
use super::state::{Claim, Region};
use crate::error::{BackendError, ErrorKind};
use crate::function::Liveness;
use crate::group::{
    Backing, BarMemory, BusAddresses, BusRange, DmaRange, DmaSpace, Group, GroupFunction, Survives,
    SurvivingFunction,
};

impl GroupFunction for Handle {
    fn claim(&mut self) -> Result<(), BackendError> {
        /// Memory space and bus mastering.
        const DECODES: u8 = 0b110;
        let (operation, own) = (Operation::Claim, Claim::By(self.holder));
        self.call(operation, |function| match function.claim {
            Some(claim) if claim == own => Ok(()),
            Some(_) => Err(self.error(ErrorKind::Busy, operation, "another process has it")),
            None => {
                function.claim = Some(own);
                function.config[4] |= DECODES;
                Ok(())
            }
        })
    }

    fn release(self: Box<Self>) -> Result<Option<Box<dyn GroupFunction>>, BackendError> {
        Ok(None)
    }

    fn handed(&self) -> Vec<BorrowedFd<'_>> {
        if self.handed { vec![self.token.as_fd()] } else { Vec::new() }
    }

    fn survives(&self) -> SurvivingFunction<'_> {
        let (descriptors, request) = match Self::survives(self) {
            true => (vec![self.token.as_fd()], Some(self.request.as_fd())),
            false => (Vec::new(), None),
        };
        SurvivingFunction { descriptors, request }
    }

    fn window_granule(&self) -> u64 {
        self.window_granule
    }

    fn bar_memory(&mut self, bar: u8) -> Result<BarMemory, BackendError> {
        let operation = Operation::BarMemory;
        self.claimed(operation, |function| {
            let bar = function.bars.get(usize::from(bar)).and_then(Option::as_ref);
            let none = || self.error(ErrorKind::Refused, operation, "there is no such BAR");
            let bar = bar.ok_or_else(none)?;
            let memory = Arc::clone(&bar.memory);
            Ok(BarMemory { size: memory.size(), backing: Backing::Shared { memory, base: 0 } })
        })
    }

    fn dma_space(&self) -> DmaSpace {
        self.dma
    }

    fn register_dma(&mut self, range: &DmaRange<'_>) -> Result<BusRange, BackendError> {
        self.register(range, false)
    }

    fn adopt_dma(&mut self, range: &DmaRange<'_>) -> Result<BusRange, BackendError> {
        self.register(range, true)
    }

    fn unregister_dma(&mut self, key: u64, at: BusRange) -> Result<(), BackendError> {
        let operation = Operation::UnregisterDma;
        self.claimed(operation, |function| {
            match function.dma.get(&key).filter(|region| region.at == at) {
                Some(_) => {
                    function.dma.remove(&key);
                    Ok(())
                }
                None => Err(self.error(ErrorKind::Refused, operation, "it is not registered")),
            }
        })
    }
}

impl Handle {
    fn register(&self, range: &DmaRange<'_>, adopting: bool) -> Result<BusRange, BackendError> {
        let operation = Operation::RegisterDma;
        let refuse = |kind, text: &str| Err(self.error(kind, operation, text));
        self.claimed(operation, |function| {
            let address = match function.made.dma.addresses {
                BusAddresses::Chosen => range.key,
                BusAddresses::Assigned => ASSIGNED_BASE.wrapping_add(range.key),
            };
            let at = BusRange { address, length: range.size };
            if function.made.dma.needs_mapping && range.mapped_at.is_none() {
                return refuse(ErrorKind::Refused, "it is not mapped in the process");
            }
            if address.checked_add(range.size).is_none() || range.size == 0 {
                return refuse(ErrorKind::Refused, "it is empty or wraps");
            }
            if let Some(region) = function.dma.get_mut(&range.key) {
                let is_same = region.at == at && region.offset == range.behind.offset;
                if adopting && std::mem::take(&mut region.adopted) && is_same {
                    return Ok(at);
                }
                return refuse(ErrorKind::Busy, "the key is in use");
            }
            let bytes: u64 = function.dma.values().map(|region| region.at.length).sum();
            let has_room = (function.dma.len() as u64) < function.made.dma.max_ranges
                && bytes.saturating_add(range.size) <= function.made.max_dma_bytes;
            if !has_room {
                return refuse(ErrorKind::NoSpace, "there is no room for it");
            }
            let memory = range.behind.memory.try_clone();
            let memory = memory
                .map_err(|error| self.error(ErrorKind::NoSpace, operation, &error.to_string()))?;
            let (holder, behind) = (self.holder, range.behind);
            let region = Region {
                holder,
                at,
                memory,
                offset: behind.offset,
                writable: behind.writable,
                adopted: false,
            };
            function.dma.insert(range.key, region);
            Ok(at)
        })
    }
}

/// The functions of one bus:device.
pub(super) struct FakeGroup {
    pub(super) address: PciAddress,
    pub(super) survives: bool,
    pub(super) tokens: Vec<Arc<SharedMemory>>,
}

impl Group for FakeGroup {
    fn survives(&self) -> Survives<'_> {
        if !self.survives {
            return Survives::Nothing;
        }
        Survives::Descriptors(self.tokens.iter().map(|token| token.as_fd()).collect())
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        None
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        let subject = format!("Device of {}", self.address);
        BackendError::new(ErrorKind::Lost, subject, operation, "the fake backend is gone")
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}
