//! A device with a client waiting: one deadline for all calls that a command consists of.
//!
//! A command may take many calls of the device, a config write of a few registers or a long trapped
//! read, and each may find its process hanging, killed and replaced. QEMU gives up on its server
//! after five seconds, for good. So the deadline covers the command, and what is not done by then is
//! as on a bus where nobody answers: it reads as all ones, and writes go nowhere. An error would say
//! more, but clients do not take one: cloud-hypervisor's reads the data that it asked for whatever
//! the reply says, and would take the next reply for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipc::Deadline;
use ipc::wire::function::{Access, InterruptIndex, Space};
use parking_lot::Mutex;

use cordon_vmm::PassthroughDevice;
use cordon_vmm::device::{
    BarMemory, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, RegionInfo,
};
use cordon_vmm::error::{DeviceError, ErrorKind};

/// How long one command may take, of the five seconds that its client waits for the answer.
const COMMAND: Duration = Duration::from_secs(4);

/// See the module. Made for one command.
pub(super) struct Timed<'d> {
    device: &'d dyn PassthroughDevice,
    deadline: Deadline,
    late: AtomicBool,
    wrote: Mutex<Vec<Range<u32>>>,
}

impl<'d> Timed<'d> {
    /// For a command that came just now.
    pub(super) fn new(device: &'d dyn PassthroughDevice) -> Self {
        let (late, wrote) = (AtomicBool::new(false), Mutex::default());
        Self { device, deadline: Deadline::after(COMMAND), late, wrote }
    }

    /// Whether an access was not made in time.
    pub(super) fn was_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// What was written to the device's config space.
    pub(super) fn wrote(self) -> Vec<Range<u32>> {
        self.wrote.into_inner()
    }

    /// What `call` answers, if there is time for it.
    fn in_time<T>(
        &self,
        call: impl FnOnce(&'d dyn PassthroughDevice) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        if self.deadline.passed() {
            let message = format!("{}: no time is left for it", self.device.info().name);
            return Err(DeviceError::new(ErrorKind::TimedOut, message));
        }
        call(self.device)
    }

    /// The same for an access, whose lateness is the bus's: nobody answers.
    fn on_bus<T>(
        &self,
        call: impl FnOnce(&'d dyn PassthroughDevice) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        self.in_time(call).map_err(|error| {
            if error.kind() != ErrorKind::TimedOut {
                return error;
            }
            self.late.store(true, Ordering::Relaxed);
            DeviceError::new(ErrorKind::NoDevice, error.to_string())
        })
    }
}

impl PassthroughDevice for Timed<'_> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        self.device.region_info(index)
    }

    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo {
        self.device.interrupt_info(index)
    }

    fn is_present(&self) -> bool {
        self.device.is_present()
    }

    fn returns(&self) -> u64 {
        self.device.returns()
    }

    fn deadline(&self) -> Deadline {
        self.deadline
    }

    fn access(&self, access: Access, deadline: Deadline) -> Result<u64, DeviceError> {
        if access.write && access.space == Space::Config {
            let first = u32::try_from(access.offset).unwrap_or(u32::MAX);
            self.wrote.lock().push(first..first.saturating_add(access.width.into()));
        }
        self.on_bus(|device| device.access(access, deadline.min(self.deadline)))
    }

    fn read_config(
        &self,
        offset: u32,
        data: &mut [u8],
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        self.on_bus(|device| device.read_config(offset, data, deadline.min(self.deadline)))
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
        self.in_time(|device| device.set_interrupts(index, setup))
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.reset_before(self.deadline)
    }

    fn reset_before(&self, deadline: Deadline) -> Result<(), DeviceError> {
        self.in_time(|device| device.reset_before(deadline.min(self.deadline)))
    }

    fn quiesce(&self) -> Result<(), DeviceError> {
        self.in_time(|device| device.quiesce())
    }
}
