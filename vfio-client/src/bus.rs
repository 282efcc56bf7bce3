//! Resets of a whole bus, for functions that the kernel cannot reset alone.
//!
//! Whom such a reset reaches is asked when the function is opened: the request has the number of another one, of a
//! container, and a confined process cannot make it. Whether it may be made is looked at each time: it takes from every
//! function of the bus what its guest told it.

use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use ipc::PciAddress;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_HOT_RESET_FLAG_DEV_ID, vfio_pci_dependent_device, vfio_pci_hot_reset,
    vfio_pci_hot_reset_info,
};

use crate::abi::{Structure, read};
use crate::device::Device;
use crate::error::VfioError;
use crate::kernel::{Described, Kernel};
use crate::limits::{MAX_NAMED, MAX_RESET};

/// A function that a reset of a bus reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    address: PciAddress,
    owner: Owner,
}

/// Whose a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// That of an IOMMU group.
    Group(u32),
    /// That of the same iommufd, or of a group all of which that has.
    Iommufd,
    /// Somebody else's.
    Other,
}

/// What the kernel calls a device that an iommufd has not.
const NOT_OWNED: u32 = u32::MAX;

/// Which functions a reset of the function's bus reaches, itself among them; none where its bus cannot be reset.
///
/// # Errors
/// [`VfioError`] when it reaches more than are taken, or none that makes sense.
pub(crate) fn reached(
    kernel: &dyn Kernel,
    device: BorrowedFd<'_>,
) -> Result<Option<Vec<Reached>>, VfioError> {
    const FIXED: usize = offset_of!(vfio_pci_hot_reset_info, devices);
    const EACH: usize = size_of::<vfio_pci_dependent_device>();
    let mut info = Structure::new(FIXED + EACH * MAX_RESET);
    let asked = kernel.described(device, Described::HotResetInfo, &mut info);
    let count = usize::try_from(info.field(offset_of!(vfio_pci_hot_reset_info, count)));
    let count = count.unwrap_or(usize::MAX);
    match asked.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) if count <= MAX_RESET => {}
        Ok(()) | Err((Some(libc::ENOSPC), _)) => {
            return Err(VfioError::ManyReset { count, most: MAX_RESET });
        }
        // Neither its slot nor its bus can be; or a function there is in no group.
        Err((Some(libc::ENODEV | libc::EPERM | libc::ENOTTY | libc::EINVAL), _)) => {
            return Ok(None);
        }
        Err((_, source)) => {
            let request = "DEVICE_GET_PCI_HOT_RESET_INFO";
            return Err(VfioError::Refused { request, source });
        }
    }
    let by_iommufd = info.field(offset_of!(vfio_pci_hot_reset_info, flags))
        & VFIO_PCI_HOT_RESET_FLAG_DEV_ID
        != 0;
    let one = |number: usize| {
        let at = FIXED + EACH * number;
        let owner = match read(info.bytes(), at).map(u32::from_ne_bytes)? {
            NOT_OWNED if by_iommufd => Owner::Other,
            _ if by_iommufd => Owner::Iommufd,
            group => Owner::Group(group),
        };
        let segment = read(info.bytes(), at + 4).map(u16::from_ne_bytes)?;
        let [bus, slot] = read(info.bytes(), at + 6)?;
        let address = PciAddress::new(bus, slot >> 3, slot & 7).ok()?.in_segment(segment);
        Some(Reached { address, owner })
    };
    let found: Option<Vec<Reached>> = (0..count).map(one).collect();
    let nonsense =
        || VfioError::Invalid("the bus is said to have what are no functions".to_owned());
    found.filter(|found| !found.is_empty()).map(Some).ok_or_else(nonsense)
}

/// Whether the bus of the function at `address` may be reset: everything that this reaches is of the group, which one
/// process has, and nothing else of it is in use.
///
/// # Errors
/// [`VfioError`], naming those that stand in the way.
pub(crate) fn may_reset(
    reached: &[Reached],
    (address, group): (PciAddress, u32),
    is_used: impl Fn(PciAddress) -> bool,
) -> Result<(), VfioError> {
    let foreign = reached.iter().filter_map(|one| match one.owner {
        Owner::Iommufd => None,
        Owner::Group(own) if own == group => None,
        Owner::Group(other) => Some(format!("{} of IOMMU group {other}", one.address)),
        Owner::Other => {
            Some(format!("{}, which is of another IOMMU group or not vfio-pci's", one.address))
        }
    });
    let foreign: Vec<String> = foreign.collect();
    if !foreign.is_empty() {
        return Err(VfioError::ForeignReset(first_of(&foreign)));
    }
    let used = reached.iter().map(|one| one.address).filter(|one| *one != address && is_used(*one));
    let used: Vec<String> = used.map(|one| one.to_string()).collect();
    if !used.is_empty() {
        return Err(VfioError::Busy(format!(
            "the kernel can reset it only with its whole bus, and in use there is {}",
            first_of(&used)
        )));
    }
    Ok(())
}

/// A screen of names.
fn first_of(names: &[String]) -> String {
    let more = if names.len() > MAX_NAMED { " and others" } else { "" };
    format!("{}{more}", names[..names.len().min(MAX_NAMED)].join(", "))
}

/// Resets the function's bus, whose functions are all of the group; without the group's file, those of its iommufd.
///
/// # Errors
/// [`VfioError::Refused`].
pub(crate) fn reset(
    kernel: &dyn Kernel,
    device: &Device,
    group: Option<BorrowedFd<'_>>,
) -> Result<(), VfioError> {
    const FIXED: usize = offset_of!(vfio_pci_hot_reset, group_fds);
    let mut reset = match group {
        Some(group) => Structure::new(FIXED + size_of::<i32>())
            .with(offset_of!(vfio_pci_hot_reset, count), 1)
            .with(FIXED, group.as_raw_fd().cast_unsigned()),
        None => Structure::new(FIXED),
    };
    let done = kernel.described(device.as_fd(), Described::HotReset, &mut reset);
    done.map_err(VfioError::refused("DEVICE_PCI_HOT_RESET"))
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
