//! Opening the functions of a group by files of their own, for an iommufd (Linux 6.6 and later).
//!
//! A function is *bound* to an iommufd, which opens it and, as for a group, resets it; and then *attached* to an
//! address space, whose memory it reaches from there on. The kernel lets one process bind a function, and one iommufd
//! have the functions of a group. Both end when the file is closed.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cordon_backend::{HandedDevices, HandedFile, LeftFunction};
use ipc::PciAddress;
use ipc::vfio_file::VfioFile;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt};

use crate::abi::Structure;
use crate::address_space::{AddressSpace, Mapper};
use crate::bus;
use crate::device::Device;
use crate::error::VfioError;
use crate::group::{self, CLEANUP, LOOK, Opened, OpenedDevice};
use crate::handed::{other, what};
use crate::ioas::{self, ClearError, Ioas};
use crate::kernel::{Described, Kernel};
use crate::limits::MAX_FUNCTIONS;
use crate::sysfs::{Places, is_vfio, name};

/// The request by which a function is bound.
pub(crate) const BIND: &str = "DEVICE_BIND_IOMMUFD";
/// Kinds of interrupts that a driver switches on.
const SWITCHED: [u32; 3] = [0, 1, 2];

/// A function and its own file.
type Own = (PciAddress, OwnedFd);

/// Opens the functions of the group of `address` by their own files, for an iommufd of this process. `None` where the
/// kernel has none of that, or this user may not use it: there is the group's file then.
///
/// # Errors
/// [`VfioError`].
pub(crate) fn open(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    address: PciAddress,
) -> Result<Option<Opened>, VfioError> {
    let number = group::bound(places, address)?;
    // Only for what it says of groups without an IOMMU.
    places.file(number)?;
    if places.cdev(&name(address)).is_none() {
        return Ok(None);
    }
    let Some(iommufd) = within_reach(kernel.open(&places.dev.join("iommu")), "iommu")? else {
        return Ok(None);
    };
    let mut files: Vec<Own> = Vec::new();
    for (function, path) in members(places, number)? {
        let Some(path) = path else { return Ok(None) };
        match within_reach(kernel.open(&path), &path)? {
            Some(file) => files.push((function, file)),
            None => return Ok(None),
        }
    }
    for (at, (function, file)) in files.iter().enumerate() {
        match bind(kernel.as_ref(), places, (*function, number), file, iommufd.as_fd()) {
            // The kernel has a switch of its own for machines without interrupt remapping, beside that of containers.
            Err(VfioError::Refused { source, .. })
                if at == 0 && source.raw_os_error() == Some(libc::EPERM) =>
            {
                return Ok(None);
            }
            other => other?,
        }
    }
    let ioas = Ioas::allocate(Arc::clone(kernel), iommufd)?;
    attached(kernel, number, ioas, files).map(Some)
}

/// A file that was opened; `None` of one that there is not, or that others may use.
fn within_reach(
    opened: io::Result<OwnedFd>,
    path: impl AsRef<Path>,
) -> Result<Option<OwnedFd>, VfioError> {
    const OUT_OF_REACH: [i32; 5] =
        [libc::ENOENT, libc::EACCES, libc::EPERM, libc::ENODEV, libc::ENXIO];
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error().is_some_and(|one| OUT_OF_REACH.contains(&one)) => {
            Ok(None)
        }
        Err(source) => Err(VfioError::Open { path: path.as_ref().to_owned(), source }),
    }
}

/// The functions of a group that are VFIO's, and their own files, as far as they are here.
fn members(places: &Places, group: u32) -> Result<Vec<(PciAddress, Option<PathBuf>)>, VfioError> {
    let mut found = Vec::new();
    for member in places.members(group)? {
        let Ok(function) = member.parse::<PciAddress>() else { continue };
        let is_bound = places.driver(&member)?.as_deref().is_some_and(is_vfio);
        if is_bound {
            if found.len() >= MAX_FUNCTIONS {
                return Err(VfioError::TooMany { group, most: MAX_FUNCTIONS });
            }
            found.push((function, places.cdev(&member)));
        }
    }
    found.sort_unstable_by_key(|(function, _)| *function);
    Ok(found)
}

/// Attaches functions that are bound to an address space of their iommufd that nothing is mapped in.
fn attached(
    kernel: &Arc<dyn Kernel>,
    number: u32,
    ioas: Ioas,
    files: Vec<Own>,
) -> Result<Opened, VfioError> {
    let mut devices = Vec::new();
    for (function, file) in files {
        ioas.attach(file.as_fd())?;
        let device = Device::new(Arc::clone(kernel), file, function)?;
        devices.push(OpenedDevice::new(device));
    }
    let space = AddressSpace::new(Mapper::Ioas(ioas))?;
    Ok(Opened { number, file: None, space, devices })
}

/// One attempt to bind.
fn try_bind(
    kernel: &dyn Kernel,
    device: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
) -> io::Result<()> {
    // The field for a token is newer, and used with a flag only.
    let mut bind = Structure::new(offset_of!(vfio_device_bind_iommufd, out_devid) + 4)
        .with(offset_of!(vfio_device_bind_iommufd, iommufd), iommufd.as_raw_fd().cast_unsigned());
    kernel.described(device, Described::BindIommufd, &mut bind)
}

/// Binds a function to an iommufd. What a process had open that was killed is closed a little after its end.
fn bind(
    kernel: &dyn Kernel,
    places: &Places,
    (function, group): (PciAddress, u32),
    file: &OwnedFd,
    iommufd: BorrowedFd<'_>,
) -> Result<(), VfioError> {
    const HELD: [i32; 3] = [libc::EBUSY, libc::EINVAL, libc::EPERM];
    let until = Instant::now() + CLEANUP;
    loop {
        let source = match try_bind(kernel, file.as_fd(), iommufd) {
            Ok(()) => return Ok(()),
            Err(source) => source,
        };
        let errno = source.raw_os_error();
        let refused = |source| VfioError::Refused { request: BIND, source };
        if !errno.is_some_and(|one| HELD.contains(&one)) {
            return Err(refused(source));
        }
        let obstacles = places.obstacles(group);
        if !obstacles.is_empty() {
            return Err(VfioError::NotViable { group, obstacles });
        }
        if Instant::now() >= until {
            let members = places.members(group).unwrap_or_default().join(", ");
            let own = places.cdev(&name(function)).and_then(|path| places.holder(&path));
            let by_group = || places.file(group).ok().and_then(|path| places.holder(&path));
            let holder = own.or_else(by_group);
            // Also what the kernel says of a machine without interrupt remapping.
            if errno == Some(libc::EPERM) && holder.is_none() {
                return Err(refused(source));
            }
            return Err(VfioError::Held { group, holder, members });
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes over what a process left that is dead, as [`group::adopt`] does. Functions of the group that it had not
/// claimed are opened if they can be, by their paths or, where files were handed, by those only; others are left out.
///
/// # Errors
/// [`VfioError`] when it is something else than an iommufd with an address space, and devices; or when another process of
/// ours has been handed one of them meanwhile.
pub(crate) fn adopt(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    address: PciAddress,
    (iommufd, functions): (OwnedFd, Vec<LeftFunction>),
    handed: Option<HandedDevices>,
) -> Result<Opened, VfioError> {
    let number = places.group(address)?;
    for one in &functions {
        // Before anything is looked at that somebody else may have made since.
        if let Some(file) = one.descriptors.first() {
            lock(file, -1).map_err(|_| VfioError::TakenMeanwhile(one.address))?;
        }
    }
    let ioas = Ioas::find(Arc::clone(kernel), iommufd)?;
    let mut devices = group::left(kernel, functions)?;
    let is_open = |devices: &[OpenedDevice], function| {
        devices.iter().any(|one| one.device.identity().address == function)
    };
    let others: Vec<(Own, bool)> = match handed {
        Some(handed) => {
            let files = functions_of(kernel.as_ref(), places, address, number, handed.devices)?;
            let mut bound = Vec::new();
            for (function, file) in files {
                let is_it = |one: &&mut OpenedDevice| one.device.identity().address == function;
                if let Some(open) = devices.iter_mut().find(is_it) {
                    open.duplicate = Some(file.file);
                    continue;
                }
                lock(&file.file, file.number)?;
                let was_bound = take_back(kernel.as_ref(), &file.file)?;
                bound.push(((function, file.file), was_bound));
            }
            bound
        }
        None => members(places, number)?
            .into_iter()
            .filter(|(function, _)| !is_open(&devices, *function))
            .filter_map(|(function, path)| Some(((function, kernel.open(&path?).ok()?), false)))
            .collect(),
    };
    for ((function, file), was_bound) in others {
        let iommufd = ioas.descriptor();
        let is_bound =
            was_bound || try_bind(kernel.as_ref(), file.as_fd(), iommufd.as_fd()).is_ok();
        if !is_bound || ioas.attach(file.as_fd()).is_err() {
            continue;
        }
        let device = Device::new(Arc::clone(kernel), file, function)?;
        if was_bound {
            quiet(&device)?;
            device.is_resettable().then(|| device.reset()).transpose()?;
        }
        devices.push(OpenedDevice::new(device));
    }
    devices.sort_unstable_by_key(|one| one.device.identity().address);
    let space = AddressSpace::adopted(Mapper::Ioas(ioas))?;
    Ok(Opened { number, file: None, space, devices })
}

/// Opens functions whose own files were handed, for the iommufd that was handed with them.
///
/// Whoever handed them keeps duplicates, so that a function is bound still that a process had which is dead. It is
/// taken from the memory of that, and reset.
///
/// # Errors
/// [`VfioError`], naming the descriptor, what it is, and what it should be.
pub(crate) fn open_handed(
    kernel: &Arc<dyn Kernel>,
    places: &Places,
    address: PciAddress,
    handed: HandedDevices,
) -> Result<Opened, VfioError> {
    let HandedDevices { devices, iommufd } = handed;
    let number = group::bound(places, address)?;
    places.file(number)?;
    if devices.is_empty() {
        return Err(VfioError::Unsupported(
            "its file was closed when the kernel took it back: whoever handed it must open it again, and hand that",
        ));
    }
    let files = functions_of(kernel.as_ref(), places, address, number, devices)?;
    if !files.iter().any(|(function, _)| *function == address) {
        return Err(VfioError::Invalid(format!("the file of {address} was not handed")));
    }
    match what(kernel.as_ref(), places, &iommufd)? {
        VfioFile::Iommufd => {}
        is => return Err(other(&iommufd, "an iommufd", is)),
    }
    for (_, file) in &files {
        lock(&file.file, file.number)?;
    }
    let mut left = Vec::new();
    for (function, file) in &files {
        if take_back(kernel.as_ref(), &file.file)? {
            left.push(*function);
        } else {
            let of = (*function, number);
            bind(kernel.as_ref(), places, of, &file.file, iommufd.file.as_fd())?;
        }
    }
    ioas::clear(kernel.as_ref(), iommufd.file.as_fd()).map_err(|error| match error {
        ClearError::InUse => VfioError::IommufdInUse(iommufd.number),
        ClearError::Other(error) => error,
    })?;
    // One that is bound to another iommufd would be attached to whatever has the number there.
    let ioas = Ioas::allocate(Arc::clone(kernel), iommufd.file)?;
    for (function, file) in files.iter().filter(|(function, _)| left.contains(function)) {
        if ioas.attach(file.file.as_fd()).is_err() || !ioas.is_attached()? {
            let _ = take_back(kernel.as_ref(), &file.file);
            let function = *function;
            return Err(VfioError::OtherIommufd { number: file.number, function });
        }
        take_back(kernel.as_ref(), &file.file)?;
    }
    let files = files.into_iter().map(|(function, file)| (function, file.file)).collect();
    let opened = attached(kernel, number, ioas, files)?;
    let is_left = |one: &&OpenedDevice| left.contains(&one.device.identity().address);
    for one in opened.devices.iter().filter(is_left) {
        renew(kernel.as_ref(), number, &one.device)?;
    }
    Ok(opened)
}

/// Which functions files that were handed are of, in the order of their addresses.
fn functions_of(
    kernel: &dyn Kernel,
    places: &Places,
    address: PciAddress,
    group: u32,
    devices: Vec<HandedFile>,
) -> Result<Vec<(PciAddress, HandedFile)>, VfioError> {
    let of_group = members(places, group)?;
    let mut files: Vec<(PciAddress, HandedFile)> = Vec::new();
    for file in devices {
        let called = match what(kernel, places, &file)? {
            VfioFile::Device(called) => called,
            is => return Err(other(&file, "the file of a device", is)),
        };
        let has_it = |(function, _): &&(PciAddress, _)| {
            places.own_name(&name(*function)).is_some_and(|own| own == called)
        };
        match of_group.iter().find(has_it) {
            Some((function, _)) if files.iter().any(|(one, _)| one == function) => {
                let why =
                    format!("descriptor {} is {function}, which was handed twice", file.number);
                return Err(VfioError::Invalid(why));
            }
            Some((function, _)) => files.push((*function, file)),
            None => {
                let number = file.number;
                return Err(VfioError::OtherDevice { number, is: called, address, group });
            }
        }
    }
    files.sort_unstable_by_key(|(function, _)| *function);
    Ok(files)
}

/// Has other processes of ours that are handed the same file know that one uses it: to the kernel they are one. The
/// lock is of this process, and ends with it.
fn lock(file: &OwnedFd, number: i32) -> Result<(), VfioError> {
    let until = Instant::now() + CLEANUP;
    loop {
        match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => std::thread::sleep(LOOK),
            Err(Errno::AGAIN | Errno::ACCESS) => return Err(VfioError::DeviceInUse(number)),
            Err(error) => return Err(VfioError::refused("fcntl")(error.into())),
        }
    }
}

/// Takes a function out of the address space of a process that bound it and is dead; `false` where none is bound.
fn take_back(kernel: &dyn Kernel, file: &OwnedFd) -> Result<bool, VfioError> {
    let mut detach = Structure::new(offset_of!(vfio_device_detach_iommufd_pt, flags) + 4);
    match kernel.described(file.as_fd(), Described::DetachIoas, &mut detach) {
        Ok(()) => Ok(true),
        // Nobody has bound it, or another file is bound: whoever binds it is told.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(source) => Err(VfioError::Refused { request: "DEVICE_DETACH_IOMMUFD_PT", source }),
    }
}

/// Has a function neither reach memory nor interrupt.
fn quiet(device: &Device) -> Result<(), VfioError> {
    for index in SWITCHED {
        if device.interrupts(index) > 0 {
            // Refused where it is not on.
            let _ = device.signal(index, &[]);
        }
    }
    device.switch_off()
}

/// Brings a function to where the kernel has one that it opens, but for what vfio-pci itself keeps of its config space.
fn renew(kernel: &dyn Kernel, group: u32, device: &Device) -> Result<(), VfioError> {
    if device.is_resettable() {
        device.reset()?;
    } else if let Some(reached) = bus::reached(kernel, device.as_fd())? {
        // Nothing of the group is used yet.
        bus::may_reset(&reached, (device.identity().address, group), |_| false)?;
        bus::reset(kernel, device, None)?;
    } else {
        return Err(VfioError::Unsupported(
            "a process that is dead left it as it is, and the kernel has no way to reset it: its file is to be opened anew",
        ));
    }
    // A reset of the kernel's leaves the guest's COMMAND.
    quiet(device)
}

#[cfg(test)]
#[path = "cdev_tests.rs"]
mod tests;
