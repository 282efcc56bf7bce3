//! IOMMU groups whose files were handed to this program.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd as _, OwnedFd};
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
    for group in made(files)? {
        let (number, descriptor) = (group.number(), first(&group));
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
                "Descriptor {descriptor} is of IOMMU group {number}, and of none of the functions that are served: {}",
                others.join(", ")
            );
            return Err(why.into());
        }
        let of_it = |function: &&PciAddress| group_of(**function) == Some(number);
        if let Some(other) = functions.iter().filter(of_it).find(|function| !group.has(**function))
        {
            let why = format!(
                "{other} is to be served, and of its IOMMU group {number} the files of other functions were handed (descriptor \
                 {descriptor}): hand its own too"
            );
            return Err(why.into());
        }
        groups.push(Arc::new(group));
    }
    Ok(groups)
}

/// The number of the first descriptor of a group, which people know it by.
fn first(group: &VfioGroup) -> i32 {
    group.descriptors().first().copied().unwrap_or_default()
}

/// Functions' own files of one group, and its iommufd.
type Devices = (Vec<OwnedFd>, Option<OwnedFd>);

/// Groups by their files; functions by their own, those of one group together.
fn made(files: Vec<Files>) -> Result<Vec<VfioGroup>, Failure> {
    let (mut groups, mut devices) = (Vec::new(), BTreeMap::<u32, Devices>::new());
    let (mut order, mut iommufds) = (Vec::new(), VecDeque::new());
    for one in files {
        match one {
            Files::Group(file, container) => groups.push(VfioGroup::new(file, container)?),
            Files::Iommufd(file) => iommufds.push_back(file),
            Files::Device(file, iommufd) => {
                let number = VfioGroup::group_of_device(&file)?;
                let its = devices.entry(number).or_default();
                if its.0.is_empty() {
                    order.push(number);
                }
                if let (Some(iommufd), Some(before)) = (&iommufd, &its.1) {
                    let why = format!(
                        "IOMMU group {number} has two iommufds, descriptors {} and {}: its functions have one \
                         together",
                        before.as_raw_fd(),
                        iommufd.as_raw_fd()
                    );
                    return Err(why.into());
                }
                its.0.push(file);
                its.1 = its.1.take().or(iommufd);
            }
        }
    }
    let without = devices.values().filter(|(_, iommufd)| iommufd.is_none()).count();
    if !iommufds.is_empty() && iommufds.len() != without {
        let why = format!(
            "{} iommufds were passed on by themselves, and {without} groups of functions have none: one for each \
             group, in the same order, or none",
            iommufds.len()
        );
        return Err(why.into());
    }
    for number in order {
        let Some((files, iommufd)) = devices.remove(&number) else { continue };
        let iommufd = iommufd.or_else(|| iommufds.pop_front());
        groups.push(VfioGroup::of_devices(files, iommufd)?);
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
