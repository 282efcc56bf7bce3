//! One function in the connection process: its claim and its windows; what it registered for DMA is
//! in `dma`, and what its companion asks for in `batch`.

pub(super) mod batch;
mod dma;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use cordon_backend::{
    BackendError, Backing, BarMemory, Group, GroupFunction, Liveness, SurvivingFunction,
};
use cordon_pci::MsixCapability;
use cordon_pci::placement::{self, Granule, Window};
use ipc::wire::common::{BarInfo, Failure, FailureKind};
use ipc::wire::connection::{Attached, BarWindow, Carrier, DmaStatistics};
use ipc::{Deadline, DeviceMemory, PciAddress};

use self::batch::Batches;
use self::dma::Registration;
use crate::memory::MemoryTable;
use crate::options::Windows;
use crate::start::RoleError;
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
    /// What the VMM side calls it ([`ipc::numbered`]).
    number: u8,
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
        let number = function.address().function();
        Self {
            function,
            number,
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

    /// With another number than the one that it has in its device.
    #[must_use]
    pub(super) fn with_number(self, number: u8) -> Self {
        Self { number, ..self }
    }

    /// What the VMM side calls it ([`ipc::numbered`]).
    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// The error for its loss, which is the group's unless the host wants this one back.
    pub(super) fn lost(&self, group: &dyn Group) -> RoleError {
        match self.function.is_lost_alone() {
            true => RoleError::Requested(self.function.lost("waiting")),
            false => group.lost("waiting").into(),
        }
    }

    /// Whether nobody misses it but those who may claim it: it can be closed by itself, and nobody did.
    pub(super) fn is_unused_alone(&self) -> bool {
        !self.attached && self.function.is_lost_alone()
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

    /// What the process that serves the function is handed.
    pub(super) fn handed(&self) -> Result<Vec<BorrowedFd<'_>>, Failure> {
        if self.attached {
            Ok(self.function.handed())
        } else {
            Err(start::invalid(format!("Function {} is not attached", self.address())))
        }
    }

    /// Whether it is claimed.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// What a successor needs of it beside what the group leaves.
    pub(super) fn survives(&self) -> SurvivingFunction<'_> {
        self.function.survives()
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
        let identity = self.function.identity();
        crate::reset::reset(self.function.as_mut(), &identity).map_err(|error| failure(&error))
    }

    /// Removes every registration and gives up the claim (P1.4), with which goes what could not be
    /// removed by `until`. The function, where it can be claimed again.
    pub(super) fn release(mut self, until: Deadline) -> Option<Self> {
        self.release_all(until);
        let (number, windows, identity) = (self.number, self.windows, self.function.identity());
        let again = self.function.release().and_then(|again| match again {
            // Who has it next finds nothing of who had it. One that cannot be reset is closed.
            Some(mut function) => {
                crate::reset::reset(function.as_mut(), &identity).map(|()| Some(function))
            }
            None => Ok(None),
        });
        let again = again.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        again.map(|function| Self::new(function, windows).with_number(number))
    }
}

#[cfg(test)]
mod tests;
