//! The DMA companion: a paravirtual PCI device beside a passed-through function, by which its guest
//! maps memory for it where the platform chooses bus addresses (C1 to C5, P10).
//!
//! Here are its identity, config space and registers. Its doorbell is a request to the function
//! process, which alone reads what the guest wrote.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::PciAddress;
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::function::InterruptIndex;
pub use ipc::wire::function::Layout;

use crate::device::{
    self, BarMemory, DeviceError, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup,
    PassthroughDevice, RegionInfo,
};
use crate::proxy::Proxy;

/// Vendor id (C1.1).
pub const VENDOR: u16 = 0x1b36;
/// Device id (C1.1).
pub const DEVICE: u16 = 0x0015;
/// Class: other system peripheral (C1.1).
pub const CLASS: u32 = 0x08_80_00;
/// Size of BAR 0 in bytes (C1.1).
pub const BAR_SIZE: u64 = 4096;
/// Most entries of a batch, and how many there are unless configured (C1.4).
pub const MAX_ENTRIES: u32 = 4096;

/// Offsets of the registers (C1.2 to C1.7).
pub mod register {
    /// Reads 2.
    pub const VERSION: u64 = 0x00;
    /// Guest address of the device that it maps for: (bus << 8) + devfn.
    pub const MANAGED_BDF: u64 = 0x04;
    /// Entries that a batch may have.
    pub const MAX_ENTRIES: u64 = 0x08;
    /// Result of the last doorbell.
    pub const STATUS: u64 = 0x0c;
    /// Guest address of the command page, low half.
    pub const CMD_GPA_LO: u64 = 0x10;
    /// High half.
    pub const CMD_GPA_HI: u64 = 0x14;
    /// Any value processes one batch.
    pub const DOORBELL: u64 = 0x18;
}

/// Register VERSION.
const VERSION: u32 = 2;
/// An entry, or all of them, failed (C2.2).
const IO_ERROR: u32 = 1;
/// Bits of COMMAND that a guest may set: memory space and bus mastering.
const COMMAND: u16 = 0b110;

/// What a companion is configured to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompanionConfig {
    /// Where its device is in the guest.
    pub guest: PciAddress,
    /// How its entries are laid out.
    pub layout: Layout,
    /// Entries that a batch may have, at most [`MAX_ENTRIES`]; 0 means that many.
    pub max_entries: u32,
}

impl CompanionConfig {
    /// The companion of the device at `guest`, with the layout and size that guests expect.
    #[must_use]
    pub fn new(guest: PciAddress) -> Self {
        Self { guest, layout: Layout::default(), max_entries: 0 }
    }

    /// Entries that a batch may have (C1.4).
    fn entries(&self) -> Result<u32, DeviceError> {
        match self.max_entries {
            0 => Ok(MAX_ENTRIES),
            entries if entries <= MAX_ENTRIES => Ok(entries),
            other => Err(DeviceError::InvalidArgument(format!(
                "A companion with batches of {other} entries: at most {MAX_ENTRIES} are allowed"
            ))),
        }
    }
}

#[derive(Debug, Default)]
struct Registers {
    status: u32,
    page: Option<u64>,
    command: u16,
}

/// A companion.
pub struct Companion {
    config: CompanionConfig,
    entries: u32,
    device: Arc<Proxy>,
    info: DeviceInfo,
    registers: Mutex<Registers>,
    /// One doorbell at a time.
    bell: Mutex<()>,
}

impl Companion {
    /// The companion of `device`: from here on its function process has guest RAM and may have
    /// ranges of it registered.
    pub(crate) fn new(config: CompanionConfig, device: Arc<Proxy>) -> Result<Self, DeviceError> {
        let entries = config.entries()?;
        let address = device.address();
        device.container.share(address, &device.connection, Some(device.slot.reader()))?;
        let set = device.slot.set_companion(Some((config.layout, entries)));
        if set.is_err() {
            let _ = device.container.share(address, &device.connection, None);
        }
        set?;
        let mut bars = [None; 6];
        bars[0] = Some(BarInfo { memory_index: 0, size: BAR_SIZE, kind: 0 });
        let identity = Identity { address, vendor: VENDOR, device: DEVICE, class: CLASS };
        let name = format!("dma-companion-0000:{address}");
        let info = DeviceInfo { name, identity, bars, msix: None, resettable: true };
        let (registers, bell) = (Mutex::default(), Mutex::default());
        Ok(Self { config, entries, device, info, registers, bell })
    }

    /// What it is configured to be.
    #[must_use]
    pub fn config(&self) -> CompanionConfig {
        self.config
    }

    /// The device that it maps for.
    #[must_use]
    pub fn device(&self) -> &Arc<Proxy> {
        &self.device
    }

    /// It goes: what was mapped by it is released, and the function process has no guest RAM.
    pub(crate) fn withdraw(&self) {
        let address = self.device.address();
        let withdrawn = self
            .device
            .slot
            .set_companion(None)
            .and_then(|()| self.device.container.share(address, &self.device.connection, None));
        if let Err(error) = withdrawn {
            tracing::warn!("Function {address}: withdrawing its companion: {error}");
        }
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        let _one = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        let page = self.registers().page;
        let status = self.device.slot.doorbell(page).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}", self.info.name);
            IO_ERROR
        });
        self.registers().status = status;
    }

    /// Releases everything that was mapped by it.
    fn release(&self) -> Result<(), DeviceError> {
        let _one = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        self.device.connection.release_dma(self.device.address())
    }

    fn config_byte(&self, at: u32) -> u8 {
        let word = |value: u32, first: u32| {
            value.to_le_bytes().get((at - first) as usize).copied().unwrap_or_default()
        };
        match at {
            0x00..=0x03 => word(u32::from(VENDOR) | u32::from(DEVICE) << 16, 0),
            0x04..=0x05 => word(self.registers().command.into(), 0x04),
            0x08..=0x0b => word(CLASS << 8, 0x08),
            _ => 0,
        }
    }
}

impl PassthroughDevice for Companion {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        device::region_info(&self.info.bars, |_| false, index)
    }

    fn interrupt_info(&self, index: u32) -> Result<InterruptInfo, DeviceError> {
        // It interrupts nobody.
        device::interrupt_info(0, None, index).map(|info| InterruptInfo { count: 0, ..info })
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        for (number, byte) in (0u32..).zip(data) {
            *byte = self.config_byte(offset.saturating_add(number));
        }
        Ok(())
    }

    fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let mut registers = self.registers();
        let mut command = registers.command.to_le_bytes();
        for (number, byte) in (0u32..).zip(data) {
            match offset.saturating_add(number) {
                0x04 => command[0] = *byte,
                0x05 => command[1] = *byte,
                _ => {}
            }
        }
        registers.command = u16::from_le_bytes(command) & COMMAND;
        Ok(())
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        self.check(bar, offset, data.len())?;
        let value = match offset {
            _ if data.len() != 4 => 0,
            register::VERSION => VERSION,
            register::MANAGED_BDF => {
                let guest = self.config.guest;
                u32::from(guest.bus()) << 8
                    | u32::from(guest.device()) << 3
                    | u32::from(guest.function())
            }
            register::MAX_ENTRIES => self.entries,
            register::STATUS => self.registers().status,
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.check(bar, offset, data.len())?;
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return Ok(()) };
        let value = u64::from(u32::from_le_bytes(bytes));
        let half = |page: Option<u64>, shift: u32| {
            let other = page.unwrap_or_default() & !(u64::from(u32::MAX) << shift);
            Some(other | value << shift)
        };
        let mut registers = self.registers();
        match offset {
            register::CMD_GPA_LO => registers.page = half(registers.page, 0),
            register::CMD_GPA_HI => registers.page = half(registers.page, 32),
            register::DOORBELL => {
                drop(registers);
                self.ring();
            }
            _ => {}
        }
        Ok(())
    }

    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError> {
        Ok(Vec::new())
    }

    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError> {
        Ok(Vec::new())
    }

    fn windows_generation(&self) -> u64 {
        0
    }

    fn set_interrupts(&self, index: InterruptIndex, _: InterruptSetup) -> Result<(), DeviceError> {
        let message = format!("{} has no {index:?} vectors", self.info.name);
        Err(DeviceError::InvalidArgument(message))
    }

    /// As after power-on; what was mapped by it is released.
    fn reset(&self) -> Result<(), DeviceError> {
        *self.registers() = Registers::default();
        self.release()
    }

    /// The guest is gone: as a reset.
    fn quiesce(&self) -> Result<(), DeviceError> {
        self.reset()
    }
}

impl Companion {
    fn check(&self, bar: u8, offset: u64, length: usize) -> Result<(), DeviceError> {
        let end = offset.checked_add(length as u64);
        if bar == 0 && end.is_some_and(|end| end <= BAR_SIZE) {
            return Ok(());
        }
        let name = &self.info.name;
        let message = format!("{name}: BAR {bar}: access of {length} bytes at {offset:#x}");
        Err(DeviceError::InvalidArgument(message))
    }
}
