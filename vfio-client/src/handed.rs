//! A group whose files a manager opened, for a process that may open none of VFIO's: what the descriptors are is
//! looked at first, since managers mix up numbers.
//!
//! Whoever handed them keeps duplicates, so that a group is in the container still in which a process had it that
//! is dead. It is taken out of that, which the kernel lets nobody do while a function of the group is open.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use cordon_backend::{HandedFile, HandedGroup};
use ipc::PciAddress;
use ipc::vfio_file::VfioFile;
use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_CONTAINER_SET;

use crate::container;
use crate::error::VfioError;
use crate::group::{self, CLEANUP, LOOK, Opened, is_busy};
use crate::kernel::{Kernel, Plain};
use crate::sysfs::Places;

/// A type of IOMMU that no kernel has.
const NO_TYPE: u32 = u32::MAX >> 1;

/// Puts the group of the function at `address` into the container that was handed, or into one of its own, and opens
/// its functions.
///
/// # Errors
/// [`VfioError`], naming the descriptor, what it is, and what it should be.
pub(crate) fn open(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    address: PciAddress,
    handed: HandedGroup,
) -> Result<Opened, VfioError> {
    let HandedGroup { group: file, container } = handed;
    let number = group::bound(places, address)?;
    // Only for what it says of groups without an IOMMU.
    places.file(number)?;
    // The number of its device may be another group's by then, or nobody's.
    if is_gone(kernel.as_ref(), &file) {
        return Err(VfioError::GroupGone { number: file.number, group: number });
    }
    match what(kernel.as_ref(), places, &file)? {
        VfioFile::Group(is) if is == number => {}
        VfioFile::Group(is) => {
            return Err(VfioError::OtherGroup { number: file.number, is, address, group: number });
        }
        is => return Err(other(&file, "the file of a group", is)),
    }
    leave(kernel.as_ref(), number, &file)?;
    let container = match container {
        Some(one) => {
            match what(kernel.as_ref(), places, &one)? {
                VfioFile::Container => {}
                is => return Err(other(&one, "a container", is)),
            }
            container::check(kernel.as_ref(), one.file.as_fd())?;
            unused(kernel.as_ref(), &one)?;
            one.file
        }
        None => {
            let own = group::new_container(kernel.as_ref(), places)?;
            container::check(kernel.as_ref(), own.as_fd())?;
            own
        }
    };
    group::enter(kernel, places, (number, file.file), container)
}

/// Which file was handed.
pub(crate) fn what(
    kernel: &dyn Kernel,
    places: &Places,
    one: &HandedFile,
) -> Result<VfioFile, VfioError> {
    let number = kernel.number(one.file.as_fd()).map_err(VfioError::refused("fstat"))?;
    let numbered = |number| VfioFile::numbered(number, &places.sys);
    Ok(number.map_or_else(VfioFile::no_device, numbered))
}

/// That it is another than it should be.
pub(crate) fn other(one: &HandedFile, wanted: &'static str, is: VfioFile) -> VfioError {
    VfioError::OtherFile { number: one.number, wanted, is }
}

/// Whether the kernel has taken back the group that this was the file of.
fn is_gone(kernel: &dyn Kernel, file: &HandedFile) -> bool {
    let flags = group::flags(kernel, &file.file);
    matches!(flags, Err(VfioError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV))
}

/// Takes the group out of the container that it is in, if it is in one. What a process had open that was killed is
/// closed a little after its end.
fn leave(kernel: &dyn Kernel, group: u32, file: &HandedFile) -> Result<(), VfioError> {
    let number = file.number;
    let until = Instant::now() + CLEANUP;
    loop {
        if group::flags(kernel, &file.file)? & VFIO_GROUP_FLAGS_CONTAINER_SET == 0 {
            return Ok(());
        }
        match kernel.plain(file.file.as_fd(), Plain::UnsetContainer) {
            Ok(_) => return Ok(()),
            Err(error) if is_busy(&error) && Instant::now() < until => std::thread::sleep(LOOK),
            Err(error) if is_busy(&error) => return Err(VfioError::GroupInUse { number, group }),
            Err(source) => {
                return Err(VfioError::Refused { request: "GROUP_UNSET_CONTAINER", source });
            }
        }
    }
}

/// Whether no group is in a container. The kernel gives a type to one that has a group and no type yet, so it is
/// asked for a type that there is none of: it looks for that only then. One that has a type describes it.
fn unused(kernel: &dyn Kernel, container: &HandedFile) -> Result<(), VfioError> {
    let asked = kernel.plain(container.file.as_fd(), Plain::SetIommu(NO_TYPE));
    let has_none = asked.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
    if !has_none || container::has_type(kernel, container.file.as_fd()) {
        return Err(VfioError::ContainerInUse(container.number));
    }
    Ok(())
}

#[cfg(test)]
#[path = "handed_tests.rs"]
mod tests;
