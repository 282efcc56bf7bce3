//! BARs between `cordon_pci`'s model and crosvm's bus.

use cordon_pci::bar::BAR_COUNT;
use cordon_pci::{Bar, ConfigSpace};
use devices::pci::{PciBarPrefetchable, PciBarRegionType};
use devices::{BarRange, PciAddress, PciBarConfiguration, PciDeviceError};
use resources::{Alloc, AllocOptions, SystemAllocator};

/// BARs that crosvm's bus can serve. It looks for memory BARs alone when an access comes, so I/O BARs are not
/// shown to the guest; no driver of this century needs one.
pub(crate) fn served(mut bars: [Option<Bar>; BAR_COUNT]) -> [Option<Bar>; BAR_COUNT] {
    for bar in &mut bars {
        *bar = bar.filter(|bar| !bar.kind.is_io());
    }
    bars
}

/// Finds a place for each BAR and puts it there.
pub(crate) fn allocate(
    space: &mut ConfigSpace,
    address: PciAddress,
    resources: &mut SystemAllocator,
) -> Result<Vec<BarRange>, PciDeviceError> {
    let mut ranges = Vec::new();
    for (number, index) in (0..BAR_COUNT).zip(0u8..) {
        let Some(bar) = space.bar(number) else { continue };
        let max_address = if bar.kind.is_64bit() { u64::MAX } else { u32::MAX.into() };
        let prefetchable = bar.kind.is_prefetchable();
        let PciAddress { bus, dev, func } = address;
        let mut options = AllocOptions::new();
        options.prefetchable(prefetchable).max_address(max_address).align(bar.size);
        let alloc = Alloc::PciBar { bus, dev, func, bar: index };
        let addr = resources
            .allocate_mmio(bar.size, alloc, "cordon_bar".to_owned(), &options)
            .map_err(|error| PciDeviceError::IoAllocationFailed(bar.size, error))?;
        space.place_bar(number, addr);
        ranges.push(BarRange { addr, size: bar.size, prefetchable });
    }
    Ok(ranges)
}

/// BAR `number` as crosvm's bus has it.
pub(crate) fn configuration(space: &ConfigSpace, number: usize) -> Option<PciBarConfiguration> {
    let (bar, address) = (space.bar(number)?, space.on_bus_at(number)?);
    let region = if bar.kind.is_64bit() {
        PciBarRegionType::Memory64BitRegion
    } else {
        PciBarRegionType::Memory32BitRegion
    };
    let prefetchable = if bar.kind.is_prefetchable() {
        PciBarPrefetchable::Prefetchable
    } else {
        PciBarPrefetchable::NotPrefetchable
    };
    Some(PciBarConfiguration::new(number, bar.size, region, prefetchable).set_address(address))
}

/// Takes an address of a slot, or the one that is wanted, the first time that it is asked for.
pub(crate) fn allocate_address(
    has: &mut Option<PciAddress>,
    wanted: Option<PciAddress>,
    label: String,
    resources: &mut SystemAllocator,
) -> Result<PciAddress, PciDeviceError> {
    if has.is_none() {
        *has = match wanted {
            Some(address) => resources.reserve_pci(address, label).then_some(address),
            None => resources.allocate_pci(0, label),
        };
    }
    has.ok_or(PciDeviceError::PciAllocationFailed)
}

/// An address in the guest as crosvm has it; its bus has no segments, and the options none of them.
pub(crate) fn of_crosvm(address: cordon_vmm::PciAddress) -> PciAddress {
    PciAddress { bus: address.bus(), dev: address.device(), func: address.function() }
}
