//! What a fake function is.

use ipc::PciAddress;
use ipc::wire::common::{BarInfo, Identity};

use crate::group::{BusAddresses, DmaSpace};

/// How a fake function's interrupts are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeInterrupts {
    /// By the process that serves it ([`crate::NotifiedInterrupts`]).
    Notified,
    /// By the fake itself, in the place of a kernel ([`crate::KernelInterrupts`]).
    Kernel,
}

/// A function to make. [`FakeFunction::at`] has sensible values for all of it.
#[derive(Clone, Debug)]
pub struct FakeFunction {
    /// What it is and where.
    pub identity: Identity,
    /// Its BARs; memory BARs are shared memory that keeps what is stored.
    pub bars: [Option<BarInfo>; 6],
    /// Entries of its MSI-X table, at [`MSIX_TABLE`] of BAR 0.
    pub vectors: u16,
    /// How its interrupts are delivered.
    pub interrupts: FakeInterrupts,
    /// What its DMA space is like.
    pub dma: DmaSpace,
    /// Most bytes of DMA at once.
    pub max_dma_bytes: u64,
    /// What windows begin and end on.
    pub window_granule: u64,
    /// Whether a function process must be handed it ([`crate::Source::Handed`]).
    pub handed: bool,
    /// Whether its claim and its DMA survive the process that holds them.
    pub survives: bool,
    /// Whether it has power management, at [`POWER_CAPABILITY`], and keeps its state in D3hot.
    pub power_management: bool,
}

/// Where the MSI-X table lies in BAR 0.
pub const MSIX_TABLE: u32 = 0x8000;
/// Where the pending-bit array lies in BAR 0.
pub const MSIX_PENDING: u32 = 0xc000;
/// Where the MSI-X capability lies in config space.
pub const MSIX_CAPABILITY: u16 = 0x40;
/// Where the power management capability lies in config space.
pub const POWER_CAPABILITY: u16 = 0x60;
/// Where a bus address lies that the fake assigns to key 0.
pub const ASSIGNED_BASE: u64 = 0x80_0000_0000;

impl FakeFunction {
    /// A function with 128 KiB in BAR 0, 64 KiB in the 64-bit BAR 2, 32 MSI-X vectors that are
    /// notified, and bus addresses that we choose.
    #[must_use]
    pub fn at(address: PciAddress) -> Self {
        let bar = |memory_index, size, kind| Some(BarInfo { memory_index, size, kind });
        let wide = BarInfo::WIDTH_64 | BarInfo::PREFETCHABLE;
        Self {
            identity: Identity { address, vendor: 0xc0d0, device: 0xfa4e, class: 0xff_00_00 },
            bars: [bar(0, 0x20000, 0), None, bar(1, 0x10000, wide), None, None, None],
            vectors: 32,
            interrupts: FakeInterrupts::Notified,
            dma: DmaSpace {
                addresses: BusAddresses::Chosen,
                granule: 1,
                max_ranges: 65_536,
                needs_mapping: false,
                shared: false,
            },
            max_dma_bytes: u64::MAX,
            window_granule: 16 * 1024,
            handed: false,
            survives: false,
            power_management: false,
        }
    }

    /// Config space after a reset.
    pub(super) fn config_space(&self) -> Vec<u8> {
        let mut bytes = vec![0; ipc::wire::function::CONFIG_SPACE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let Identity { vendor, device, class, .. } = self.identity;
        put(0x00, &vendor.to_le_bytes());
        put(0x02, &device.to_le_bytes());
        put(0x08, &(class << 8).to_le_bytes());
        if self.vectors > 0 {
            let at = usize::from(MSIX_CAPABILITY);
            put(0x06, &[0x10]);
            put(0x34, &MSIX_CAPABILITY.to_le_bytes()[..1]);
            put(at, &[0x11, 0]);
            put(at + 2, &(self.vectors - 1).to_le_bytes());
            put(at + 4, &MSIX_TABLE.to_le_bytes());
            put(at + 8, &MSIX_PENDING.to_le_bytes());
        }
        if self.power_management {
            let [next, _] = MSIX_CAPABILITY.to_le_bytes();
            put(0x06, &[0x10]);
            put(0x34, &POWER_CAPABILITY.to_le_bytes()[..1]);
            let next = if self.vectors > 0 { next } else { 0 };
            put(POWER_CAPABILITY.into(), &[0x01, next, 0x03, 0x00, 0x08, 0x00]);
        }
        bytes
    }
}
