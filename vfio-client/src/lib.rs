//! Linux's VFIO as a [`cordon_backend::Backend`]: real devices, behind an IOMMU.
//!
//! | process | holds | asks of the kernel once it is confined |
//! | --- | --- | --- |
//! | connection | the IOMMU group and its container, or an iommufd; the functions of the group | to map and unmap memory for DMA, to reset a function or its bus; config space |
//! | function | a duplicate of its device's descriptor, which it is handed | config space and BARs by `pread` and `pwrite`, whom to signal for interrupts, to reset |
//! | lister | nothing: it reads what /sys says | nothing |
//!
//! Functions are opened by files of their own for an iommufd where the kernel has both and this user may use them
//! (Linux 6.6 and later), and by the file of their group otherwise. Either is open in one process at a time, so the
//! connection process opens it, and hands on. By an iommufd, memory is mapped by its file, so that the process never
//! maps it (from Linux 6.13 on). Interrupts go
//! from the kernel into the VMM's eventfds; no process of ours is on their way, so they go on while a function
//! process is replaced. Bus addresses are chosen by us: a range of guest memory lies at its guest address.
//!
//! The kernel is trusted. What it describes is read with bounds all the same: sizes, counts and chains of
//! capabilities that make no sense are errors. When a device is to go (it is unplugged, or its driver is to be
//! another), the kernel says so by an event; the connection process then ends, and everything is dropped.
//!
//! Unsafe code is in `kernel` alone. With the feature `fake`, `fake` puts memory of this process in the
//! kernel's place.
#![cfg(target_os = "linux")]

mod abi;
mod address_space;
mod backend;
mod bus;
mod capabilities;
mod cdev;
mod container;
mod device;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod group;
mod handed;
mod ioas;
mod kernel;
mod limits;
mod listed;
mod served;
mod sysfs;

pub use abi::{
    DEVICE_PCI_HOT_RESET, DEVICE_RESET, DEVICE_SET_IRQS, IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE,
    IOMMU_IOAS_UNMAP, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, Structure,
};
pub use backend::Vfio;
pub use capabilities::ChainError;
pub use device::{Device, Region};
pub use error::{Obstacle, VfioError};
pub use kernel::{Described, IoasRanges, Kernel, Linux, Plain};
pub use sysfs::Places;
