//! [`PassthroughDevice`], carried out by a function process.

use std::sync::Arc;

use ipc::Deadline;
use ipc::wire::function::{
    Access, CONFIG_SPACE, InterruptAction, InterruptIndex, ReadConfig, Space,
};

use super::{Function, Presence};
use crate::device::{
    self, BarMemory, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, PassthroughDevice,
    RegionInfo,
};
use crate::error::DeviceError;

impl Function {
    /// Refuses what is no access before anybody is asked.
    fn check(&self, access: &Access) -> Result<(), DeviceError> {
        let Access { space, width, .. } = *access;
        let fits = match space {
            Space::Config => (1..=8).contains(&width),
            Space::Bar(_) => matches!(width, 1 | 2 | 4 | 8),
        };
        if fits {
            return Ok(());
        }
        let (what, allowed) = match space {
            Space::Config => ("config space".to_owned(), "1 to 8"),
            Space::Bar(bar) => (format!("BAR {bar}"), "1, 2, 4 or 8"),
        };
        let address = self.address();
        let message =
            format!("Function {address}: {what}: access of {width} bytes: {allowed} allowed");
        Err(DeviceError::invalid(message))
    }

    /// Whether an access is to memory that the device does not decode now: on a bus nobody answers. What is no
    /// access, and a device that is away, are told as ever.
    fn is_unanswered(&self, access: &Access) -> bool {
        if !self.shared.guard.hides_memory() {
            return false;
        }
        let Space::Bar(bar) = access.space else { return false };
        let Some(bar) = self.info.bars.get(usize::from(bar)).copied().flatten() else {
            return false;
        };
        let width = u64::from(access.width);
        let end = access.offset.checked_add(width);
        let fits = access.offset.is_multiple_of(width) && end.is_some_and(|end| end <= bar.size);
        fits && !device::pci_bar(bar).kind.is_io() && self.is_present()
    }
}

impl PassthroughDevice for Function {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        let windowed = |bar| self.shared.windows.has(bar);
        device::region_info(&self.info.bars, windowed, index)
    }

    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo {
        device::interrupt_info(self.vectors(), self.info.msix.as_ref(), index)
    }

    /// Also while its process is replaced: whoever asks waits for the next one.
    fn is_present(&self) -> bool {
        matches!(self.presence(), Presence::Present) && self.death().is_none()
    }

    fn returns(&self) -> u64 {
        Function::returns(self)
    }

    fn deadline(&self) -> Deadline {
        self.shared.usual()
    }

    fn access(&self, access: Access, deadline: Deadline) -> Result<u64, DeviceError> {
        self.check(&access)?;
        if access.write && access.space == Space::Config {
            self.shared.write_config(&access, deadline)?;
            return Ok(0);
        }
        if self.is_unanswered(&access) {
            let bits = 64 - 8 * u32::from(access.width);
            return Ok(if access.write { 0 } else { u64::MAX >> bits });
        }
        Ok(self.shared.access(&access, deadline)?)
    }

    fn read_config(
        &self,
        offset: u32,
        data: &mut [u8],
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if data.is_empty() || data.len() > CONFIG_SPACE {
            let message = format!("Config read of {length} bytes: 1 to {CONFIG_SPACE} allowed");
            return Err(DeviceError::invalid(message));
        }
        let bytes = self.shared.ask(&ReadConfig { offset, length }, deadline)?;
        if bytes.len() != data.len() {
            let came = bytes.len();
            let message = format!(
                "Function {}: {came} bytes of config space came instead of {length}",
                self.address()
            );
            return Err(DeviceError::io(message));
        }
        data.copy_from_slice(&bytes);
        Ok(())
    }

    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError> {
        self.shared.windows.memory()
    }

    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        self.shared.windows.map()
    }

    fn windows_generation(&self) -> u64 {
        self.shared.windows.generation()
    }

    fn set_interrupts(
        &self,
        index: InterruptIndex,
        setup: InterruptSetup,
    ) -> Result<(), DeviceError> {
        let action = match setup {
            InterruptSetup::Assign { start, signallers } => {
                return Ok(self.shared.assign(index, start, signallers)?);
            }
            InterruptSetup::Disable => InterruptAction::Disable,
            InterruptSetup::Mask => InterruptAction::Mask,
            InterruptSetup::Unmask => InterruptAction::Unmask,
            InterruptSetup::Trigger { start, count } => InterruptAction::Trigger { start, count },
        };
        Ok(self.shared.act(index, action)?)
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.reset_before(self.shared.usual())
    }

    fn reset_before(&self, deadline: Deadline) -> Result<(), DeviceError> {
        self.shared.reset(deadline)
    }
}
