//! Opening an IOMMU group by its file: that, its container, and the devices in it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::mem::{offset_of, size_of};

use cordon_backend::{Left, LeftFunction};
use ipc::PciAddress;
use vfio_bindings::bindings::vfio::{
    VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE, vfio_group_status,
};

use crate::abi::Structure;
use crate::address_space::{AddressSpace, Mapper};
use crate::cdev;
use crate::container::{self, Container};
use crate::device::Device;
use crate::error::VfioError;
use crate::kernel::{Described, Kernel};
use crate::limits::MAX_FUNCTIONS;
use crate::sysfs::{Places, is_vfio, name};

/// How long a group may still be held by what a process left behind that has just ended.
pub(crate) const CLEANUP: Duration = Duration::from_millis(500);
/// How often that is looked for.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

/// A group that is open, and its functions.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Its number.
    pub(crate) number: u32,
    /// Its file, where it was opened by that.
    pub(crate) file: Option<OwnedFd>,
    /// Its DMA space.
    pub(crate) space: AddressSpace,
    /// Those of its functions that are VFIO's, in the order of their addresses.
    pub(crate) devices: Vec<OpenedDevice>,
}

/// What there is of a function whose group was opened or adopted.
#[derive(Debug)]
pub(crate) struct OpenedDevice {
    /// It.
    pub(crate) device: Device,
    /// An adopted one's event of the kernel's for wanting it back.
    pub(crate) request: Option<OwnedFd>,
    /// Whether a process that is dead claimed it: it is left as it is.
    pub(crate) claimed: bool,
    /// Its file as it was handed once more. Closed before the function is, it would take the lock along that keeps
    /// other processes from it, which is of this process and the file.
    pub(crate) duplicate: Option<OwnedFd>,
}

impl OpenedDevice {
    /// One that nobody has used.
    pub(crate) fn new(device: Device) -> Self {
        Self { device, request: None, claimed: false, duplicate: None }
    }
}

fn opening(kernel: &dyn Kernel, path: &Path) -> Result<OwnedFd, VfioError> {
    kernel.open(path).map_err(|source| VfioError::Open { path: path.to_owned(), source })
}

/// The file of a group, which one process has open at a time: the kernel closes what a process held that
/// was killed a little after its end.
fn exclusive(kernel: &dyn Kernel, places: &Places, group: u32) -> Result<OwnedFd, VfioError> {
    let path = places.file(group)?;
    let until = Instant::now() + CLEANUP;
    loop {
        match opening(kernel, &path) {
            Err(VfioError::Open { source, .. }) if is_busy(&source) => {
                if Instant::now() >= until {
                    let members = places.members(group).unwrap_or_default().join(", ");
                    let holder = places.holder(&path);
                    return Err(VfioError::Held { group, holder, members });
                }
                std::thread::sleep(LOOK);
            }
            other => return other,
        }
    }
}

pub(crate) fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Opens the group of the function at `address`, puts it into a container of its own, and opens the
/// functions of it, whichever device they are of: no other process can. The kernel resets a device that it
/// opens.
///
/// # Errors
/// [`VfioError`], naming the group, functions and drivers that stand in the way.
pub(crate) fn open(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    address: PciAddress,
) -> Result<Opened, VfioError> {
    let number = bound(places, address)?;
    let file = exclusive(kernel.as_ref(), places, number)?;
    let container = new_container(kernel.as_ref(), places)?;
    container::check(kernel.as_ref(), container.as_fd())?;
    enter(kernel, places, (number, file), container)
}

/// The group of a function that is VFIO's.
pub(crate) fn bound(places: &Places, address: PciAddress) -> Result<u32, VfioError> {
    let number = places.group(address)?;
    let driver = places.driver(&name(address))?;
    if !driver.as_deref().is_some_and(is_vfio) {
        return Err(VfioError::OtherDriver { address, driver });
    }
    Ok(number)
}

/// A container that nobody else has.
pub(crate) fn new_container(kernel: &dyn Kernel, places: &Places) -> Result<OwnedFd, VfioError> {
    opening(kernel, &places.dev.join("vfio/vfio"))
}

/// Puts a group that is in none into a container, and opens its functions.
pub(crate) fn enter(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    (number, file): (u32, OwnedFd),
    container: OwnedFd,
) -> Result<Opened, VfioError> {
    if flags(kernel.as_ref(), &file)? & VFIO_GROUP_FLAGS_VIABLE == 0 {
        let obstacles = places.obstacles(number);
        return Err(VfioError::NotViable { group: number, obstacles });
    }
    kernel
        .set_container(file.as_fd(), container.as_fd())
        .map_err(VfioError::refused("GROUP_SET_CONTAINER"))?;
    let container = Container::new(Arc::clone(kernel), container)?;
    let space = AddressSpace::new(Mapper::Container(container))?;
    let mut devices = Vec::new();
    open_members(kernel, places, (number, &file), &mut devices)?;
    Ok(Opened { number, file: Some(file), space, devices })
}

/// Takes over what a process left that is dead: what it had claimed is not opened, so it is not reset, and the
/// container has what was mapped. The other functions of the group are opened.
///
/// # Errors
/// [`VfioError`] when it is something else than a group in its container or an iommufd, and devices.
pub(crate) fn adopt(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    address: PciAddress,
    left: Left,
) -> Result<Opened, VfioError> {
    let Left { mut group, functions, handed } = left;
    let [file, container] = match (group.pop(), group.pop(), group.len()) {
        (Some(container), Some(file), 0) => [file, container],
        (Some(iommufd), None, _) => {
            return cdev::adopt(kernel, places, address, (iommufd, functions), handed);
        }
        (_, two, rest) => {
            let count = rest + if two.is_some() { 2 } else { 0 };
            let why = format!("{count} descriptors of a group were left instead of 1 or 2");
            return Err(VfioError::Invalid(why));
        }
    };
    if flags(kernel.as_ref(), &file)? & VFIO_GROUP_FLAGS_CONTAINER_SET == 0 {
        return Err(VfioError::Invalid("the group that was left is in no container".to_owned()));
    }
    container::check(kernel.as_ref(), container.as_fd())?;
    let container = Container::adopted(Arc::clone(kernel), container);
    let space = AddressSpace::adopted(Mapper::Container(container))?;
    let number = places.group(address)?;
    let mut devices = self::left(kernel, functions)?;
    open_members(kernel, places, (number, &file), &mut devices)?;
    Ok(Opened { number, file: Some(file), space, devices })
}

/// What a dead process had claimed, as it is.
///
/// # Errors
/// [`VfioError`] when it is something else than devices.
pub(crate) fn left(
    kernel: &Arc<dyn Kernel>,
    functions: Vec<LeftFunction>,
) -> Result<Vec<OpenedDevice>, VfioError> {
    let one = |LeftFunction { address, descriptors, request }: LeftFunction| {
        let count = descriptors.len();
        let [device] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| {
            let why = format!("{count} descriptors of {address} were left instead of 1");
            VfioError::Invalid(why)
        })?;
        let device = Device::new(Arc::clone(kernel), device, address)?;
        Ok(OpenedDevice { request, claimed: true, ..OpenedDevice::new(device) })
    };
    functions.into_iter().map(one).collect()
}

/// Opens the functions of a group that are VFIO's and are not open yet.
fn open_members(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    (number, file): (u32, &OwnedFd),
    devices: &mut Vec<OpenedDevice>,
) -> Result<(), VfioError> {
    for member in places.members(number)? {
        let Ok(function) = member.parse::<PciAddress>() else { continue };
        let is_open = devices.iter().any(|one| one.device.identity().address == function);
        if !is_open && places.driver(&member)?.as_deref().is_some_and(is_vfio) {
            if devices.len() >= MAX_FUNCTIONS {
                return Err(VfioError::TooMany { group: number, most: MAX_FUNCTIONS });
            }
            let fd = kernel
                .device(file.as_fd(), &member)
                .map_err(VfioError::refused("GROUP_GET_DEVICE_FD"))?;
            let device = Device::new(Arc::clone(kernel), fd, function)?;
            devices.push(OpenedDevice::new(device));
        }
    }
    devices.sort_unstable_by_key(|one| one.device.identity().address);
    Ok(())
}

/// What the kernel says of a group.
pub(crate) fn flags(kernel: &dyn Kernel, file: &OwnedFd) -> Result<u32, VfioError> {
    let mut status = Structure::new(size_of::<vfio_group_status>());
    kernel
        .described(file.as_fd(), Described::GroupStatus, &mut status)
        .map_err(VfioError::refused("GROUP_GET_STATUS"))?;
    Ok(status.field(offset_of!(vfio_group_status, flags)))
}
