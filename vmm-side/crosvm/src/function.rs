//! A passed-through function as a PCI device of crosvm.

use std::sync::Arc;

use anyhow::bail;
use base::{RawDescriptor, warn};
use cordon_pci::registers::INTERRUPT_PIN;
use cordon_vmm::Host;
use devices::{
    BarRange, IrqLevelEvent, PciAddress, PciBarConfiguration, PciBarIndex, PciDevice,
    PciDeviceError, PciInterruptPin, PreferredIrq, Suspendable,
};
use resources::SystemAllocator;
use snapshot::AnySnapshot;

use crate::bars;
use crate::guest::PassedThrough;

/// A passed-through function. Made by [`Cordon::create`](crate::Cordon::create); it has no process before
/// [`Cordon::attach`](crate::Cordon::attach), and no jail of crosvm's: what is confined is its process. Dropping
/// it detaches the function.
pub struct FunctionDevice {
    shared: Arc<PassedThrough>,
    host: Arc<Host>,
    /// Where it is to be.
    wanted: Option<PciAddress>,
    /// Where it is.
    address: Option<PciAddress>,
}

impl FunctionDevice {
    pub(crate) fn new(
        shared: Arc<PassedThrough>,
        host: Arc<Host>,
        wanted: Option<PciAddress>,
    ) -> Self {
        Self { shared, host, wanted, address: None }
    }

    /// Ends what there is of it in this process and below it.
    fn detach(&mut self) {
        self.shared.sleep();
        if let Some(function) = self.shared.function() {
            self.host.detach(function);
        }
    }
}

impl PciDevice for FunctionDevice {
    fn debug_label(&self) -> String {
        self.shared.name.clone()
    }

    fn preferred_address(&self) -> Option<PciAddress> {
        self.wanted
    }

    fn allocate_address(
        &mut self,
        resources: &mut SystemAllocator,
    ) -> Result<PciAddress, PciDeviceError> {
        let label = self.debug_label();
        let address = bars::allocate_address(&mut self.address, self.wanted, label, resources)?;
        self.shared.set_address(address);
        Ok(address)
    }

    fn keep_rds(&self) -> Vec<RawDescriptor> {
        Vec::new()
    }

    fn preferred_irq(&self) -> PreferredIrq {
        let pin = self.shared.described.config.get(INTERRUPT_PIN).copied().unwrap_or_default();
        if pin == 0 { PreferredIrq::None } else { PreferredIrq::Any }
    }

    fn assign_irq(&mut self, event: IrqLevelEvent, pin: PciInterruptPin, number: u32) {
        let guest = &mut *self.shared.guest.lock();
        let pin = u8::try_from(pin.to_mask()).unwrap_or_default() + 1;
        // A number that the register does not hold is known from ACPI alone: 255 says that.
        guest.space.wire_interrupt(u8::try_from(number).unwrap_or(0xff), pin);
        guest.interrupts.set_line(event);
    }

    /// All BARs, also those that are windows: which parts of them are is known when it is attached.
    fn allocate_io_bars(
        &mut self,
        resources: &mut SystemAllocator,
    ) -> Result<Vec<BarRange>, PciDeviceError> {
        let address = self.address.ok_or(PciDeviceError::PciAllocationFailed)?;
        bars::allocate(&mut self.shared.guest.lock().space, address, resources)
    }

    fn get_bar_configuration(&self, number: usize) -> Option<PciBarConfiguration> {
        bars::configuration(&self.shared.guest.lock().space, number)
    }

    fn read_config_register(&self, register: usize) -> u32 {
        self.shared.read_register(register)
    }

    fn write_config_register(&mut self, register: usize, offset: u64, data: &[u8]) {
        let at = u64::try_from(register * 4).unwrap_or(u64::MAX).saturating_add(offset);
        self.shared.write_config(u32::try_from(at).unwrap_or(u32::MAX), data);
    }

    fn read_bar(&mut self, bar: PciBarIndex, offset: u64, data: &mut [u8]) {
        self.shared.read_bar(bar, offset, data);
    }

    fn write_bar(&mut self, bar: PciBarIndex, offset: u64, data: &[u8]) {
        self.shared.write_bar(bar, offset, data);
    }

    /// It is taken out of a VM that goes on.
    fn destroy_device(&mut self) {
        self.shared.guest.lock().withdraw();
        self.detach();
    }
}

impl Suspendable for FunctionDevice {
    fn snapshot(&mut self) -> anyhow::Result<AnySnapshot> {
        bail!("{}: the state of a passed-through device cannot be saved", self.shared.name)
    }

    fn restore(&mut self, _: AnySnapshot) -> anyhow::Result<()> {
        bail!("{}: a passed-through device has no state to be restored", self.shared.name)
    }

    /// Ends the thread of its interrupts. The function keeps its processes, and its device whatever it was told
    /// to do: vectors that are not masked reach the interrupt chip, the others wait.
    fn sleep(&mut self) -> anyhow::Result<()> {
        self.shared.sleep();
        Ok(())
    }

    fn wake(&mut self) -> anyhow::Result<()> {
        self.shared.wake();
        Ok(())
    }
}

/// The end of the VM: the device must not reach its memory any more. The hypervisor's regions end with the VM, and
/// who would take them away now may be gone.
impl Drop for FunctionDevice {
    fn drop(&mut self) {
        if let Some(death) = self.shared.function().and_then(|function| function.death()) {
            warn!("{}: it was given up: {death}", self.shared.name);
        }
        self.detach();
    }
}
