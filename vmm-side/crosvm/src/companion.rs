//! The companion of a function as a PCI device of crosvm.

use std::sync::{Arc, OnceLock};

use anyhow::bail;
use base::RawDescriptor;
use cordon_pci::ConfigSpace;
use cordon_vmm::{Companion, Host, PassthroughDevice as _};
use devices::{
    BarRange, PciAddress, PciBarConfiguration, PciBarIndex, PciDevice, PciDeviceError,
    PreferredIrq, Suspendable,
};
use resources::SystemAllocator;
use snapshot::AnySnapshot;

use crate::bars;

/// The companion, from when it is attached.
pub(crate) type Attached = Arc<OnceLock<Arc<Companion>>>;

/// A companion: config space and one BAR, whose registers are all trapped. It interrupts nobody.
pub struct CompanionDevice {
    name: String,
    space: ConfigSpace,
    companion: Attached,
    host: Arc<Host>,
    wanted: Option<PciAddress>,
    address: Option<PciAddress>,
}

impl CompanionDevice {
    pub(crate) fn new(
        name: String,
        companion: Attached,
        host: Arc<Host>,
        wanted: Option<PciAddress>,
    ) -> anyhow::Result<Self> {
        let space = cordon_vmm::companion::config_space()?;
        Ok(Self { name, space, companion, host, wanted, address: None })
    }

    /// The companion, while its BAR is decoded.
    fn decoded(&self, bar: PciBarIndex) -> Option<(&Companion, u8)> {
        self.space.decoded_at(bar)?;
        Some((self.companion.get()?, u8::try_from(bar).ok()?))
    }
}

impl PciDevice for CompanionDevice {
    fn debug_label(&self) -> String {
        self.name.clone()
    }

    fn preferred_address(&self) -> Option<PciAddress> {
        self.wanted
    }

    fn allocate_address(
        &mut self,
        resources: &mut SystemAllocator,
    ) -> Result<PciAddress, PciDeviceError> {
        let label = self.debug_label();
        bars::allocate_address(&mut self.address, self.wanted, label, resources)
    }

    fn keep_rds(&self) -> Vec<RawDescriptor> {
        Vec::new()
    }

    fn preferred_irq(&self) -> PreferredIrq {
        PreferredIrq::None
    }

    fn allocate_io_bars(
        &mut self,
        resources: &mut SystemAllocator,
    ) -> Result<Vec<BarRange>, PciDeviceError> {
        let address = self.address.ok_or(PciDeviceError::PciAllocationFailed)?;
        bars::allocate(&mut self.space, address, resources)
    }

    fn get_bar_configuration(&self, number: usize) -> Option<PciBarConfiguration> {
        bars::configuration(&self.space, number)
    }

    fn read_config_register(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.space.overlay(u32::try_from(register * 4).unwrap_or(u32::MAX), &mut data);
        u32::from_le_bytes(data)
    }

    fn write_config_register(&mut self, register: usize, offset: u64, data: &[u8]) {
        let at = u64::try_from(register * 4).unwrap_or(u64::MAX).saturating_add(offset);
        // Of at most 4 bytes, which is what the model takes; no device is behind it, so nothing follows.
        let _ = self.space.write(u32::try_from(at).unwrap_or(u32::MAX), data);
    }

    fn read_bar(&mut self, bar: PciBarIndex, offset: u64, data: &mut [u8]) {
        match self.decoded(bar) {
            Some((companion, bar)) => companion.bar_read_or_ones(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    /// A doorbell is over when its batch is: the vCPU waits for it.
    fn write_bar(&mut self, bar: PciBarIndex, offset: u64, data: &[u8]) {
        if let Some((companion, bar)) = self.decoded(bar) {
            // What fails is in its STATUS.
            let _ = companion.bar_write(bar, offset, data);
        }
    }

    fn destroy_device(&mut self) {
        if let Some(companion) = self.companion.get() {
            self.host.destroy_companion(companion);
        }
    }
}

impl Suspendable for CompanionDevice {
    fn snapshot(&mut self) -> anyhow::Result<AnySnapshot> {
        bail!("{}: what its guest has mapped cannot be saved", self.name)
    }

    fn restore(&mut self, _: AnySnapshot) -> anyhow::Result<()> {
        bail!("{}: nothing that a guest had mapped can be restored", self.name)
    }

    /// It has no thread.
    fn sleep(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn wake(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Drop for CompanionDevice {
    fn drop(&mut self) {
        self.destroy_device();
    }
}
