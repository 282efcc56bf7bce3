//! An address space of an iommufd: memory is mapped by its file, or where the kernel does not know that yet (before
//! Linux 6.13), by its address in this process.
//!
//! An iommufd has several of them, by numbers. One that we use has one: what a process left in it that is dead is
//! ended, or found and gone on with.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings::{
    iommu_destroy, iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_unmap,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITABLE,
};
use vfio_bindings::bindings::vfio::vfio_device_attach_iommufd_pt;

use crate::abi::Structure;
use crate::address_space::{Range, Space};
use crate::error::VfioError;
use crate::kernel::{Described, Kernel};
use crate::limits::{MAX_AREAS, MAX_OBJECTS};

/// Mappings that it takes: the kernel has no limit but that of locked memory.
const MAPPINGS: u64 = 65_535;

/// An address space of an iommufd.
#[derive(Debug)]
pub(crate) struct Ioas {
    kernel: Arc<dyn Kernel>,
    iommufd: Arc<OwnedFd>,
    number: u32,
    maps_files: bool,
}

impl Ioas {
    /// A new one.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn allocate(kernel: Arc<dyn Kernel>, iommufd: OwnedFd) -> Result<Self, VfioError> {
        let mut new = Structure::new(size_of::<iommu_ioas_alloc>());
        kernel
            .described(iommufd.as_fd(), Described::AllocateIoas, &mut new)
            .map_err(VfioError::refused("IOMMU_IOAS_ALLOC"))?;
        let number = new.field(offset_of!(iommu_ioas_alloc, out_ioas_id));
        Self::numbered(kernel, iommufd, number)
    }

    /// The one that a dead process used.
    ///
    /// # Errors
    /// [`VfioError::Invalid`] when there is none, or several.
    pub(crate) fn find(kernel: Arc<dyn Kernel>, iommufd: OwnedFd) -> Result<Self, VfioError> {
        let found: Vec<u32> = numbers(kernel.as_ref(), iommufd.as_fd())?;
        let &[number] = found.as_slice() else {
            let count = found.len();
            let why = format!("the iommufd that was left has {count} address spaces instead of 1");
            return Err(VfioError::Invalid(why));
        };
        Self::numbered(kernel, iommufd, number)
    }

    fn numbered(kernel: Arc<dyn Kernel>, iommufd: OwnedFd, number: u32) -> Result<Self, VfioError> {
        // Nothing is mapped by this: there is no such file. A kernel that does not know the request does not look.
        let mut nothing = Structure::new(size_of::<iommu_ioas_map_file>())
            .with(offset_of!(iommu_ioas_map_file, ioas_id), number)
            .with(offset_of!(iommu_ioas_map_file, flags), FIXED | READABLE)
            .with(offset_of!(iommu_ioas_map_file, fd), u32::MAX);
        let asked = kernel.described(iommufd.as_fd(), Described::MapFileIoas, &mut nothing);
        let maps_files = asked.is_err_and(|error| error.raw_os_error() != Some(libc::ENOTTY));
        Ok(Self { kernel, iommufd: Arc::new(iommufd), number, maps_files })
    }

    /// The descriptor of its iommufd.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.iommufd)
    }

    /// Whether memory is mapped by its file.
    pub(crate) fn maps_files(&self) -> bool {
        self.maps_files
    }

    /// Has a device that is bound to its iommufd reach what is mapped.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn attach(&self, device: BorrowedFd<'_>) -> Result<(), VfioError> {
        // The field for parts of a device's memory is newer, and used with a flag only.
        let mut attach = Structure::new(offset_of!(vfio_device_attach_iommufd_pt, pt_id) + 4)
            .with(offset_of!(vfio_device_attach_iommufd_pt, pt_id), self.number);
        let done = self.kernel.described(device, Described::AttachIoas, &mut attach);
        done.map_err(VfioError::refused("DEVICE_ATTACH_IOMMUFD_PT"))
    }

    /// Whether a device is attached. If none is attached, the kernel destroys the address space; do not use it then.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn is_attached(&self) -> Result<bool, VfioError> {
        match destroy(self.kernel.as_ref(), self.iommufd.as_fd(), self.number) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
            other => other.map(|()| false).map_err(VfioError::refused("IOMMU_DESTROY")),
        }
    }

    /// What its IOMMU can do: known once a device is attached.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn describe(&self) -> Result<Space, VfioError> {
        let most = usize::try_from(MAX_AREAS).unwrap_or(usize::MAX);
        let said = self.kernel.ioas_ranges(self.iommufd.as_fd(), self.number, most);
        let said = said.map_err(VfioError::refused("IOMMU_IOAS_IOVA_RANGES"))?;
        let page = rustix::param::page_size() as u64;
        let granule = said.alignment.max(page);
        if !granule.is_power_of_two() {
            let why = format!("the IOMMU is said to map multiples of {granule:#x} bytes");
            return Err(VfioError::Invalid(why));
        }
        Ok(Space { granule, ranges: said.ranges, mappings: MAPPINGS })
    }

    /// Has the kernel map a range.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn map(&self, range: &Range<'_>) -> Result<(), VfioError> {
        let flags = FIXED | READABLE | if range.writable { WRITABLE } else { 0 };
        if !self.maps_files {
            let mut map = Structure::new(size_of::<iommu_ioas_map>())
                .with(offset_of!(iommu_ioas_map, flags), flags)
                .with(offset_of!(iommu_ioas_map, ioas_id), self.number)
                .with_long(offset_of!(iommu_ioas_map, user_va), range.address()?)
                .with_long(offset_of!(iommu_ioas_map, length), range.size)
                .with_long(offset_of!(iommu_ioas_map, iova), range.at);
            let done = self.kernel.described(self.iommufd.as_fd(), Described::MapIoas, &mut map);
            return done.map_err(VfioError::refused("IOMMU_IOAS_MAP"));
        }
        let (_, _, start) = range.memory;
        let mut map = Structure::new(size_of::<iommu_ioas_map_file>())
            .with(offset_of!(iommu_ioas_map_file, flags), flags)
            .with(offset_of!(iommu_ioas_map_file, ioas_id), self.number)
            .with(offset_of!(iommu_ioas_map_file, fd), range.file.as_raw_fd().cast_unsigned())
            .with_long(offset_of!(iommu_ioas_map_file, start), start)
            .with_long(offset_of!(iommu_ioas_map_file, length), range.size)
            .with_long(offset_of!(iommu_ioas_map_file, iova), range.at);
        let done = self.kernel.described(self.iommufd.as_fd(), Described::MapFileIoas, &mut map);
        done.map_err(VfioError::refused(MAP_FILE))
    }

    /// Has the kernel take a range back; how many bytes that were.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn unmap(&self, at: u64, size: u64) -> Result<u64, VfioError> {
        let mut unmap = Structure::new(size_of::<iommu_ioas_unmap>())
            .with(offset_of!(iommu_ioas_unmap, ioas_id), self.number)
            .with_long(offset_of!(iommu_ioas_unmap, iova), at)
            .with_long(offset_of!(iommu_ioas_unmap, length), size);
        let done = self.kernel.described(self.iommufd.as_fd(), Described::UnmapIoas, &mut unmap);
        done.map_err(VfioError::refused("IOMMU_IOAS_UNMAP"))?;
        Ok(unmap.long(offset_of!(iommu_ioas_unmap, length)))
    }
}

/// The request by which memory of a file is mapped.
pub(crate) const MAP_FILE: &str = "IOMMU_IOAS_MAP_FILE";

/// The numbers of the address spaces of an iommufd. The kernel gives the lowest number that is free to whatever is
/// made.
fn numbers(kernel: &dyn Kernel, iommufd: BorrowedFd<'_>) -> Result<Vec<u32>, VfioError> {
    let is_one = |number: &u32| match kernel.ioas_ranges(iommufd, *number, 0) {
        Ok(_) => Some(Ok(*number)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EMSGSIZE) => Some(Ok(*number)),
            Some(libc::ENOENT) => None,
            _ => Some(Err(VfioError::Refused { request: "IOMMU_IOAS_IOVA_RANGES", source: error })),
        },
    };
    (1..=MAX_OBJECTS).filter_map(|number| is_one(&number)).collect()
}

fn destroy(kernel: &dyn Kernel, iommufd: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    let mut one =
        Structure::new(size_of::<iommu_destroy>()).with(offset_of!(iommu_destroy, id), number);
    kernel.described(iommufd, Described::DestroyIommu, &mut one)
}

/// Ends the address spaces that a dead process left in an iommufd, which is for us alone.
///
/// # Errors
/// Why one cannot be: a device is attached to it.
pub(crate) fn clear(kernel: &dyn Kernel, iommufd: BorrowedFd<'_>) -> Result<(), ClearError> {
    for number in numbers(kernel, iommufd)? {
        match destroy(kernel, iommufd, number) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(ClearError::InUse);
            }
            other => other.map_err(VfioError::refused("IOMMU_DESTROY"))?,
        }
    }
    Ok(())
}

/// Why address spaces are not ended.
#[derive(Debug)]
pub(crate) enum ClearError {
    /// A device is attached to one.
    InUse,
    /// The kernel does not do it.
    Other(VfioError),
}

impl From<VfioError> for ClearError {
    fn from(error: VfioError) -> Self {
        Self::Other(error)
    }
}
