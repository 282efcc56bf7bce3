//! What the kernel says of an NVMe controller and its group.

use serde_json::{Value, json};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_GROUP_FLAGS_VIABLE, VFIO_NOIOMMU_IOMMU,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE1v2_IOMMU,
};

use crate::kernel::{Container, Device, Group, Memory};
use crate::{Failure, outcome};

/// Bytes that are mapped for DMA.
const MEMORY: usize = 2 << 20;
const IOVA: u64 = 0x1000_0000;
/// The region of a function's configuration space, and where its COMMAND is.
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: [u8; 2] = [6, 0];
/// Where an NVMe controller says its version.
const VERSION: usize = 8;

pub(crate) fn check(address: &str) -> Result<Value, Failure> {
    let container = Container::open()?;
    let group = Group::open(address)?;
    let before = group.flags()?;
    group.enter(&container)?;
    container.set(VFIO_TYPE1v2_IOMMU)?;
    let device = group.device(address)?;
    let info = device.info()?;
    let memory = Memory::new(MEMORY)?;
    let mapped = container.map(&memory, IOVA);
    let twice = container.map(&memory, IOVA);
    let (config, bar) = (device.region(CONFIG)?, device.region(0)?);
    device.write(&config, COMMAND, &MEMORY_AND_MASTER)?;
    let trapped = u32::from_le_bytes(device.read(&bar, VERSION as u64)?);
    let noiommu = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    Ok(json!({
        "api_version": container.api_version()?,
        "type1v2": container.offers(VFIO_TYPE1v2_IOMMU)?,
        "noiommu_offered": container.offers(VFIO_NOIOMMU_IOMMU)?,
        "noiommu_allowed": std::fs::read_to_string(noiommu).ok().map(|text| text.trim().to_owned()),
        "iommufd": std::path::Path::new("/dev/iommu").exists(),
        "viable": before & VFIO_GROUP_FLAGS_VIABLE != 0,
        "second_holder": outcome(&Group::open(address)),
        "pci": info.flags & VFIO_DEVICE_FLAGS_PCI != 0,
        "resettable": info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
        "regions": regions(&device, info.num_regions)?,
        "interrupts": interrupts(&device, info.num_irqs)?,
        "ids": device.read::<4>(&config, 0)?,
        "version_by_window": device.load(&bar, VERSION)?,
        "version_by_trap": trapped,
        "mapped": outcome(&mapped),
        "mapped_twice": outcome(&twice),
        "reset": outcome(&device.reset()),
    }))
}

/// Those that have a size.
fn regions(device: &Device, count: u32) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    for index in 0..count {
        let Ok(region) = device.region(index) else { continue };
        if region.size > 0 {
            let mappable = region.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
            found.push(json!({ "index": index, "size": region.size, "mappable": mappable }));
        }
    }
    Ok(found)
}

/// How many there are of each index.
fn interrupts(device: &Device, count: u32) -> Result<Vec<u32>, Failure> {
    (0..count).map(|index| Ok(device.interrupt(index).map_or(0, |info| info.count))).collect()
}
