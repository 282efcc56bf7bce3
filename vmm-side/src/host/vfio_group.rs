//! An IOMMU group whose files a manager opened for a VMM that may open none itself (Linux's VFIO).
//!
//! The files are kept for as long as the configuration that has them, and with duplicates of them every connection
//! process of the group is started. They keep no device: the kernel takes one back while they are open, and then
//! they are of no use any more.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use ipc::wire::connection::HandedGroup;
use ipc::{Deadline, PciAddress, Tube, TubeError};

/// A group whose files were handed. Made by [`VfioGroup::new`].
#[derive(Debug)]
pub struct VfioGroup {
    pub(super) number: u32,
    pub(super) members: Vec<PciAddress>,
    pub(super) file: OwnedFd,
    pub(super) container: Option<OwnedFd>,
}

/// Why descriptors are no group to be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioGroupError {
    /// It is another file than it should be.
    #[error("Descriptor {number} is {is}, and not {wanted}")]
    OtherFile {
        /// Its number.
        number: i32,
        /// What it should be, for people.
        wanted: &'static str,
        /// What it is, for people.
        is: String,
    },
    /// It, or what /sys says of it, cannot be read.
    #[error("Descriptor {number} cannot be looked at")]
    Look {
        /// Its number.
        number: i32,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl VfioGroup {
    /// The number of the group.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether a function was in the group when this was made.
    #[must_use]
    pub fn has(&self, address: PciAddress) -> bool {
        self.members.contains(&address)
    }

    /// What must stay open.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.file), self.container.as_ref()].into_iter().flatten().map(OwnedFd::as_fd)
    }

    /// Hands the files to a process that has just been started.
    ///
    /// # Errors
    /// [`TubeError`].
    pub(crate) fn send(&self, tube: &mut Tube, deadline: Deadline) -> Result<(), TubeError> {
        let number = |file: &OwnedFd| file.as_raw_fd();
        let (group, container) = (number(&self.file), self.container.as_ref().map(number));
        let handles: Vec<BorrowedFd<'_>> = self.descriptors().collect();
        tube.send(0, &HandedGroup { group, container }, &handles, deadline)
    }
}

#[cfg(target_os = "linux")]
mod taken {
    use std::path::Path;

    use ipc::vfio_file::VfioFile;

    use super::*;

    /// Where the kernel says what there is.
    const SYS: &str = "/sys";

    impl VfioGroup {
        /// The group whose file is `file`, `/dev/vfio/NUMBER` opened to read and write; its `container`, if there is
        /// one, is a file of `/dev/vfio/vfio` that has no group. Without it, connection processes open one
        /// themselves, which takes the right to do so. Its functions are those that /sys names now.
        ///
        /// # Errors
        /// [`VfioGroupError`]: a descriptor is something else, as a device's own file or an iommufd.
        pub fn new(file: OwnedFd, container: Option<OwnedFd>) -> Result<Self, VfioGroupError> {
            Self::beneath(Path::new(SYS), file, container)
        }

        fn beneath(
            sys: &Path,
            file: OwnedFd,
            container: Option<OwnedFd>,
        ) -> Result<Self, VfioGroupError> {
            let number = match look(sys, &file)? {
                VfioFile::Group(number) => number,
                is => {
                    return Err(other(&file, "the file of an IOMMU group (/dev/vfio/NUMBER)", &is));
                }
            };
            if let Some(one) = &container {
                match look(sys, one)? {
                    VfioFile::Container => {}
                    is => return Err(other(one, "a container (/dev/vfio/vfio)", &is)),
                }
            }
            let failed = |source| VfioGroupError::Look { number: file.as_raw_fd(), source };
            let devices = sys.join(format!("kernel/iommu_groups/{number}/devices"));
            let entries = std::fs::read_dir(devices).map_err(failed)?;
            let members = entries
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .collect();
            Ok(Self { number, members, file, container })
        }
    }

    fn look(sys: &Path, file: &OwnedFd) -> Result<VfioFile, VfioGroupError> {
        let number = file.as_raw_fd();
        VfioFile::of(file, sys).map_err(|source| VfioGroupError::Look { number, source })
    }

    fn other(file: &OwnedFd, wanted: &'static str, is: &VfioFile) -> VfioGroupError {
        VfioGroupError::OtherFile { number: file.as_raw_fd(), wanted, is: is.to_string() }
    }

    #[cfg(test)]
    mod tests {
        use std::fs::File;

        use super::*;

        /// `/dev/null`, which has a number, is what this /sys says.
        fn sys(device: &str) -> tempfile::TempDir {
            let sys = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(sys.path().join("dev/char")).unwrap();
            let link = sys.path().join("dev/char/1:3");
            std::os::unix::fs::symlink(format!("../../devices/{device}"), link).unwrap();
            let devices = sys.path().join("kernel/iommu_groups/12/devices");
            std::fs::create_dir_all(&devices).unwrap();
            for name in ["0000:01:00.0", "0000:01:00.1"] {
                std::fs::write(devices.join(name), "").unwrap();
            }
            sys
        }

        fn null() -> OwnedFd {
            File::open("/dev/null").unwrap().into()
        }

        #[test]
        fn a_group_has_the_functions_that_sys_names_and_is_handed_with_its_number() {
            let sys = sys("virtual/vfio/12");
            let group = VfioGroup::beneath(sys.path(), null(), None).unwrap();
            assert_eq!(group.number(), 12);
            let has = |text: &str| group.has(text.parse().unwrap());
            assert!(has("01:00.0") && has("01:00.1") && !has("02:00.0"));
            let (mut ours, mut theirs) = Tube::pair().unwrap();
            let deadline = Deadline::after(std::time::Duration::from_secs(5));
            group.send(&mut ours, deadline).unwrap();
            let received = theirs.receive::<HandedGroup>(deadline).unwrap();
            let number = group.file.as_raw_fd();
            assert_eq!(received.message, HandedGroup { group: number, container: None });
            received.handles.expect(1).unwrap();
        }

        #[test]
        fn what_is_no_group_and_what_is_no_container_is_named_with_its_number() {
            let refused = |device: &str, container: bool| {
                let sys = sys(device);
                let (file, other) = (null(), container.then(null));
                let number = other.as_ref().unwrap_or(&file).as_raw_fd();
                let error = VfioGroup::beneath(sys.path(), file, other).unwrap_err().to_string();
                assert!(error.contains(&format!("Descriptor {number} is ")), "{error}");
                error
            };
            for (device, says) in [
                ("virtual/misc/vfio", "is a container (/dev/vfio/vfio), and not the file of an"),
                ("virtual/misc/iommu", "an iommufd (/dev/iommu), which this build does not know"),
                ("x/vfio-dev/vfio3", "a device (/dev/vfio/devices/vfio3), which this build does"),
                ("virtual/vfio/noiommu-4", "noiommu-4, a group without an IOMMU"),
                ("virtual/mem/null", "the character device 1:3 (mem/null)"),
            ] {
                let error = refused(device, false);
                assert!(error.contains(says), "{error}");
            }
            let error = refused("virtual/vfio/12", true);
            assert!(error.contains("group 12, and not a container"), "{error}");
        }
    }
}
