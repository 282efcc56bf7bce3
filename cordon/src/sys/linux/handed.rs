//! IOMMU groups whose files were handed to this program.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use cordon_vmm::VfioGroup;
use ipc::PciAddress;

use crate::Failure;
use crate::vfio_fds::Files;

/// The groups of these files. Each is one of a function that is served.
pub(crate) fn handed_groups(
    files: Vec<Files>,
    functions: &[PciAddress],
) -> Result<Vec<Arc<VfioGroup>>, Failure> {
    let mut groups: Vec<Arc<VfioGroup>> = Vec::new();
    for (file, container) in files {
        let descriptor = file.as_raw_fd();
        let group = VfioGroup::new(file, container)?;
        let number = group.number();
        let first = |group: &Arc<VfioGroup>| {
            let first = group.descriptors().next().map(|fd| fd.as_raw_fd());
            first.unwrap_or_default()
        };
        if let Some(before) = groups.iter().find(|one| one.number() == number) {
            let before = first(before);
            let why = format!(
                "IOMMU group {number} is handed twice, as descriptors {before} and {descriptor}"
            );
            return Err(why.into());
        }
        if !functions.iter().any(|function| group.has(*function)) {
            let of = |function: &PciAddress| match group_of(*function) {
                Some(group) => format!("{function} is in group {group}"),
                None => format!("{function} is in none"),
            };
            let others: Vec<String> = functions.iter().map(of).collect();
            let why = format!(
                "Descriptor {descriptor} is the file of IOMMU group {number}, which has none of the functions that \
                 are served: {}",
                others.join(", ")
            );
            return Err(why.into());
        }
        groups.push(Arc::new(group));
    }
    Ok(groups)
}

/// The IOMMU group of a function.
fn group_of(address: PciAddress) -> Option<u32> {
    let (segment, bus) = (address.segment(), address.bus());
    let (device, function) = (address.device(), address.function());
    let name = format!("{segment:04x}:{bus:02x}:{device:02x}.{function:x}");
    let link = Path::new("/sys/bus/pci/devices").join(name).join("iommu_group");
    std::fs::read_link(link).ok()?.file_name()?.to_str()?.parse().ok()
}
