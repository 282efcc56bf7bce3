//! The one place where the kernel is asked, and what is unsafe about that.
#![expect(unsafe_code, reason = "requests to the kernel have no safe form")]

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use iommufd_bindings::{iommu_ioas_iova_ranges, iommu_iova_range};
use rustix::fs::{Mode, OFlags};

use crate::abi::{self, Structure};

/// A request with a structure, which the kernel reads and fills no further than the structure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described {
    /// Of a group: is it viable.
    GroupStatus,
    /// Of a device.
    DeviceInfo,
    /// Of a device: one region.
    RegionInfo,
    /// Of a device: one kind of interrupt.
    InterruptInfo,
    /// To a device: whom to signal for its interrupts.
    SetInterrupts,
    /// Of a container.
    IommuInfo,
    /// To a container.
    MapDma,
    /// To a container.
    UnmapDma,
    /// Of a device: whom a reset of its bus reaches.
    HotResetInfo,
    /// To a device: a reset of its bus.
    HotReset,
    /// To a device's own file: be this iommufd's.
    BindIommufd,
    /// To a device that is bound: reach this address space.
    AttachIoas,
    /// To a device that is bound: reach nothing.
    DetachIoas,
    /// To an iommufd: a new address space.
    AllocateIoas,
    /// To an iommufd: map memory of this process.
    MapIoas,
    /// To an iommufd: map memory of a file.
    MapFileIoas,
    /// To an iommufd: take a mapping back.
    UnmapIoas,
    /// To an iommufd: end an address space that no device is attached to.
    DestroyIommu,
}

impl Described {
    fn number(self) -> u32 {
        match self {
            Self::GroupStatus => abi::GROUP_GET_STATUS,
            Self::DeviceInfo => abi::DEVICE_GET_INFO,
            Self::RegionInfo => abi::DEVICE_GET_REGION_INFO,
            Self::InterruptInfo => abi::DEVICE_GET_IRQ_INFO,
            Self::SetInterrupts => abi::DEVICE_SET_IRQS,
            Self::IommuInfo => abi::IOMMU_GET_INFO,
            Self::MapDma => abi::IOMMU_MAP_DMA,
            Self::UnmapDma => abi::IOMMU_UNMAP_DMA,
            Self::HotResetInfo => abi::DEVICE_GET_PCI_HOT_RESET_INFO,
            Self::HotReset => abi::DEVICE_PCI_HOT_RESET,
            Self::BindIommufd => abi::DEVICE_BIND_IOMMUFD,
            Self::AttachIoas => abi::DEVICE_ATTACH_IOMMUFD_PT,
            Self::DetachIoas => abi::DEVICE_DETACH_IOMMUFD_PT,
            Self::AllocateIoas => abi::IOMMU_IOAS_ALLOC,
            Self::MapIoas => abi::IOMMU_IOAS_MAP,
            Self::MapFileIoas => abi::IOMMU_IOAS_MAP_FILE,
            Self::UnmapIoas => abi::IOMMU_IOAS_UNMAP,
            Self::DestroyIommu => abi::IOMMU_DESTROY,
        }
    }
}

/// A request with a number or with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Of a container: its version.
    ApiVersion,
    /// Of a container: does it have this.
    CheckExtension(u32),
    /// To a container: be of this type.
    SetIommu(u32),
    /// To a device.
    Reset,
    /// To a group: leave its container.
    UnsetContainer,
}

/// What an address space of an iommufd may have mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoasRanges {
    /// First and last bus address of each range.
    pub ranges: Vec<(u64, u64)>,
    /// Bytes that bus addresses and sizes are multiples of.
    pub alignment: u64,
}

/// What is asked of the kernel, so that tests can put something in its place.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Opens a file of VFIO's to read and write, closed in programs that are run.
    ///
    /// # Errors
    /// As the kernel reports them.
    fn open(&self, path: &Path) -> io::Result<OwnedFd>;

    /// Major and minor number of the character device behind a descriptor; none of anything else.
    ///
    /// # Errors
    /// As the kernel reports them.
    fn number(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>>;

    /// Makes a request with a structure.
    ///
    /// # Errors
    /// As the kernel reports them.
    fn described(
        &self,
        fd: BorrowedFd<'_>,
        request: Described,
        structure: &mut Structure,
    ) -> io::Result<()>;

    /// What address space `number` of an iommufd may have mapped, at most `most` ranges.
    ///
    /// # Errors
    /// As the kernel reports them: ENOENT where `number` is no address space, EMSGSIZE where there are more.
    fn ioas_ranges(
        &self,
        iommufd: BorrowedFd<'_>,
        number: u32,
        most: usize,
    ) -> io::Result<IoasRanges>;

    /// Makes a plain request; its result.
    ///
    /// # Errors
    /// As the kernel reports them.
    fn plain(&self, fd: BorrowedFd<'_>, request: Plain) -> io::Result<u32>;

    /// Puts a group into a container.
    ///
    /// # Errors
    /// As the kernel reports them.
    fn set_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()>;

    /// Opens a device of a group by its name, which is its address.
    ///
    /// # Errors
    /// As the kernel reports them.
    fn device(&self, group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd>;
}

/// The kernel that runs here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

/// The result of a call, or why it failed.
fn result(returned: libc::c_int) -> io::Result<u32> {
    u32::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// A request with a structure is carried out: the one that has a result other than 0 then is for interrupts, of which
/// the host has fewer, and set none up.
fn whole(result: u32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        fewer => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the host has {fewer} vectors for it, and set up none"),
        )),
    }
}

impl Kernel for Linux {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn number(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
        ipc::vfio_file::number(fd)
    }

    fn described(
        &self,
        fd: BorrowedFd<'_>,
        request: Described,
        structure: &mut Structure,
    ) -> io::Result<()> {
        let bytes = structure.bytes_mut();
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // What was filled in last time may have changed it.
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        // SAFETY: every request of `Described` takes a structure of which the kernel reads the first
        // 4 bytes as its size, which is that of `bytes`, and then reads and writes no further than
        // that; it refuses one that is too short for it. On any other descriptor the number is
        // refused as unknown.
        let done = unsafe {
            libc::ioctl(fd.as_raw_fd(), request.number() as libc::Ioctl, bytes.as_mut_ptr())
        };
        whole(result(done)?)
    }

    fn ioas_ranges(
        &self,
        iommufd: BorrowedFd<'_>,
        number: u32,
        most: usize,
    ) -> io::Result<IoasRanges> {
        let mut ranges = vec![iommu_iova_range::default(); most];
        let mut asked = iommu_ioas_iova_ranges {
            size: u32::try_from(size_of::<iommu_ioas_iova_ranges>()).unwrap_or(u32::MAX),
            ioas_id: number,
            num_iovas: u32::try_from(most).unwrap_or(u32::MAX),
            allowed_iovas: ranges.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the kernel reads and writes a structure of the size that it says, and as many ranges behind the
        // address in it as it says, which is what there are. Both live through the call.
        let done = unsafe {
            libc::ioctl(
                iommufd.as_raw_fd(),
                abi::IOMMU_IOAS_IOVA_RANGES as libc::Ioctl,
                &raw mut asked,
            )
        };
        result(done)?;
        let count = usize::try_from(asked.num_iovas).unwrap_or(most).min(most);
        let ranges = ranges[..count].iter().map(|range| (range.start, range.last)).collect();
        Ok(IoasRanges { ranges, alignment: asked.out_iova_alignment })
    }

    fn plain(&self, fd: BorrowedFd<'_>, request: Plain) -> io::Result<u32> {
        let (number, argument) = match request {
            Plain::ApiVersion => (abi::GET_API_VERSION, 0),
            Plain::CheckExtension(extension) => (abi::CHECK_EXTENSION, extension),
            Plain::SetIommu(kind) => (abi::SET_IOMMU, kind),
            Plain::Reset => (abi::DEVICE_RESET, 0),
            Plain::UnsetContainer => (abi::GROUP_UNSET_CONTAINER, 0),
        };
        let argument = libc::c_ulong::from(argument);
        // SAFETY: these requests take a number, not an address: no memory is touched.
        result(unsafe { libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, argument) })
    }

    fn set_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        let number = container.as_raw_fd();
        // SAFETY: the kernel reads one descriptor's number, which lives through the call.
        let done = unsafe {
            libc::ioctl(
                group.as_raw_fd(),
                abi::GROUP_SET_CONTAINER as libc::Ioctl,
                &raw const number,
            )
        };
        result(done).map(drop)
    }

    fn device(&self, group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the kernel reads a string up to its end, which `CString` has; it lives through the
        // call.
        let opened = unsafe {
            libc::ioctl(group.as_raw_fd(), abi::GROUP_GET_DEVICE_FD as libc::Ioctl, name.as_ptr())
        };
        result(opened)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::error::VfioError;

    #[test]
    fn fewer_vectors_than_were_asked_for_are_no_success() {
        whole(0).unwrap();
        let fewer =
            VfioError::Refused { request: "DEVICE_SET_IRQS", source: whole(1).unwrap_err() };
        let fewer = fewer.of("Function 01:00.0", "SetInterrupts");
        assert_eq!(fewer.kind, cordon_backend::ErrorKind::NoSpace);
        assert!(fewer.text.contains("the host has 1 vectors"), "{fewer}");
    }

    #[test]
    fn what_is_no_vfio_refuses_every_request() {
        let null = Linux.open(Path::new("/dev/null")).unwrap();
        let fd = null.as_fd();
        let errno = |error: io::Error| error.raw_os_error();
        let refused = Some(libc::ENOTTY);
        for request in [
            Described::GroupStatus,
            Described::DeviceInfo,
            Described::RegionInfo,
            Described::InterruptInfo,
            Described::SetInterrupts,
            Described::IommuInfo,
            Described::MapDma,
            Described::UnmapDma,
            Described::HotResetInfo,
            Described::HotReset,
            Described::BindIommufd,
            Described::AttachIoas,
            Described::DetachIoas,
            Described::AllocateIoas,
            Described::MapIoas,
            Described::MapFileIoas,
            Described::UnmapIoas,
            Described::DestroyIommu,
        ] {
            let done = Linux.described(fd, request, &mut Structure::new(32));
            assert_eq!(errno(done.unwrap_err()), refused, "{request:?}");
        }
        for request in [
            Plain::ApiVersion,
            Plain::CheckExtension(3),
            Plain::SetIommu(3),
            Plain::Reset,
            Plain::UnsetContainer,
        ] {
            assert_eq!(errno(Linux.plain(fd, request).unwrap_err()), refused, "{request:?}");
        }
        assert_eq!(errno(Linux.set_container(fd, fd).unwrap_err()), refused);
        assert_eq!(errno(Linux.device(fd, "0000:01:00.0").unwrap_err()), refused);
        assert_eq!(errno(Linux.ioas_ranges(fd, 1, 4).unwrap_err()), refused);
        let none = Linux.device(fd, "0000:01\0").unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::InvalidInput);
    }
}
