//! [`PassthroughDevice`]: one passed-through function as VMM authors see it, close to VFIO's verbs.

use std::sync::Arc;
use std::time::Duration;

use cordon_pci::{Bar, BarKind};
use ipc::event::Signaller;
use ipc::wire::common::{BarInfo, Identity, MsixInfo};
use ipc::wire::function::{Access, CONFIG_SPACE, InterruptIndex, Space};
use ipc::{Deadline, DeviceMemory, Window, WindowError};

use crate::error::DeviceError;
pub use crate::windows::GuestWindow;

/// Regions of a device: six BARs, ROM, config space, VGA (P3).
pub const REGIONS: u32 = 9;
/// Index of the ROM region.
pub const ROM_REGION: u32 = 6;
/// Index of the config space region.
pub const CONFIG_REGION: u32 = 7;
/// Index of the VGA region.
pub const VGA_REGION: u32 = 8;
/// Interrupt indexes of a device (P4).
pub const INTERRUPT_INDEXES: u32 = 5;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, by default `apple-0000:bb:dd.f` (P1.6).
    pub name: String,
    /// Where it is on the host, and its ids.
    pub identity: Identity,
    /// BARs as the dext describes them.
    pub bars: [Option<BarInfo>; 6],
    /// MSI-X capability.
    pub msix: Option<MsixInfo>,
    /// Whether [`PassthroughDevice::reset`] can work: always.
    pub resettable: bool,
}

impl DeviceInfo {
    /// Its BARs as a model of config space takes them.
    #[must_use]
    pub fn pci_bars(&self) -> [Option<Bar>; 6] {
        self.bars.map(|bar| bar.map(pci_bar))
    }
}

/// A BAR as the dext describes it, for a model.
pub(crate) fn pci_bar(info: BarInfo) -> Bar {
    Bar { size: info.size, kind: BarKind::from_bits(info.kind) }
}

/// A region of a device (P3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its index, 0..[`REGIONS`].
    pub index: u32,
    /// Bytes; 0 for one that is not there.
    pub size: u64,
    /// Offset cookie: index << 20.
    pub offset: u64,
    /// Whether parts of it are windows, see [`PassthroughDevice::windows`].
    pub mappable: bool,
}

/// An interrupt index of a device (P4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptInfo {
    /// Which.
    pub index: InterruptIndex,
    /// Vectors; 0 when the index cannot be used.
    pub count: u32,
    /// Whether it signals events.
    pub eventfd: bool,
    /// Whether all vectors must be set up at once.
    pub no_resize: bool,
}

/// A part of a BAR that can be mapped into a guest. Loads and stores to it cross no process.
#[derive(Debug)]
pub struct BarMemory {
    /// BAR number.
    pub bar: u8,
    /// Where in the BAR it begins; a multiple of the host's page size (P7.7).
    pub offset: u64,
    /// Bytes; a multiple of the host's page size.
    pub length: u64,
    /// The memory; a descriptor of it is sealed against shrinking.
    pub memory: DeviceMemory,
    /// Where in the memory it begins.
    pub memory_offset: u64,
}

impl BarMemory {
    /// Maps it into this process.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn map(&self) -> Result<Window, WindowError> {
        let too_long = |_| WindowError::OutOfRange {
            offset: self.memory_offset,
            width: self.length,
            length: usize::MAX as u64,
        };
        let length = usize::try_from(self.length).map_err(too_long)?;
        self.memory.map(self.memory_offset, length)
    }

    /// Whether both are parts of the same memory.
    #[must_use]
    pub fn is_same_memory(&self, other: &Self) -> bool {
        self.memory.is_same(&other.memory)
    }
}

/// A change of the interrupt setup (VFIO's SET_IRQS).
#[derive(Debug)]
pub enum InterruptSetup {
    /// Gives each vector from `start` a signaller, or takes it away.
    Assign {
        /// First vector.
        start: u16,
        /// One entry for each vector.
        signallers: Vec<Option<Signaller>>,
    },
    /// Takes away every signaller of the index.
    Disable,
    /// Holds INTx back.
    Mask,
    /// Lets INTx through.
    Unmask,
    /// Signals vectors as if the device had fired them.
    Trigger {
        /// First vector.
        start: u16,
        /// How many.
        count: u16,
    },
}

/// One passed-through function. Callers are vCPU threads: every method takes `&self` and blocks
/// for as long as the device needs, bounded by the deadlines of
/// [`HostConfig`](crate::HostConfig).
pub trait PassthroughDevice: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// A region (P3).
    ///
    /// # Errors
    /// [`DeviceError`] for an index that is not there (P3.4).
    fn region_info(&self, index: u32) -> Result<RegionInfo, DeviceError>;

    /// An interrupt index (P4).
    fn interrupt_info(&self, index: InterruptIndex) -> InterruptInfo;

    /// Whether somebody answers for it: asked before anything is answered in its place, since a
    /// device that is gone reads as all ones throughout. Waits for nobody where that is known without
    /// asking the device, which the provided method does.
    fn is_present(&self) -> bool {
        let mut ids = [0xff; 4];
        match self.config_read(0, &mut ids) {
            Ok(()) => ids != [0xff; 4],
            Err(error) => !error.is_absent(),
        }
    }

    /// Counts how often it went away and came back. Each time it was claimed and reset, so that its
    /// registers are as after power-on.
    fn returns(&self) -> u64 {
        0
    }

    /// Until when a call waits that is given no deadline.
    fn deadline(&self) -> Deadline {
        Deadline::after(Duration::from_millis(4500))
    }

    /// One access of at most 8 bytes, to config space (P5, P6) or a BAR (P7.5), before `deadline`;
    /// the value that was read, or 0 for a write.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn access(&self, access: Access, deadline: Deadline) -> Result<u64, DeviceError>;

    /// Reads any part of config space, 1..=4096 bytes, before `deadline` (P5). Bytes past 4096 read as
    /// zero.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn read_config(
        &self,
        offset: u32,
        data: &mut [u8],
        deadline: Deadline,
    ) -> Result<(), DeviceError>;

    /// Reads config space (P5). Bytes past 4096 read as zero.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        match data.len() {
            1..=8 => read_into(self, Space::Config, offset.into(), data),
            _ => self.read_config(offset, data, self.deadline()),
        }
    }

    /// Writes config space, 1..=8 bytes, as far as P6 forwards it.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        write_from(self, Space::Config, offset.into(), data)
    }

    /// A trapped load of 1, 2, 4 or 8 bytes (P7.5).
    ///
    /// # Errors
    /// [`DeviceError`].
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        read_into(self, Space::Bar(bar), offset, data)
    }

    /// A trapped store of 1, 2, 4 or 8 bytes (P7.5).
    ///
    /// # Errors
    /// [`DeviceError`].
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        write_from(self, Space::Bar(bar), offset, data)
    }

    /// The parts of its BARs that can be mapped (P7).
    ///
    /// # Errors
    /// [`DeviceError`] when the process is out of descriptors.
    fn windows(&self) -> Result<Vec<BarMemory>, DeviceError>;

    /// Maps the parts of its BARs into this process, for a hypervisor to map on: while the device is
    /// away, decodes no memory (COMMAND.MEM off, D3hot) or is being reset they read all ones at the
    /// same addresses (P6.4).
    ///
    /// # Errors
    /// [`DeviceError`] when the process is out of descriptors or addresses.
    fn map_windows(&self) -> Result<Vec<Arc<GuestWindow>>, DeviceError>;

    /// Counts how often the device came back with other memory behind its windows, so that what
    /// [`PassthroughDevice::windows`] gave before is not the device's any more.
    fn windows_generation(&self) -> u64;

    /// Changes the interrupt setup (P9).
    ///
    /// # Errors
    /// [`DeviceError`].
    fn set_interrupts(
        &self,
        index: InterruptIndex,
        setup: InterruptSetup,
    ) -> Result<(), DeviceError>;

    /// Resets the device (P8). Interrupt setup, windows and DMA stay.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn reset(&self) -> Result<(), DeviceError>;

    /// [`PassthroughDevice::reset`] before `deadline`. The provided method is for devices whose reset
    /// is over at once: it does not look at the deadline.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn reset_before(&self, _deadline: Deadline) -> Result<(), DeviceError> {
        self.reset()
    }

    /// Whoever used it is gone: the device may not reach its memory any more, and wakes nobody.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn quiesce(&self) -> Result<(), DeviceError> {
        const COMMAND: u32 = 0x04;
        const BUS_MASTER: u8 = 1 << 2;
        let mut low = [0];
        self.config_read(COMMAND, &mut low)?;
        self.config_write(COMMAND, &[low[0] & !BUS_MASTER])?;
        for index in [InterruptIndex::Intx, InterruptIndex::Msi, InterruptIndex::Msix] {
            self.set_interrupts(index, InterruptSetup::Disable)?;
        }
        Ok(())
    }

    /// VFIO's device features: there are none (P4).
    ///
    /// # Errors
    /// Always, of kind [`NotSupported`](crate::ErrorKind::NotSupported).
    fn feature(&self, feature: u32) -> Result<(), DeviceError> {
        let name = &self.info().name;
        let message = format!("{name}: device feature {feature} is not supported");
        Err(DeviceError::not_supported(message))
    }

    /// [`PassthroughDevice::config_read`] for a caller that cannot fail: any error reads as all
    /// ones, as on a bus where nobody answers.
    fn config_read_or_ones(&self, offset: u32, data: &mut [u8]) {
        if self.config_read(offset, data).is_err() {
            data.fill(0xff);
        }
    }

    /// [`PassthroughDevice::bar_read`] for a caller that cannot fail: any error reads as all ones.
    fn bar_read_or_ones(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.bar_read(bar, offset, data).is_err() {
            data.fill(0xff);
        }
    }
}

/// P3, from what the dext says of the BARs.
pub(crate) fn region_info(
    bars: &[Option<BarInfo>; 6],
    windowed: impl Fn(u8) -> bool,
    index: u32,
) -> Result<RegionInfo, DeviceError> {
    let bar = u8::try_from(index).ok().filter(|bar| *bar < 6);
    let (size, mappable) = match (bar, index) {
        (Some(bar), _) => (bars[usize::from(bar)].map_or(0, |bar| bar.size), windowed(bar)),
        (None, CONFIG_REGION) => (CONFIG_SPACE as u64, false),
        (None, ROM_REGION | VGA_REGION) => (0, false),
        (None, other) => {
            let message = format!("There is no region {other}: 0 to {} are there", REGIONS - 1);
            return Err(DeviceError::invalid(message));
        }
    };
    Ok(RegionInfo { index, size, offset: u64::from(index) << 20, mappable })
}

/// P4, from what the dext registered and the MSI-X capability says.
pub(crate) fn interrupt_info(
    vectors: u16,
    msix: Option<&MsixInfo>,
    index: InterruptIndex,
) -> InterruptInfo {
    let (count, eventfd, no_resize) = match index {
        InterruptIndex::Intx => (1, true, false),
        InterruptIndex::Msi => (vectors.into(), true, false),
        InterruptIndex::Msix => (msix.map_or(0, |msix| msix.vectors.into()), true, true),
        InterruptIndex::Err | InterruptIndex::Req => (0, false, false),
    };
    InterruptInfo { index, count, eventfd, no_resize }
}

/// A width as an [`Access`] has it; 0, which is none, for one that does not fit.
fn width(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(0)
}

fn read_into<D: PassthroughDevice + ?Sized>(
    device: &D,
    space: Space,
    offset: u64,
    data: &mut [u8],
) -> Result<(), DeviceError> {
    let access = Access::read(space, offset, width(data.len()));
    let value = device.access(access, device.deadline())?.to_le_bytes();
    for (to, from) in data.iter_mut().zip(value) {
        *to = from;
    }
    Ok(())
}

fn write_from<D: PassthroughDevice + ?Sized>(
    device: &D,
    space: Space,
    offset: u64,
    data: &[u8],
) -> Result<(), DeviceError> {
    let mut bytes = [0; 8];
    if let Some(into) = bytes.get_mut(..data.len()) {
        into.copy_from_slice(data);
    }
    let access = Access::write(space, offset, width(data.len()), u64::from_le_bytes(bytes));
    device.access(access, device.deadline()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARS: [Option<BarInfo>; 6] = [
        Some(BarInfo { memory_index: 0, size: 0x10000, kind: BarInfo::WIDTH_64 }),
        None,
        Some(BarInfo { memory_index: 1, size: 64, kind: BarInfo::IO }),
        None,
        None,
        None,
    ];

    #[test]
    fn p3_regions_have_their_sizes_and_cookies() {
        for (index, size) in [(0, 0x10000), (1, 0), (2, 64), (6, 0), (7, 4096), (8, 0)] {
            let info = region_info(&BARS, |bar| bar == 0, index).unwrap();
            assert_eq!((info.size, info.offset), (size, u64::from(index) << 20), "{index}");
            assert_eq!(info.mappable, index == 0);
        }
    }

    #[test]
    fn p3_4_other_indexes_are_invalid() {
        for index in [9, 255, u32::MAX] {
            let error = region_info(&BARS, |_| false, index).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
        }
    }

    #[test]
    fn p4_interrupt_indexes_have_their_counts_and_flags() {
        let msix = MsixInfo {
            capability: 0xb0,
            vectors: 9,
            table_bar: 0,
            table_offset: 0,
            pba_bar: 0,
            pba_offset: 0x1000,
        };
        use InterruptIndex::{Err, Intx, Msi, Msix, Req};
        let count = |index| interrupt_info(5, Some(&msix), index).count;
        assert_eq!([Intx, Msi, Msix, Err, Req].map(count), [1, 5, 9, 0, 0]);
        assert_eq!(interrupt_info(5, None, Msix).count, 0);
        assert!(interrupt_info(5, Some(&msix), Msix).no_resize);
    }
}
