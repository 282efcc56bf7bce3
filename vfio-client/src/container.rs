//! A container of type 1: the DMA space of a group, shared by the functions of the group.
//!
//! Memory is mapped by its address in this process, which the kernel pins. What one function of the group
//! was given all of them reach, so a range that two of them ask for is mapped once, and is there until the
//! last one gives it back.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
    vfio_iommu_type1_info,
};

use crate::abi::Structure;
use crate::capabilities;
use crate::error::VfioError;
use crate::kernel::{Described, Kernel, Plain};

/// Mappings that a container takes where it does not say: the kernel's default.
const MAPPINGS: u64 = 65_535;

/// What the IOMMU before the devices of a container can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Addresses and sizes are multiples of this.
    pub(crate) granule: u64,
    /// First and last of each range of bus addresses; empty where the kernel does not say.
    pub(crate) ranges: Vec<(u64, u64)>,
    /// Most mappings.
    pub(crate) mappings: u64,
}

/// A mapping that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    size: u64,
    writable: bool,
    /// Which memory, as the file system knows it, and where in it.
    memory: (u64, u64, u64),
    users: u32,
}

/// A range of memory to map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// Bus address.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Where it is mapped in this process.
    pub(crate) mapped_at: usize,
    /// Whether devices may write it.
    pub(crate) writable: bool,
    /// The file of the memory, by device and number, and where in it the range begins.
    pub(crate) memory: (u64, u64, u64),
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    kernel: Arc<dyn Kernel>,
    fd: Arc<OwnedFd>,
    space: Space,
    /// How much this process may lock, as it was before it confined itself: it cannot ask then.
    limit: Option<u64>,
    mappings: BTreeMap<u64, Mapping>,
    /// Whether a process before this one used it, which is dead: what that mapped is there.
    adopted: bool,
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
        Self::described(kernel, fd, false)
    }

    /// One that a dead process used, with what that mapped.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn adopted(kernel: Arc<dyn Kernel>, fd: OwnedFd) -> Result<Self, VfioError> {
        Self::described(kernel, fd, true)
    }

    fn described(kernel: Arc<dyn Kernel>, fd: OwnedFd, adopted: bool) -> Result<Self, VfioError> {
        let space = describe(kernel.as_ref(), fd.as_fd())?;
        let limit = getrlimit(Resource::Memlock).current;
        let mappings = BTreeMap::new();
        Ok(Self { kernel, fd: Arc::new(fd), space, limit, mappings, adopted })
    }

    /// Its descriptor.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// What its IOMMU can do.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Maps a range.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn map(&mut self, range: &Range) -> Result<(), VfioError> {
        self.add(range, false)
    }

    /// Maps a range that the dead process may have mapped: then it is there already. The kernel looks for that
    /// first, and pins and counts nothing twice. It says that something is there and not what, so only who
    /// kept account of everything that was mapped may ask.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn adopt(&mut self, range: &Range) -> Result<(), VfioError> {
        if !self.adopted {
            return Err(VfioError::Invalid("nobody used the container before".to_owned()));
        }
        self.add(range, true)
    }

    fn add(&mut self, range: &Range, adopting: bool) -> Result<(), VfioError> {
        let Range { at, size, writable, memory, .. } = *range;
        if let Some(there) = self.mappings.get_mut(&at) {
            let same = (there.size, there.writable, there.memory) == (size, writable, memory);
            if !same {
                return Err(VfioError::Mapped { address: at, size });
            }
            there.users += 1;
            return Ok(());
        }
        self.check_addresses(at, size)?;
        let write = if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let mut map = Structure::new(size_of::<vfio_iommu_type1_dma_map>())
            .with(offset_of!(vfio_iommu_type1_dma_map, flags), VFIO_DMA_MAP_FLAG_READ | write)
            .with_long(offset_of!(vfio_iommu_type1_dma_map, vaddr), range.mapped_at as u64)
            .with_long(offset_of!(vfio_iommu_type1_dma_map, iova), at)
            .with_long(offset_of!(vfio_iommu_type1_dma_map, size), size);
        let done = self.kernel.described(self.fd.as_fd(), Described::MapDma, &mut map);
        let failed = |source: std::io::Error| match source.raw_os_error() {
            Some(libc::EEXIST) => VfioError::Mapped { address: at, size },
            Some(libc::ENOMEM) => VfioError::Locked { size, limit: written(self.limit) },
            _ => VfioError::Refused { request: "IOMMU_MAP_DMA", source },
        };
        match done.map_err(failed) {
            Err(VfioError::Mapped { .. }) if adopting => {}
            other => other?,
        }
        self.mappings.insert(at, Mapping { size, writable, memory, users: 1 });
        Ok(())
    }

    fn check_addresses(&self, at: u64, size: u64) -> Result<(), VfioError> {
        let ranges = &self.space.ranges;
        let last = size.checked_sub(1).and_then(|more| at.checked_add(more));
        let in_one =
            |last| ranges.iter().any(|(from, to)| (*from..=*to).contains(&at) && last <= *to);
        if last.is_some_and(|last| ranges.is_empty() || in_one(last)) {
            return Ok(());
        }
        let ranges: Vec<String> =
            ranges.iter().map(|(from, to)| format!("{from:#x} to {to:#x}")).collect();
        Err(VfioError::Reserved { address: at, size, ranges: ranges.join(", ") })
    }

    /// Takes a range back that begins `at`, unless another function of the group has it too.
    ///
    /// # Errors
    /// [`VfioError`]; it is then still there, as far as is known.
    pub(crate) fn unmap(&mut self, at: u64) -> Result<(), VfioError> {
        let nothing = || VfioError::Invalid(format!("nothing is mapped at {at:#x}"));
        let there = self.mappings.get_mut(&at).ok_or_else(nothing)?;
        if there.users > 1 {
            there.users -= 1;
            return Ok(());
        }
        let size = there.size;
        let mut unmap = Structure::new(offset_of!(vfio_iommu_type1_dma_unmap, data))
            .with_long(offset_of!(vfio_iommu_type1_dma_unmap, iova), at)
            .with_long(offset_of!(vfio_iommu_type1_dma_unmap, size), size);
        let done = self.kernel.described(self.fd.as_fd(), Described::UnmapDma, &mut unmap);
        done.map_err(VfioError::refused("IOMMU_UNMAP_DMA"))?;
        let gone = unmap.long(offset_of!(vfio_iommu_type1_dma_unmap, size));
        if gone != size {
            let why = format!("of {at:#x}+{size:#x} the kernel took back {gone:#x} bytes");
            return Err(VfioError::Invalid(why));
        }
        self.mappings.remove(&at);
        Ok(())
    }
}

/// A limit of locked memory, as people write it.
fn written(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes"))
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

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
