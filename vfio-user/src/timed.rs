//! A device with a client waiting: what does not fit into the time of one command is not begun.
//!
//! A command may take many calls of the device, a config write of a few registers or a long trapped
//! read, and each may find its process hanging, killed and replaced. QEMU gives up on its server
//! after five seconds, for good. So one deadline covers the command, and once it is too late for
//! another call, the rest is as on a bus where nobody answers: it reads as all ones, and writes go
//! nowhere. An error would say more, but clients do not take one: cloud-hypervisor's reads the
//! data that it asked for whatever the reply says, and would take the next reply for it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipc::Deadline;
use ipc::wire::function::InterruptIndex;

use cordon_vmm::device::{
    BarMemory, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, RegionInfo,
};
use cordon_vmm::{DeviceError, PassthroughDevice};

/// How long one command may take. The client waits five seconds for its answer.
pub(super) const COMMAND: Duration = Duration::from_secs(4);

/// How long one call of a device may take whose process hangs: the deadline after which that is
/// killed. The first call of a command is made in any case, another one only with this much left.
const CALL: Duration = Duration::from_secs(3);

/// See the module. Made for one command.
pub(super) struct Timed<'d> {
    device: &'d dyn PassthroughDevice,
    deadline: Deadline,
    begun: AtomicBool,
    late: AtomicBool,
    wrote: Mutex<Vec<Range<u32>>>,
}

impl<'d> Timed<'d> {
    /// For a command that came just now.
    pub(super) fn new(device: &'d dyn PassthroughDevice) -> Self {
        let (begun, late, wrote) = Default::default();
        Self { device, deadline: Deadline::after(COMMAND), begun, late, wrote }
    }

    /// Whether a call was not made.
    pub(super) fn was_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// What was written to the device's config space.
    pub(super) fn wrote(self) -> Vec<Range<u32>> {
        self.wrote.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device, if there is time for another call.
    fn in_time(&self) -> Result<&'d dyn PassthroughDevice, DeviceError> {
        let first = !self.begun.swap(true, Ordering::Relaxed);
        let left = self.deadline.remaining().unwrap_or_default();
        if first || left >= CALL {
            return Ok(self.device);
        }
        self.late.store(true, Ordering::Relaxed);
        let name = &self.device.info().name;
        Err(DeviceError::NoDevice(format!("{name} took too long over the same command")))
    }
}

impl PassthroughDevice for Timed<'_> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        self.device.region_info(index)
    }

    fn interrupt_info(&self, index: u32) -> Result<InterruptInfo, DeviceError> {
        self.device.interrupt_info(index)
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        self.in_time()?.config_read(offset, data)
    }

    fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let end = offset.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        self.wrote.lock().unwrap_or_else(PoisonError::into_inner).push(offset..end);
        self.in_time()?.config_write(offset, data)
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        self.in_time()?.bar_read(bar, offset, data)
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.in_time()?.bar_write(bar, offset, data)
    }

    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError> {
        self.device.windows()
    }

    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        self.device.map_windows()
    }

    fn windows_generation(&self) -> u64 {
        self.device.windows_generation()
    }

    fn set_interrupts(
        &self,
        index: InterruptIndex,
        setup: InterruptSetup,
    ) -> Result<(), DeviceError> {
        self.in_time()?.set_interrupts(index, setup)
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.in_time()?.reset()
    }

    fn quiesce(&self) -> Result<(), DeviceError> {
        self.in_time()?.quiesce()
    }
}
