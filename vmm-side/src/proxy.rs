//! [`PassthroughDevice`], carried out by a function process.

use std::sync::Arc;
use std::time::Duration;

use ipc::PciAddress;
use ipc::wire::function::{InterruptAction, InterruptIndex, Reply, Request, Statistics};
use ipc::wire::sandbox::SandboxReport;

use crate::connection::{Connection, unexpected};
use crate::container::Container;
use crate::device::{
    self, BarMemory, DeviceError, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup,
    PassthroughDevice, RegionInfo,
};
use crate::slot::{Presence, Slot};
use crate::supervisor::Death;

/// An attached function.
pub struct Proxy {
    pub(crate) slot: Slot,
    pub(crate) connection: Arc<Connection>,
    pub(crate) container: Arc<Container>,
    info: DeviceInfo,
}

impl Proxy {
    pub(crate) fn new(
        slot: Slot,
        connection: Arc<Connection>,
        container: Arc<Container>,
        name: String,
    ) -> Self {
        let ready = slot.ready();
        let info = DeviceInfo {
            name,
            identity: ready.identity,
            bars: ready.bars,
            msix: ready.msix,
            resettable: true,
        };
        Self { slot, connection, container, info }
    }

    /// Where it is on the host.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.info.identity.address
    }

    /// Process id of the function process that serves it now.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.slot.pid()
    }

    /// What confines its function process.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.slot.ready().sandbox.clone()
    }

    /// The connection process of its device.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Vectors that the dext registered.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.slot.ready().vectors
    }

    /// Where it is.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.slot.presence()
    }

    /// Signalled when [`Proxy::presence`] changes.
    #[must_use]
    pub fn news(&self) -> &ipc::Event {
        self.slot.news()
    }

    /// How often the device went away and came back.
    #[must_use]
    pub fn returns(&self) -> u64 {
        self.slot.returns()
    }

    /// Whether a standby waits for its function process's death.
    #[must_use]
    pub fn has_standby(&self) -> bool {
        self.slot.has_standby()
    }

    /// Why it is served no more, once it is: its function process or its connection process died
    /// and is not replaced.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        self.slot.death().or_else(|| self.connection.death())
    }

    /// Readable once [`Proxy::death`] is there.
    #[must_use]
    pub fn died(&self) -> &ipc::Event {
        self.slot.died()
    }

    /// How often its function process was replaced.
    #[must_use]
    pub fn replacements(&self) -> u64 {
        self.slot.generation()
    }

    /// How long the last replacements of its function process took, from noticing the death to
    /// serving again; at most 4096 of them.
    #[must_use]
    pub fn recoveries(&self) -> Vec<Duration> {
        self.slot.recoveries()
    }

    /// Counters of its function process.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn statistics(&self) -> Result<Statistics, DeviceError> {
        match self.slot.ask(&Request::Statistics, &[])? {
            Reply::Statistics(statistics) => Ok(statistics),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether direct DMA works on this platform: gives the function the regions of `container`
    /// for a moment and takes them away again.
    ///
    /// # Errors
    /// [`DeviceError::NotSupported`] when the platform chooses bus addresses (P2.4).
    pub fn try_direct(&self, container: &Container) -> Result<(), DeviceError> {
        container.join(self.address(), &self.connection)?;
        container.leave(self.address(), &self.connection);
        Ok(())
    }

    fn done(&self, request: &Request) -> Result<(), DeviceError> {
        match self.slot.ask(request, &[])? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The width of a trapped access.
    fn width(&self, bar: u8, length: usize) -> Result<u8, DeviceError> {
        match length {
            1 | 2 | 4 | 8 => Ok(u8::try_from(length).unwrap_or_default()),
            other => Err(DeviceError::InvalidArgument(format!(
                "Function {}: BAR {bar}: access of {other} bytes: 1, 2, 4 or 8 allowed",
                self.address()
            ))),
        }
    }
}

impl PassthroughDevice for Proxy {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        let windowed = |bar| self.slot.windows().has(bar);
        device::region_info(&self.info.bars, windowed, index)
    }

    fn interrupt_info(&self, index: u32) -> Result<InterruptInfo, DeviceError> {
        device::interrupt_info(self.vectors(), self.info.msix.as_ref(), index)
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match self.slot.ask(&Request::ConfigRead { offset, length }, &[])? {
            Reply::Bytes(bytes) if bytes.len() == data.len() => {
                data.copy_from_slice(&bytes);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        if data.len() > ipc::wire::function::CONFIG_SPACE {
            let message = format!("Config write of {} bytes: at most 4096", data.len());
            return Err(DeviceError::InvalidArgument(message));
        }
        self.slot.note_config_write(offset, data);
        self.done(&Request::ConfigWrite { offset, data: data.to_vec() })
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let width = self.width(bar, data.len())?;
        match self.slot.ask(&Request::BarRead { bar, offset, width }, &[])? {
            Reply::Value(value) => {
                data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let width = self.width(bar, data.len())?;
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        self.done(&Request::BarWrite { bar, offset, width, value })
    }

    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError> {
        self.slot.windows().memory()
    }

    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        self.slot.windows().map()
    }

    fn windows_generation(&self) -> u64 {
        self.slot.windows().generation()
    }

    fn set_interrupts(
        &self,
        index: InterruptIndex,
        setup: InterruptSetup,
    ) -> Result<(), DeviceError> {
        let action = match setup {
            InterruptSetup::Assign { start, signallers } => {
                return Ok(self.slot.assign(index, start, signallers)?);
            }
            InterruptSetup::Disable => InterruptAction::Disable,
            InterruptSetup::Mask => InterruptAction::Mask,
            InterruptSetup::Unmask => InterruptAction::Unmask,
            InterruptSetup::Trigger { start, count } => InterruptAction::Trigger { start, count },
        };
        match self.slot.act(index, action)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.done(&Request::Reset)
    }
}
