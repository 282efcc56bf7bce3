//! Why VFIO did not do what it was asked, with the object and what helps.

use std::io;
use std::path::PathBuf;

use cordon_backend::{BackendError, ErrorKind};
use ipc::PciAddress;
use ipc::vfio_file::VfioFile;

use crate::capabilities::ChainError;
use crate::cdev::BIND;
use crate::ioas::MAP_FILE;

/// A function of a group that keeps the group from being used, and by whom it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The function.
    pub function: String,
    /// Its driver; `None` if it has none, which is no obstacle by itself.
    pub driver: Option<String>,
}

/// Why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// There is no such function.
    #[error("this machine has no function {0}")]
    NoSuchFunction(PciAddress),
    /// Its place in /sys cannot be read.
    #[error("cannot read {}", path.display())]
    Sysfs {
        /// What was read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No IOMMU stands before it.
    #[error(
        "it is in no IOMMU group: switch the IOMMU on in the firmware and in the kernel \
         (intel_iommu=on, or amd_iommu=on)"
    )]
    NoGroup,
    /// The kernel would let the device reach all memory.
    #[error(
        "its group {group} has no IOMMU (vfio's noiommu mode): the device would reach all memory of \
         this machine, so it is refused"
    )]
    NoIommu {
        /// The group, as /dev/vfio has it.
        group: String,
    },
    /// Another driver has it, or none.
    #[error("{}, not vfio-pci: {}", bound(driver.as_deref()), cure(*address))]
    OtherDriver {
        /// The function.
        address: PciAddress,
        /// Its driver, if it has one.
        driver: Option<String>,
    },
    /// The group's file cannot be opened.
    #[error("cannot open {}{}", path.display(), why_not_open(source))]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else has the group.
    #[error(
        "IOMMU group {group} is held by {}: the functions of a group ({members}) are served by one \
         process, together",
        holder.as_deref().unwrap_or("another process")
    )]
    Held {
        /// The group.
        group: u32,
        /// The process, as far as that can be seen.
        holder: Option<String>,
        /// Its functions.
        members: String,
    },
    /// The group is larger than any that is served.
    #[error(
        "IOMMU group {group} has more than {most} functions of VFIO's, which is the most that is served"
    )]
    TooMany {
        /// The group.
        group: u32,
        /// Most functions.
        most: usize,
    },
    /// Another function of the group belongs to the host.
    #[error(
        "IOMMU group {group} is not viable: {}; all functions of a group must be vfio-pci's, or no \
         driver's, since they reach each other's memory",
        named(obstacles)
    )]
    NotViable {
        /// The group.
        group: u32,
        /// Those of its functions that other drivers have.
        obstacles: Vec<Obstacle>,
    },
    /// A descriptor that was handed is another file than it should be.
    #[error("descriptor {number} is {is}, and was handed as {wanted}")]
    OtherFile {
        /// The number of the descriptor, as whoever handed it knows it.
        number: i32,
        /// What it should be, for people.
        wanted: &'static str,
        /// What it is.
        is: VfioFile,
    },
    /// It is the file of a group, and of another than the function's.
    #[error(
        "descriptor {number} is the file of IOMMU group {is}, and function {address} is in group {group}"
    )]
    OtherGroup {
        /// The number of the descriptor.
        number: i32,
        /// The group that it is of.
        is: u32,
        /// The function.
        address: PciAddress,
        /// The function's group.
        group: u32,
    },
    /// The group was taken back since its file was opened.
    #[error(
        "descriptor {number} is of IOMMU group {group} as it was before the kernel took its devices back: \
         whoever handed it must open /dev/vfio/{group} again, and hand that"
    )]
    GroupGone {
        /// The number of the descriptor.
        number: i32,
        /// The group.
        group: u32,
    },
    /// Somebody has functions of the group open by the same file.
    #[error(
        "IOMMU group {group}, handed as descriptor {number}, is in use: somebody who was handed it too has \
         functions of it open"
    )]
    GroupInUse {
        /// The number of the descriptor.
        number: i32,
        /// The group.
        group: u32,
    },
    /// A container that was handed has a group in it.
    #[error(
        "the container that was handed as descriptor {0} has another group in it, whose guest would share its \
         memory: hand a container of its own for each group"
    )]
    ContainerInUse(i32),
    /// It is the file of a device, and of none in the function's group.
    #[error(
        "descriptor {number} is the file of {is}, which is no function of IOMMU group {group}, as {address} is"
    )]
    OtherDevice {
        /// The number of the descriptor.
        number: i32,
        /// The device that it is of, as /dev/vfio/devices has it.
        is: String,
        /// The function.
        address: PciAddress,
        /// The function's group.
        group: u32,
    },
    /// A process of ours that was handed the same file uses it.
    #[error(
        "the device that was handed as descriptor {0} is in use: somebody who was handed it too serves it"
    )]
    DeviceInUse(i32),
    /// A process of ours that was handed the same file has it since the one died that is to be followed.
    #[error("somebody who was handed the file of {0} too has it since its process died")]
    TakenMeanwhile(PciAddress),
    /// A process that is dead bound it to another iommufd than the one that was handed.
    #[error(
        "function {function}, handed as descriptor {number}, is bound still to another iommufd than the one that was handed: \
         hand that one, or the function's file opened anew"
    )]
    OtherIommufd {
        /// The number of the descriptor.
        number: i32,
        /// The function.
        function: PciAddress,
    },
    /// Somebody's device reaches memory by an iommufd that was handed.
    #[error(
        "the iommufd that was handed as descriptor {0} is in use: a device of somebody else reaches memory by it; hand \
         an iommufd of its own for each group"
    )]
    IommufdInUse(i32),
    /// A reset of a bus reaches more than is taken.
    #[error(
        "a reset of its bus reaches {count} functions: more than the {most} that are looked at"
    )]
    ManyReset {
        /// How many.
        count: usize,
        /// Most.
        most: usize,
    },
    /// A reset of its bus reaches functions of other groups, which are or may be other guests'.
    #[error(
        "the kernel can reset it only with its whole bus, which has {0}: functions of another group may be another \
         guest's"
    )]
    ForeignReset(String),
    /// The kernel has another VFIO.
    #[error("the kernel's VFIO is of version {0}, not of version 0")]
    Version(u32),
    /// The kernel has no IOMMU driver of the type that is used.
    #[error("the kernel's VFIO has no type 1 IOMMU: load the module vfio_iommu_type1")]
    NoType1,
    /// The kernel refused.
    #[error("{}", said(source, request))]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A mapping does not fit in what its process may lock.
    #[error(
        "{size:#x} bytes more cannot be locked: the limit of locked memory (RLIMIT_MEMLOCK) is \
         {limit}{}; raise it where the VMM side is started (ulimit -l, or LimitMEMLOCK=)",
        if *of_user { ", for all processes of this user together" } else { "" }
    )]
    Locked {
        /// Bytes that were to be mapped.
        size: u64,
        /// The limit, as people write it.
        limit: String,
        /// Whether an iommufd has it mapped, by which the kernel counts what all processes of a user lock.
        of_user: bool,
    },
    /// The IOMMU cannot map these addresses.
    #[error("bus addresses {address:#x}+{size:#x} are none that the IOMMU maps: {ranges}")]
    Reserved {
        /// First address.
        address: u64,
        /// Bytes.
        size: u64,
        /// Those that it maps.
        ranges: String,
    },
    /// The range is there already, and is another one.
    #[error("bus addresses {address:#x}+{size:#x} are mapped already")]
    Mapped {
        /// First address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// A description makes no sense.
    #[error("{object} is described with capabilities that make no sense")]
    Chain {
        /// What was described.
        object: String,
        /// Why.
        #[source]
        source: ChainError,
    },
    /// An answer makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// This backend does not do that.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Somebody else of this group has it.
    #[error("{0}")]
    Busy(String),
    /// The kernel asks for the device.
    #[error("the kernel wants it back: it is being removed, or taken from its driver")]
    Requested,
}

fn bound(driver: Option<&str>) -> String {
    driver.map_or_else(|| "it has no driver".to_owned(), |name| format!("its driver is {name}"))
}

fn cure(address: PciAddress) -> String {
    let name = crate::sysfs::name(address);
    format!("bind it, for example with driverctl set-override {name} vfio-pci")
}

fn why_not_open(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) => ": is the module vfio-pci loaded, and is this the host's /dev?",
        Some(libc::EACCES | libc::EPERM) => ": give its file to the user who runs this",
        _ => "",
    }
}

fn named(obstacles: &[Obstacle]) -> String {
    let each = obstacles.iter().map(|one| match &one.driver {
        Some(driver) => format!("{} is bound to {driver}", one.function),
        None => format!("{} has no driver", one.function),
    });
    let named: Vec<String> = each.take(crate::limits::MAX_NAMED).collect();
    if named.is_empty() { "the kernel does not say why".to_owned() } else { named.join(", ") }
}

fn said(source: &io::Error, request: &str) -> String {
    match (request, source.raw_os_error()) {
        ("SET_IOMMU", Some(libc::EPERM)) => "the kernel does not let it: this machine has no \
            interrupt remapping, and vfio_iommu_type1's allow_unsafe_interrupts is off"
            .to_owned(),
        (BIND, Some(libc::EPERM)) => "the kernel does not let it: another iommufd has functions of \
            its group, or this machine has no interrupt remapping, and iommufd's allow_unsafe_interrupts is off"
            .to_owned(),
        (MAP_FILE, Some(libc::EINVAL)) => "the kernel lets a device reach memory of files of \
            memory only (memfd, hugetlbfs, tmpfs), from a page's beginning on"
            .to_owned(),
        _ => "the kernel refused".to_owned(),
    }
}

impl VfioError {
    /// Makes an error of what the kernel says of `request`.
    pub(crate) fn refused(request: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Refused { request, source }
    }

    /// Of which kind it is to a backend's user.
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchFunction(_) => ErrorKind::NoSuchDevice,
            Self::Held { .. }
            | Self::Mapped { .. }
            | Self::Busy(_)
            | Self::GroupInUse { .. }
            | Self::DeviceInUse(_)
            | Self::TakenMeanwhile(_)
            | Self::OtherIommufd { .. }
            | Self::IommufdInUse(_)
            | Self::ContainerInUse(_) => ErrorKind::Busy,
            Self::Locked { .. } => ErrorKind::NoSpace,
            Self::Reserved { .. } | Self::Chain { .. } | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Unsupported(_)
            | Self::NoIommu { .. }
            | Self::ManyReset { .. }
            | Self::ForeignReset(_) => ErrorKind::Unsupported,
            Self::OtherFile { .. } | Self::OtherGroup { .. } | Self::OtherDevice { .. } => {
                ErrorKind::Invalid
            }
            Self::Requested => ErrorKind::Gone,
            Self::Refused { source, .. } => match source.raw_os_error() {
                Some(libc::ENODEV | libc::ENXIO) => ErrorKind::Gone,
                _ if source.kind() == io::ErrorKind::StorageFull => ErrorKind::NoSpace,
                Some(libc::EBUSY) => ErrorKind::Busy,
                _ => ErrorKind::Refused,
            },
            _ => ErrorKind::Refused,
        }
    }

    /// The kernel's code, when it was the kernel.
    fn code(&self) -> Option<u32> {
        let (Self::Refused { source, .. } | Self::Open { source, .. } | Self::Sysfs { source, .. }) =
            self
        else {
            return None;
        };
        source.raw_os_error().and_then(|code| u32::try_from(code).ok())
    }

    /// As a backend's error about `subject` during `operation`.
    #[must_use]
    pub fn of(self, subject: impl Into<String>, operation: &'static str) -> BackendError {
        let (kind, code) = (self.kind(), self.code());
        BackendError::new(kind, subject, operation, ipc::chain(&self)).with_code(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_object_the_reason_and_what_helps() {
        let address: PciAddress = "01:00.0".parse().unwrap();
        let other = VfioError::OtherDriver { address, driver: Some("nvme".to_owned()) };
        let other = other.of(format!("Function {address}"), "Open").to_string();
        assert_eq!(
            other,
            "Function 01:00.0: Open failed: its driver is nvme, not vfio-pci: bind it, for example \
             with driverctl set-override 0000:01:00.0 vfio-pci"
        );
        let obstacle = |function: &str, driver: Option<&str>| Obstacle {
            function: function.to_owned(),
            driver: driver.map(str::to_owned),
        };
        let obstacles = vec![obstacle("0000:01:00.1", Some("snd_hda_intel"))];
        let not = VfioError::NotViable { group: 12, obstacles }.to_string();
        assert!(not.contains("group 12 is not viable: 0000:01:00.1 is bound to snd_hda_intel"));
        let many: Vec<Obstacle> = (0..40).map(|one| obstacle(&format!("f{one}."), None)).collect();
        let not = VfioError::NotViable { group: 12, obstacles: many }.to_string();
        assert!(not.contains("f15.") && !not.contains("f16."), "{not}");
    }

    #[test]
    fn a_code_of_the_kernels_is_a_kind_that_can_be_decided_by() {
        let refused = |code| {
            let source = io::Error::from_raw_os_error(code);
            let error = VfioError::Refused { request: "RESET", source }.of("it", "Reset");
            (error.kind, error.code)
        };
        for (code, kind) in [
            (libc::ENODEV, ErrorKind::Gone),
            (libc::ENXIO, ErrorKind::Gone),
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EBUSY, ErrorKind::Busy),
            (libc::EINVAL, ErrorKind::Refused),
        ] {
            assert_eq!(refused(code), (kind, u32::try_from(code).ok()));
        }
        assert_eq!(VfioError::Requested.of("it", "waiting").kind, ErrorKind::Gone);
    }
}
