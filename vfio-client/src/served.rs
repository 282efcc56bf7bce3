//! The function side: a device's descriptor that was handed on.

use std::os::fd::{AsFd as _, BorrowedFd};

use cordon_backend::{
    BackendError, Delivery, KernelInterrupts, Liveness, OpenFunction, Reset, ResetKind,
    ServedFunction,
};
use ipc::Event;
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::function::InterruptIndex;

use crate::backend::{kinds, reset};
use crate::device::Device;
use crate::error::VfioError;

/// MSI and MSI-X.
const MESSAGES: [u32; 2] = [1, 2];

/// A function as its process serves it.
pub(crate) struct Served {
    device: Device,
    /// The kind of interrupts that the kernel was told of by this process, and how many of them.
    connected: Option<(u32, usize)>,
}

impl Served {
    pub(crate) fn new(device: Device) -> Self {
        Self { device, connected: None }
    }

    /// Switches every kind off.
    fn disconnect(&mut self) -> Result<(), VfioError> {
        self.connected = None;
        [0, 1, 2].into_iter().try_for_each(|index| self.switch_off(index))
    }

    /// Switches a kind off, if it is on: the kernel refuses to switch off what is not on.
    fn switch_off(&self, index: u32) -> Result<(), VfioError> {
        if self.device.interrupts(index) == 0 {
            return Ok(());
        }
        match self.device.signal(index, &[]) {
            Err(error) if is_invalid(&error) => Ok(()),
            other => other,
        }
    }
}

fn is_invalid(error: &VfioError) -> bool {
    matches!(error, VfioError::Refused { source, .. } if source.raw_os_error() == Some(libc::EINVAL))
}

fn number(index: InterruptIndex) -> u32 {
    match index {
        InterruptIndex::Intx => 0,
        InterruptIndex::Msi => 1,
        InterruptIndex::Msix => 2,
        InterruptIndex::Err => 3,
        InterruptIndex::Req => 4,
    }
}

impl OpenFunction for Served {
    fn identity(&self) -> Identity {
        self.device.identity()
    }

    fn bars(&mut self) -> Result<[Option<BarInfo>; 6], BackendError> {
        Ok(self.device.bars())
    }

    fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, BackendError> {
        self.device.config_read(offset, width).map_err(self.device.failed("ConfigRead"))
    }

    /// By who handed it on.
    fn is_claimed(&mut self) -> Result<bool, BackendError> {
        Ok(true)
    }

    /// The process that holds the group sees that the kernel wants the device back; this one is then ended.
    fn liveness(&self) -> Option<Liveness<'_>> {
        None
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        self.device.failed(operation)(VfioError::Requested)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.device.as_fd()]
    }
}

impl Reset for Served {
    fn reset_kinds(&self) -> &[ResetKind] {
        kinds(&self.device)
    }

    fn reset(&mut self, kind: ResetKind) -> Result<(), BackendError> {
        reset(&self.device, kind)
    }
}

impl ServedFunction for Served {
    fn config_write(&mut self, offset: u32, width: u8, value: u32) -> Result<(), BackendError> {
        self.device.config_write(offset, width, value).map_err(self.device.failed("ConfigWrite"))
    }

    fn open_bar(&mut self, bar: u8) -> Result<u64, BackendError> {
        let region = self.device.region(usize::from(bar)).filter(|one| bar < 6 && one.accessible);
        let none =
            || self.device.failed("Open")(VfioError::Invalid(format!("there is no BAR {bar}")));
        region.map(|region| region.size).ok_or_else(none)
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> Result<u64, BackendError> {
        self.device.read(bar.into(), offset, width).map_err(self.device.failed("BAR read"))
    }

    fn bar_write(
        &mut self,
        bar: u8,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), BackendError> {
        self.device.write(bar.into(), offset, width, value).map_err(self.device.failed("BAR write"))
    }

    /// Nothing is changed: what a process before this one told the kernel goes on until this one says
    /// otherwise.
    fn set_up_interrupts(&mut self) -> Result<u16, BackendError> {
        let most = MESSAGES.map(|index| self.device.interrupts(index)).into_iter().max();
        Ok(u16::try_from(most.unwrap_or(0)).unwrap_or(u16::MAX))
    }

    fn notification(&self) -> Option<&Event> {
        None
    }

    fn delivery(&mut self) -> Delivery<'_> {
        Delivery::Kernel(self)
    }
}

impl KernelInterrupts for Served {
    /// More vectors than the kernel was told of at first, or another kind, are a new start for it. Fewer are
    /// the same with nobody for the rest, since the kernel changes only those that it is told of.
    fn connect(
        &mut self,
        index: InterruptIndex,
        signallers: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), BackendError> {
        let failed = self.device.failed("SetInterrupts");
        let index = number(index);
        if signallers.is_empty() {
            self.connected = None;
            return self.switch_off(index).map_err(failed);
        }
        let mut whom = signallers.to_vec();
        if let Some((of, count)) = self.connected
            && of == index
        {
            whom.resize(whom.len().max(count), None);
        }
        let done = match self.device.signal(index, &whom) {
            // As a process before this one left it, or as it was with fewer vectors.
            Err(error) if is_invalid(&error) => {
                self.disconnect().and_then(|()| self.device.signal(index, &whom))
            }
            other => other,
        };
        done.map_err(failed)?;
        self.connected = Some((index, whom.len()));
        Ok(())
    }

    fn mask_intx(&mut self, masked: bool) -> Result<(), BackendError> {
        self.device.mask_intx(masked).map_err(self.device.failed("SetInterrupts"))
    }
}
