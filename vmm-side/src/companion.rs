//! The DMA companion: a paravirtual PCI device beside a passed-through function, by which its guest
//! maps memory for it where the platform chooses bus addresses (C1 to C5, P10).
//!
//! Here are its identity, config space and registers; config space is `cordon_pci`'s model of a device
//! that exists only here. Its doorbell is a request to the function process, which alone reads what the
//! guest wrote.

use std::sync::Arc;

use cordon_pci::header::Header;
use cordon_pci::{ConfigError, ConfigSpace, Description, Options};

use ipc::wire::common::{BarInfo, Identity};
pub use ipc::wire::function::Layout;
use ipc::wire::function::{Access, InterruptIndex, Space};
use ipc::{Deadline, PciAddress};

use parking_lot::{Condvar, Mutex};

use crate::device::{
    self, BarMemory, DeviceInfo, GuestWindow, InterruptInfo, InterruptSetup, PassthroughDevice,
    RegionInfo,
};
use crate::error::DeviceError;
use crate::function::Function;
pub use crate::limits::MAX_ENTRIES;

/// Vendor id (C1.1).
pub const VENDOR: u16 = 0x1b36;
/// Device id (C1.1).
pub const DEVICE: u16 = 0x0015;
/// Class: other system peripheral (C1.1).
pub const CLASS: u32 = 0x08_80_00;
/// Size of BAR 0 in bytes (C1.1).
pub const BAR_SIZE: u64 = 4096;
/// Its BARs.
const BARS: [Option<BarInfo>; 6] =
    [Some(BarInfo { memory_index: 0, size: BAR_SIZE, kind: 0 }), None, None, None, None, None];

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
            other => Err(DeviceError::invalid(format!(
                "A companion with batches of {other} entries: at most {MAX_ENTRIES} are allowed"
            ))),
        }
    }
}

#[derive(Debug)]
struct Registers {
    config: ConfigSpace,
    status: u32,
    page: Option<u64>,
    /// A doorbell, or a release, is being carried out.
    busy: bool,
}

/// Config space of a companion as after a reset (C1.1), for a VMM that shows it on its own bus before it has a
/// device: it places the BAR, and hands on accesses to it alone.
///
/// # Errors
/// None that is known: [`ConfigError`] for a description that is none of a function.
pub fn config_space() -> Result<ConfigSpace, ConfigError> {
    let header = Header { vendor: VENDOR, device: DEVICE, class: CLASS, ..Header::default() };
    let config = header.to_bytes();
    let described =
        Description { config: &config, bars: BARS.map(|bar| bar.map(device::pci_bar)), vectors: 0 };
    ConfigSpace::new(&described, Options::synthetic())
}

/// A companion.
pub struct Companion {
    config: CompanionConfig,
    entries: u32,
    device: Arc<Function>,
    info: DeviceInfo,
    registers: Mutex<Registers>,
    /// Signalled when what was being carried out is done.
    done: Condvar,
}

impl Companion {
    /// The companion of `device`: from here on its function process has guest RAM and may have
    /// ranges of it registered.
    pub(crate) fn new(config: CompanionConfig, device: Arc<Function>) -> Result<Self, DeviceError> {
        let entries = config.entries()?;
        let address = device.address();
        let info = describe(address);
        let space = config_space().map_err(|error| {
            DeviceError::invalid(format!("{}: its config space: {error}", info.name))
        })?;
        let (container, connection) = (device.container(), device.connection_handle());
        container.share(address, connection, Some(device.reader()))?;
        let set = device.set_companion(Some((config.layout, entries)));
        if set.is_err() {
            let _ = container.share(address, connection, None);
        }
        set?;
        let registers = Registers { config: space, status: 0, page: None, busy: false };
        let (registers, done) = (Mutex::new(registers), Condvar::new());
        Ok(Self { config, entries, device, info, registers, done })
    }

    /// What it is configured to be.
    #[must_use]
    pub fn config(&self) -> CompanionConfig {
        self.config
    }

    /// The device that it maps for.
    #[must_use]
    pub fn device(&self) -> &Arc<Function> {
        &self.device
    }

    /// Tears the companion down: its registrations are released, and the function process has no guest
    /// RAM any more.
    pub(crate) fn withdraw(&self) {
        let device = &self.device;
        let withdrawn = device.set_companion(None).and_then(|()| {
            device.container().share(device.address(), device.connection_handle(), None)
        });
        if let Err(error) = withdrawn {
            tracing::warn!("{}: withdrawing it: {error}", self.info.name);
        }
    }

    /// Carries out one thing at a time: a doorbell, or the release of everything. The lock is not
    /// held meanwhile; whoever comes second waits until `deadline`.
    fn alone<T>(
        &self,
        deadline: Deadline,
        carry_out: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let mut registers = self.registers.lock();
        while registers.busy {
            if self.done.wait_until(&mut registers, deadline.instant()).timed_out() {
                let message =
                    format!("{}: the doorbell before is still carried out", self.info.name);
                return Err(DeviceError::new(crate::ErrorKind::TimedOut, message));
            }
        }
        registers.busy = true;
        drop(registers);
        let done = carry_out();
        self.registers.lock().busy = false;
        self.done.notify_one();
        done
    }

    fn ring(&self, deadline: Deadline) {
        let rung = self.alone(deadline, || {
            let page = self.registers.lock().page;
            self.device.doorbell(page, deadline)
        });
        let status = rung.unwrap_or_else(|error| {
            tracing::warn!("{}: {error}", self.info.name);
            IO_ERROR
        });
        self.registers.lock().status = status;
    }

    /// Releases everything that was mapped by it.
    fn release(&self) -> Result<(), DeviceError> {
        self.alone(self.deadline(), || self.device.release_dma())
    }
}

/// The companion of the function at `address`, as a device of its own.
fn describe(address: PciAddress) -> DeviceInfo {
    let identity = Identity { address, vendor: VENDOR, device: DEVICE, class: CLASS };
    let name = format!("dma-companion-0000:{address}");
    DeviceInfo { name, identity, bars: BARS, msix: None, resettable: true }
}

impl PassthroughDevice for Companion {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// It answers by itself, also while its function is away: a doorbell is an error then.
    fn is_present(&self) -> bool {
        true
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError> {
        device::region_info(&self.info.bars, |_| false, index)
    }

    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo {
        // It interrupts nobody.
        InterruptInfo { count: 0, ..device::interrupt_info(0, None, index) }
    }

    fn access(&self, access: Access, deadline: Deadline) -> Result<u64, DeviceError> {
        let Access { space, offset, width, write, value } = access;
        if !(1..=8).contains(&width) {
            return Err(self.refuse(&format!("access of {width} bytes")));
        }
        match (space, write) {
            (Space::Config, false) => {
                let mut bytes = [0; 8];
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                self.registers.lock().config.overlay(offset, &mut bytes[..usize::from(width)]);
                Ok(u64::from_le_bytes(bytes))
            }
            (Space::Config, true) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                let data = &value.to_le_bytes()[..usize::from(width)];
                // Nothing follows from it here: no device is behind it, and where its BAR is decoded is
                // the business of whoever emulates the bus.
                let written = self.registers.lock().config.write(offset, data);
                written.map_err(|error| self.refuse(&error.to_string()))?;
                Ok(0)
            }
            (Space::Bar(bar), _) => {
                self.check(bar, offset, width.into())?;
                match (write, width, u32::try_from(value)) {
                    (false, 4, _) => Ok(self.read_register(offset).into()),
                    (true, 4, Ok(value)) => {
                        self.write_register(offset, value, deadline);
                        Ok(0)
                    }
                    // Other widths read 0, and are ignored when written (C1).
                    _ => Ok(0),
                }
            }
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8], _: Deadline) -> Result<(), DeviceError> {
        self.registers.lock().config.overlay(offset, data);
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
        Err(DeviceError::invalid(message))
    }

    /// As after power-on; what was mapped by it is released.
    fn reset(&self) -> Result<(), DeviceError> {
        {
            let mut registers = self.registers.lock();
            let _ = registers.config.reset();
            (registers.status, registers.page) = (0, None);
        }
        self.release()
    }

    /// The guest is gone: as a reset.
    fn quiesce(&self) -> Result<(), DeviceError> {
        self.reset()
    }
}

impl Companion {
    fn check(&self, bar: u8, offset: u64, length: u64) -> Result<(), DeviceError> {
        let end = offset.checked_add(length);
        if bar == 0 && end.is_some_and(|end| end <= BAR_SIZE) {
            return Ok(());
        }
        Err(self.refuse(&format!("BAR {bar}: access of {length} bytes at {offset:#x}")))
    }

    fn refuse(&self, why: &str) -> DeviceError {
        DeviceError::invalid(format!("{}: {why}", self.info.name))
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::VERSION => VERSION,
            register::MANAGED_BDF => {
                let guest = self.config.guest;
                u32::from(guest.bus()) << 8
                    | u32::from(guest.device()) << 3
                    | u32::from(guest.function())
            }
            register::MAX_ENTRIES => self.entries,
            register::STATUS => self.registers.lock().status,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32, deadline: Deadline) {
        let half = |page: Option<u64>, shift: u32| {
            let other = page.unwrap_or_default() & !(u64::from(u32::MAX) << shift);
            Some(other | u64::from(value) << shift)
        };
        let mut registers = self.registers.lock();
        match offset {
            register::CMD_GPA_LO => registers.page = half(registers.page, 0),
            register::CMD_GPA_HI => registers.page = half(registers.page, 32),
            register::DOORBELL => {
                drop(registers);
                self.ring(deadline);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For a VMM that shows a companion on its own bus before there is one.
    #[test]
    fn c1_1_config_space_is_there_before_a_companion_is() {
        let mut space = config_space().unwrap();
        let read = |space: &ConfigSpace, offset| {
            let mut data = [0; 4];
            space.overlay(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(&space, 0), 0x0015_1b36);
        assert_eq!(read(&space, 8) >> 8, CLASS);
        assert_eq!(space.bar(0).map(|bar| bar.size), Some(BAR_SIZE));
        assert!((1..6).all(|number| space.bar(number).is_none()));
        assert!(!space.needs_device(0, 4096));
        space.place_bar(0, 0xda00_0000);
        assert_eq!(space.on_bus_at(0), None);
        space.write(4, &[2, 0]).unwrap();
        assert_eq!((space.on_bus_at(0), read(&space, 0x10)), (Some(0xda00_0000), 0xda00_0000));
    }
}
