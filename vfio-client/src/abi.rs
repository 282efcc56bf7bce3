//! What crosses into the kernel: numbers of requests, and structures as bytes.
//!
//! Structures are filled and read field by field at the offsets that the kernel's header says, so that
//! nothing here depends on memory that the kernel lays out.

use iommufd_bindings::{
    IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES,
    IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_MAP_FILE, IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_TYPE,
};
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

use crate::error::VfioError;
use crate::limits::MAX_DESCRIPTION;

/// The number of a request: `_IO(VFIO_TYPE, VFIO_BASE + number)`.
const fn request(number: u32) -> u32 {
    ((VFIO_TYPE as u32) << 8) | (VFIO_BASE + number)
}

pub(crate) const GET_API_VERSION: u32 = request(0);
pub(crate) const CHECK_EXTENSION: u32 = request(1);
pub(crate) const SET_IOMMU: u32 = request(2);
pub(crate) const GROUP_GET_STATUS: u32 = request(3);
pub(crate) const GROUP_SET_CONTAINER: u32 = request(4);
pub(crate) const GROUP_UNSET_CONTAINER: u32 = request(5);
pub(crate) const GROUP_GET_DEVICE_FD: u32 = request(6);
pub(crate) const DEVICE_GET_INFO: u32 = request(7);
pub(crate) const DEVICE_GET_REGION_INFO: u32 = request(8);
pub(crate) const DEVICE_GET_IRQ_INFO: u32 = request(9);
/// Says whom the kernel signals for the interrupts of a device.
pub const DEVICE_SET_IRQS: u32 = request(10);
/// Resets a device.
pub const DEVICE_RESET: u32 = request(11);
pub(crate) const IOMMU_GET_INFO: u32 = request(12);
/// Of a device: whom a reset of its bus reaches. The same number as that of a request to a container.
pub(crate) const DEVICE_GET_PCI_HOT_RESET_INFO: u32 = request(12);
/// Resets the bus of a device.
pub const DEVICE_PCI_HOT_RESET: u32 = request(13);
/// Maps memory for the DMA of a container's devices. On a device the same number is a reset of its bus.
pub const IOMMU_MAP_DMA: u32 = request(13);
/// Takes it back.
pub const IOMMU_UNMAP_DMA: u32 = request(14);

pub(crate) const DEVICE_BIND_IOMMUFD: u32 = request(18);
pub(crate) const DEVICE_ATTACH_IOMMUFD_PT: u32 = request(19);
pub(crate) const DEVICE_DETACH_IOMMUFD_PT: u32 = request(20);

/// The number of a request to an iommufd.
const fn iommufd(number: u32) -> u32 {
    ((IOMMUFD_TYPE as u32) << 8) | number
}

pub(crate) const IOMMU_DESTROY: u32 = iommufd(IOMMUFD_CMD_DESTROY);
pub(crate) const IOMMU_IOAS_ALLOC: u32 = iommufd(IOMMUFD_CMD_IOAS_ALLOC);
pub(crate) const IOMMU_IOAS_IOVA_RANGES: u32 = iommufd(IOMMUFD_CMD_IOAS_IOVA_RANGES);
/// Maps memory of this process for the DMA of the devices that are attached to an address space.
pub const IOMMU_IOAS_MAP: u32 = iommufd(IOMMUFD_CMD_IOAS_MAP);
/// Maps memory of a file.
pub const IOMMU_IOAS_MAP_FILE: u32 = iommufd(IOMMUFD_CMD_IOAS_MAP_FILE);
/// Takes either back.
pub const IOMMU_IOAS_UNMAP: u32 = iommufd(IOMMUFD_CMD_IOAS_UNMAP);

/// A structure that begins with its own size (`argsz`) and flags, as all do that a request of VFIO's fills or
/// reads; those of iommufd begin with their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure(Vec<u8>);

impl Structure {
    /// Bytes of size and flags, which each has.
    const SMALLEST: usize = 8;

    /// `size` bytes of zero but for the size itself; never fewer than every structure has.
    pub(crate) fn new(size: usize) -> Self {
        let size = size.max(Self::SMALLEST);
        let structure = Self(vec![0; size]);
        structure.with(0, u32::try_from(size).unwrap_or(u32::MAX))
    }

    /// With a field of 4 bytes at `at`, which lies in it.
    pub(crate) fn with(self, at: usize, value: u32) -> Self {
        self.with_bytes(at, &value.to_ne_bytes())
    }

    /// With a field of 8 bytes at `at`, which lies in it.
    pub(crate) fn with_long(self, at: usize, value: u64) -> Self {
        self.with_bytes(at, &value.to_ne_bytes())
    }

    fn with_bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        let field = self.0.get_mut(at..at + bytes.len());
        debug_assert!(field.is_some(), "no field at {at}");
        if let Some(field) = field {
            field.copy_from_slice(bytes);
        }
        self
    }

    /// The field of 4 bytes at `at`; 0 past the end.
    pub(crate) fn field(&self, at: usize) -> u32 {
        read(&self.0, at).map_or(0, u32::from_ne_bytes)
    }

    /// The field of 8 bytes at `at`; 0 past the end.
    pub(crate) fn long(&self, at: usize) -> u64 {
        read(&self.0, at).map_or(0, u64::from_ne_bytes)
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of what the kernel filled this with the beginning of: asked for once more, if it says that there is more.
    ///
    /// # Errors
    /// [`VfioError::Invalid`], naming `object`, when it says more than anything is described with.
    pub(crate) fn whole(
        self,
        object: &str,
        ask: impl FnOnce(usize) -> Result<Self, VfioError>,
    ) -> Result<Self, VfioError> {
        let wanted = self.field(0);
        if wanted > MAX_DESCRIPTION {
            return Err(VfioError::Invalid(format!("{object} is described with {wanted} bytes")));
        }
        match usize::try_from(wanted) {
            Ok(wanted) if wanted > self.0.len() => ask(wanted),
            _ => Ok(self),
        }
    }

    /// All of it, for the kernel to fill.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// `N` bytes at `at`, if they are there.
pub(crate) fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        assert_eq!((GET_API_VERSION, GROUP_GET_DEVICE_FD), (0x3b64, 0x3b6a));
        assert_eq!((GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER), (0x3b68, 0x3b69));
        assert_eq!((DEVICE_SET_IRQS, DEVICE_RESET), (0x3b6e, 0x3b6f));
        assert_eq!((IOMMU_MAP_DMA, IOMMU_UNMAP_DMA), (0x3b71, 0x3b72));
        assert_eq!((DEVICE_BIND_IOMMUFD, DEVICE_DETACH_IOMMUFD_PT), (0x3b76, 0x3b78));
        assert_eq!((IOMMU_DESTROY, IOMMU_IOAS_ALLOC), (0x3b80, 0x3b81));
        assert_eq!((IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP), (0x3b85, 0x3b86));
        assert_eq!(IOMMU_IOAS_MAP_FILE, 0x3b8f);
    }

    #[test]
    fn a_structure_says_its_size_and_keeps_to_it() {
        let one = Structure::new(24).with(4, 7).with_long(16, 1 << 40);
        assert_eq!((one.field(0), one.field(4), one.long(16)), (24, 7, 1 << 40));
        assert_eq!((one.field(21), one.long(17), one.field(usize::MAX)), (0, 0, 0));
        assert_eq!(Structure::new(0).bytes(), 8u64.to_ne_bytes());
    }
}
