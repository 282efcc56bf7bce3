//! A container of type 1: memory is mapped by its address in this process, which the kernel pins.

use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
    vfio_iommu_type1_info,
};

use crate::abi::Structure;
use crate::address_space::{Range, Space};
use crate::capabilities;
use crate::error::VfioError;
use crate::kernel::{Described, Kernel, Plain};

/// Mappings that a container takes where it does not say: the kernel's default.
const MAPPINGS: u64 = 65_535;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    kernel: Arc<dyn Kernel>,
    fd: Arc<OwnedFd>,
}

/// Whether the kernel that is behind a container's file is one that we know, and has the type that is used.
pub(crate) fn check(kernel: &dyn Kernel, container: BorrowedFd<'_>) -> Result<(), VfioError> {
    let version = kernel
        .plain(container, Plain::ApiVersion)
        .map_err(VfioError::refused("GET_API_VERSION"))?;
    if version != VFIO_API_VERSION {
        return Err(VfioError::Version(version));
    }
    let has = kernel.plain(container, Plain::CheckExtension(VFIO_TYPE1v2_IOMMU));
    match has.map_err(VfioError::refused("CHECK_EXTENSION"))? {
        0 => Err(VfioError::NoType1),
        _ => Ok(()),
    }
}

/// Whether a container has a type, which it has while a group is in it.
pub(crate) fn has_type(kernel: &dyn Kernel, container: BorrowedFd<'_>) -> bool {
    let mut info = Structure::new(size_of::<vfio_iommu_type1_info>());
    kernel.described(container, Described::IommuInfo, &mut info).is_ok()
}

impl Container {
    /// A container that has its group, and is to be of type 1.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn new(kernel: Arc<dyn Kernel>, fd: OwnedFd) -> Result<Self, VfioError> {
        kernel
            .plain(fd.as_fd(), Plain::SetIommu(VFIO_TYPE1v2_IOMMU))
            .map_err(VfioError::refused("SET_IOMMU"))?;
        Ok(Self::adopted(kernel, fd))
    }

    /// One that is of type 1 already.
    pub(crate) fn adopted(kernel: Arc<dyn Kernel>, fd: OwnedFd) -> Self {
        Self { kernel, fd: Arc::new(fd) }
    }

    /// Its descriptor.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// What its IOMMU can do.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn describe(&self) -> Result<Space, VfioError> {
        describe(self.kernel.as_ref(), self.fd.as_fd())
    }

    /// Has the kernel map a range.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn map(&self, range: &Range<'_>) -> Result<(), VfioError> {
        let write = if range.writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let mut map = Structure::new(size_of::<vfio_iommu_type1_dma_map>())
            .with(offset_of!(vfio_iommu_type1_dma_map, flags), VFIO_DMA_MAP_FLAG_READ | write)
            .with_long(offset_of!(vfio_iommu_type1_dma_map, vaddr), range.address()?)
            .with_long(offset_of!(vfio_iommu_type1_dma_map, iova), range.at)
            .with_long(offset_of!(vfio_iommu_type1_dma_map, size), range.size);
        let done = self.kernel.described(self.fd.as_fd(), Described::MapDma, &mut map);
        done.map_err(VfioError::refused("IOMMU_MAP_DMA"))
    }

    /// Has the kernel take a range back; how many bytes that were.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn unmap(&self, at: u64, size: u64) -> Result<u64, VfioError> {
        let mut unmap = Structure::new(offset_of!(vfio_iommu_type1_dma_unmap, data))
            .with_long(offset_of!(vfio_iommu_type1_dma_unmap, iova), at)
            .with_long(offset_of!(vfio_iommu_type1_dma_unmap, size), size);
        let done = self.kernel.described(self.fd.as_fd(), Described::UnmapDma, &mut unmap);
        done.map_err(VfioError::refused("IOMMU_UNMAP_DMA"))?;
        Ok(unmap.long(offset_of!(vfio_iommu_type1_dma_unmap, size)))
    }
}

fn describe(kernel: &dyn Kernel, container: BorrowedFd<'_>) -> Result<Space, VfioError> {
    const FIXED: usize = size_of::<vfio_iommu_type1_info>();
    let ask = |size| {
        let mut info = Structure::new(size);
        let done = kernel.described(container, Described::IommuInfo, &mut info);
        done.map(|()| info).map_err(VfioError::refused("IOMMU_GET_INFO"))
    };
    let info = ask(FIXED)?.whole("the IOMMU", ask)?;
    let flags = info.field(offset_of!(vfio_iommu_type1_info, flags));
    let sizes = info.long(offset_of!(vfio_iommu_type1_info, iova_pgsizes));
    let page = rustix::param::page_size() as u64;
    let granule = match flags & VFIO_IOMMU_INFO_PGSIZES {
        0 => page,
        // The smallest; a set without one is none.
        _ => 1u64.checked_shl(sizes.trailing_zeros()).unwrap_or(page),
    };
    let mut space = Space { granule, ranges: Vec::new(), mappings: MAPPINGS };
    if flags & VFIO_IOMMU_INFO_CAPS != 0 {
        let made = |source| VfioError::Chain { object: "the IOMMU".to_owned(), source };
        let first = info.field(offset_of!(vfio_iommu_type1_info, cap_offset));
        for one in capabilities::chain(info.bytes(), FIXED, first).map_err(made)? {
            match u32::from(one.id) {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    space.ranges = one.bus_ranges().map_err(made)?;
                }
                VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => space.mappings = one.mappings().into(),
                _ => {}
            }
        }
    }
    Ok(space)
}
