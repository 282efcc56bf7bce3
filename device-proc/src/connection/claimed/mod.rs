//! One function in the connection process: its claim and its windows; what it registered for DMA is
//! in `dma`, and what its companion asks for in `batch`.

pub(super) mod batch;
mod dma;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use cordon_backend::{BackendError, Backing, BarMemory, GroupFunction, Liveness, ResetKind};
use cordon_pci::MsixCapability;
use cordon_pci::placement::{self, Granule, Window};
use ipc::wire::common::{BarInfo, Failure, FailureKind};
use ipc::wire::connection::{Attached, BarWindow, Carrier, DmaStatistics};
use ipc::{Deadline, DeviceMemory, PciAddress};

use self::batch::Batches;
use self::dma::Registration;
use crate::memory::MemoryTable;
use crate::options::Windows;
use crate::{failure, pci, start};

/// What attaching brings: what may be said of the function, and the memory of each window, which is
/// not duplicated for it: a confined process cannot.
pub(super) type Exported = (Attached, Vec<Arc<DeviceMemory>>);

/// The windows of a function as they are put together.
#[derive(Default)]
struct Export {
    windows: Vec<BarWindow>,
    handles: Vec<Arc<DeviceMemory>>,
    warnings: Vec<String>,
}

/// One function: open, and claimed once it is attached.
pub struct ClaimedFunction {
    function: Box<dyn GroupFunction>,
    /// Guest memory that it may register.
    pub(super) memory: MemoryTable,
    attached: bool,
    registrations: BTreeMap<u64, Registration>,
    batches: Batches,
    /// The limit that was reached last, until something was registered again.
    full: Option<&'static str>,
    statistics: DmaStatistics,
    /// BARs that were handed on as parts of this process's memory, and stay for as long.
    mapped: Vec<BarMemory>,
    /// What becomes of the BARs.
    windows: Windows,
}

impl ClaimedFunction {
    /// A function that is open and not claimed.
    #[must_use]
    pub fn new(function: Box<dyn GroupFunction>, windows: Windows) -> Self {
        let (registrations, statistics) = (BTreeMap::new(), DmaStatistics::default());
        let memory = MemoryTable::new(function.dma_space().needs_mapping);
        Self {
            function,
            memory,
            attached: false,
            registrations,
            batches: Batches::default(),
            full: None,
            statistics,
            mapped: Vec::new(),
            windows,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.function.address()
    }

    /// Its number in its device.
    pub(super) fn number(&self) -> u8 {
        self.address().function()
    }

    /// Bytes of its BARs, which are mapped once it is claimed.
    ///
    /// # Errors
    /// [`BackendError`] when the backend is gone.
    pub(crate) fn bar_bytes(&mut self) -> Result<u64, BackendError> {
        let sizes = self.function.bars()?.into_iter().flatten().map(|bar| bar.size);
        Ok(sizes.fold(0, u64::saturating_add))
    }

    /// Descriptors that it needs.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.function.descriptors()
    }

    /// How the loss of the backend is seen.
    #[must_use]
    pub fn liveness(&self) -> Option<Liveness<'_>> {
        self.function.liveness()
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
        if self.function.is_claimed().map_err(|error| failure(&error))? {
            // A dext would only add a reference, and whoever opened it could take it away.
            let message = format!("Function {address} is claimed by another process");
            return Err(Failure { kind: FailureKind::Busy, code: None, message });
        }
        self.function.claim().map_err(|error| failure(&error))?;
        let exported = self.export().map_err(|error| failure(&error))?;
        self.attached = true;
        Ok(exported)
    }

    fn export(&mut self) -> Result<Exported, BackendError> {
        let function = self.function.as_mut();
        let msix = pci::msix(function)?;
        let bars = function.bars()?;
        let mut export = Export::default();
        for (bar, info) in (0u8..).zip(bars) {
            let Some(info) = info.filter(pci::is_mappable) else {
                continue;
            };
            // Whatever becomes of it: function processes map what the one that claimed mapped first.
            match self.function.bar_memory(bar) {
                Ok(memory) => self.export_bar(bar, &info, msix.as_ref(), memory, &mut export),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    export.warnings.push(format!("BAR {bar} is served by traps only: {error}"));
                }
            }
        }
        let Export { windows, handles, warnings } = export;
        let by_port = handles.iter().any(|memory| memory.entry().is_some());
        let carrier = match self.windows {
            Windows::Described => Carrier::Own,
            _ if by_port => Carrier::Port,
            Windows::Handed | Windows::Trapped => Carrier::Descriptors,
        };
        let identity = self.function.identity();
        Ok((Attached { identity, bars, windows, carrier, warnings }, handles))
    }

    /// Adds what a guest may have of a BAR.
    fn export_bar(
        &mut self,
        bar: u8,
        info: &BarInfo,
        msix: Option<&MsixCapability>,
        memory: BarMemory,
        export: &mut Export,
    ) {
        let bytes = self.function.window_granule();
        let Some(granule) = Granule::new(bytes) else {
            let why = format!("windows of {bytes} bytes cannot be");
            return export.warnings.push(format!("BAR {bar} is served by traps only: {why}"));
        };
        let parts = placement::place(bar, pci::bar(info), memory.size, granule, msix);
        match self.windows {
            Windows::Trapped => {}
            Windows::Described => {
                let describe = |&Window { offset, length }: &Window| BarWindow {
                    bar,
                    offset,
                    length,
                    memory_offset: offset,
                };
                export.windows.extend(parts.iter().map(describe));
                return;
            }
            Windows::Handed => {
                for &Window { offset, length } in parts.iter() {
                    match memory.part(offset, length) {
                        Ok((memory, memory_offset)) => {
                            export.windows.push(BarWindow { bar, offset, length, memory_offset });
                            export.handles.push(memory);
                        }
                        Err(error) => export.warnings.push(format!(
                            "BAR {bar} from {offset:#x} is served by traps only: it cannot be \
                             handed on: {error}"
                        )),
                    }
                }
            }
        }
        if matches!(memory.backing, Backing::Mapped(_)) {
            self.mapped.push(memory);
        }
    }

    /// Whether the function is still there, if it is attached: nobody else may notice, since nothing
    /// hangs up on a Mac, and a guest can use windows without a call for as long as it likes.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        if !self.attached {
            return Ok(());
        }
        match self.function.config_read(0, 2) {
            Err(error) if error.is_fatal() => Err(failure(&error)),
            // What it answers is its own affair, and so is a refusal.
            _ => Ok(()),
        }
    }

    /// Resets the function: it comes back after the connection process before this one died, and
    /// whatever it was told then is to be forgotten before it reaches memory again (P8).
    pub(super) fn reset(&mut self) -> Result<(), Failure> {
        if !self.attached {
            return Err(start::invalid(format!("Function {} is not attached", self.address())));
        }
        self.function.reset(ResetKind::Function).map_err(|error| failure(&error))
    }

    /// Removes every registration and gives up the claim (P1.4), with which goes what could not be
    /// removed by `until`.
    pub(super) fn release(mut self, until: Deadline) {
        self.release_all(until);
        self.function.release();
    }
}

#[cfg(test)]
mod tests;
