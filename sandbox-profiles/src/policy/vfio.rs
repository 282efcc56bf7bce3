//! What the roles may do beyond that over Linux's VFIO. Each request has the number that the kernel's header
//! gives it, and can be made of the descriptors that a process has: a container and devices in a connection
//! process, one device in a function process.

use super::{Condition, Syscall};

/// Whom to signal for the interrupts of a device.
pub const SET_INTERRUPTS: u64 = 0x3b6e;
/// Reset a device.
pub const RESET: u64 = 0x3b6f;
/// Map memory for DMA.
pub const MAP_DMA: u64 = 0x3b71;
/// Take it back.
pub const UNMAP_DMA: u64 = 0x3b72;

/// Reset the bus of a device. On a container the same number maps memory.
pub const RESET_BUS: u64 = 0x3b71;
/// Map memory of this process for DMA, by an iommufd.
pub const MAP_IOAS: u64 = 0x3b85;
/// Take what an iommufd has mapped back.
pub const UNMAP_IOAS: u64 = 0x3b86;
/// Map memory of a file for DMA, by an iommufd.
pub const MAP_FILE_IOAS: u64 = 0x3b8f;

/// Where in a device's file the regions begin that nobody here uses: memory of the VGA of old, which the kernel takes from
/// whichever device has it, and regions of single drivers. BARs, the expansion ROM and config space lie below.
pub const OTHER_REGIONS: u64 = 8 << 40;

/// Added for connection and function processes.
pub const VFIO: &[Syscall] = &[
    Syscall {
        name: "pread64",
        number: libc::SYS_pread64,
        conditions: &[(3, Condition::Below(OTHER_REGIONS))],
        needed_by: "device: config space, and in a function process its BARs",
    },
    Syscall {
        name: "pwrite64",
        number: libc::SYS_pwrite64,
        conditions: &[(3, Condition::Below(OTHER_REGIONS))],
        needed_by: "device: config space, and in a function process its BARs",
    },
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        // The request takes nothing.
        conditions: &[(1, Condition::Is(RESET)), (2, Condition::Is(0))],
        needed_by: "device: its reset, for a guest and when it comes back",
    },
];

/// Added for connection processes. The kernel has two requests of the first number: of a device it is a reset of
/// its bus, with the descriptors of every group there, which this process has only if it holds them all.
pub const VFIO_CONNECTION: &[Syscall] = &[
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        conditions: &[(1, Condition::Is(MAP_DMA))],
        needed_by: "container: guest memory for the device; device: a reset of its bus",
    },
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        conditions: &[(1, Condition::Is(UNMAP_DMA))],
        needed_by: "container: guest memory that goes",
    },
];

/// Added for connection processes that have an iommufd. A reset of a bus takes no descriptors then: the kernel looks
/// whether the iommufd has all devices of it.
pub const IOMMUFD_CONNECTION: &[Syscall] = &[
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        conditions: &[(1, Condition::Is(RESET_BUS))],
        needed_by: "device: a reset of its bus",
    },
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        conditions: &[(1, Condition::Is(MAP_FILE_IOAS))],
        needed_by: "iommufd: guest memory for the device",
    },
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        conditions: &[(1, Condition::Is(MAP_IOAS))],
        needed_by: "iommufd: guest memory for the device, where the kernel maps no files (before Linux 6.13)",
    },
    Syscall {
        name: "ioctl",
        number: libc::SYS_ioctl,
        conditions: &[(1, Condition::Is(UNMAP_IOAS))],
        needed_by: "iommufd: guest memory that goes",
    },
];

/// Added for function processes.
pub const VFIO_FUNCTION: &[Syscall] = &[Syscall {
    name: "ioctl",
    number: libc::SYS_ioctl,
    conditions: &[(1, Condition::Is(SET_INTERRUPTS))],
    needed_by: "device: the VMM's events for its interrupts",
}];
