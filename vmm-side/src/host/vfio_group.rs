//! An IOMMU group whose files a manager opened for a VMM that may open none itself (Linux's VFIO).
//!
//! The files are kept for as long as the configuration that has them, and with duplicates of them every connection
//! process of the group is started. Those of a group keep no device: the kernel takes one back while they are open, and
//! then they are of no use any more. Functions' own do: the kernel waits until every duplicate is closed. So they are
//! closed here once the kernel wants a function back that is served, and whoever handed them must close its own.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use ipc::wire::connection::HandedFiles;
use ipc::{Deadline, PciAddress, Tube, TubeError};
use parking_lot::Mutex;

/// A group whose files were handed, or those of functions of it. Made by [`VfioGroup::new`] and
/// [`VfioGroup::of_devices`].
#[derive(Debug)]
pub struct VfioGroup {
    pub(super) number: u32,
    pub(super) members: Vec<PciAddress>,
    pub(super) files: Mutex<Files>,
}

/// What was handed.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no VFIO to be handed"))]
pub(super) enum Files {
    Group { file: OwnedFd, container: Option<OwnedFd> },
    Devices { devices: Vec<OwnedFd>, iommufd: OwnedFd },
}

impl Files {
    fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (files, other) = match self {
            Self::Group { file, container } => (std::slice::from_ref(file), container.as_ref()),
            Self::Devices { devices, iommufd } => (devices.as_slice(), Some(iommufd)),
        };
        files.iter().chain(other).map(OwnedFd::as_fd)
    }
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
    /// A function's file was handed before.
    #[error("Descriptor {number} is function {function}, which was handed twice")]
    Twice {
        /// Its number.
        number: i32,
        /// The function.
        function: PciAddress,
    },
    /// Functions that reach different memory.
    #[error(
        "Descriptor {number} is function {function} of IOMMU group {}, and those before it are of group {}", groups[1], groups[0]
    )]
    Groups {
        /// Its number.
        number: i32,
        /// The function.
        function: PciAddress,
        /// The group of those before it, and its own.
        groups: [u32; 2],
    },
    /// No iommufd was handed, and none can be opened.
    #[error("No iommufd was handed with the files of devices, and /dev/iommu cannot be opened")]
    Iommufd(#[source] std::io::Error),
    /// No function at all.
    #[error("No file of a device was handed")]
    NoDevice,
    /// More than travel beside a message.
    #[error("{count} files of devices were handed, {most} of one group is the most")]
    TooMany {
        /// How many.
        count: usize,
        /// Most.
        most: usize,
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

    /// Whether a function is served by these files: it was in the group when this was made, and where functions' own
    /// files were handed, its file is among them.
    #[must_use]
    pub fn has(&self, address: PciAddress) -> bool {
        self.members.contains(&address)
    }

    /// The numbers of the descriptors that must stay open, as things are now.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        self.files.lock().all().map(|file| file.as_raw_fd()).collect()
    }

    /// Whether functions' own files were handed.
    pub(crate) fn is_of_devices(&self) -> bool {
        matches!(&*self.files.lock(), Files::Devices { .. })
    }

    /// Closes what keeps the kernel from taking a function back that it wants.
    pub(crate) fn give_back(&self) {
        if let Files::Devices { devices, .. } = &mut *self.files.lock() {
            devices.clear();
        }
    }

    /// Hands the files to a process that has just been started.
    ///
    /// # Errors
    /// [`TubeError`].
    pub(crate) fn send(&self, tube: &mut Tube, deadline: Deadline) -> Result<(), TubeError> {
        let number = |file: &OwnedFd| file.as_raw_fd();
        let files = self.files.lock();
        let said = match &*files {
            Files::Group { file, container } => {
                let (group, container) = (number(file), container.as_ref().map(number));
                HandedFiles::Group { group, container }
            }
            Files::Devices { devices, iommufd } => HandedFiles::Devices {
                devices: devices.iter().map(number).collect(),
                iommufd: number(iommufd),
            },
        };
        let handles: Vec<BorrowedFd<'_>> = files.all().collect();
        tube.send(0, &said, &handles, deadline)
    }
}

#[cfg(target_os = "linux")]
mod taken {
    use std::io;
    use std::path::Path;

    use ipc::tube::MAX_HANDLES;
    use ipc::vfio_file::VfioFile;

    use super::*;

    /// Where the kernel says what there is.
    const SYS: &str = "/sys";
    /// Where iommufds are opened.
    const IOMMUFD: &str = "/dev/iommu";

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
            let files = Mutex::new(Files::Group { file, container });
            Ok(Self { number, members, files })
        }

        /// Functions of one group by files of their own, each `/dev/vfio/devices/NAME` opened to read and write, and
        /// bound to nothing, or to `iommufd`, which is `/dev/iommu` opened for these functions alone. Without it, it is
        /// opened here, which takes the right to do so.
        ///
        /// # Errors
        /// [`VfioGroupError`]: a descriptor is something else, functions are of several groups, or there are more than
        /// travel beside one message.
        pub fn of_devices(
            devices: Vec<OwnedFd>,
            iommufd: Option<OwnedFd>,
        ) -> Result<Self, VfioGroupError> {
            let opened = || {
                let opened = std::fs::File::options().read(true).write(true).open(IOMMUFD);
                opened.map(OwnedFd::from).map_err(VfioGroupError::Iommufd)
            };
            let iommufd = iommufd.map_or_else(opened, Ok)?;
            Self::of_devices_beneath(Path::new(SYS), devices, iommufd)
        }

        /// The group of a function, by its own file.
        ///
        /// # Errors
        /// [`VfioGroupError`]: it is something else.
        pub fn group_of_device(file: &OwnedFd) -> Result<u32, VfioGroupError> {
            device(Path::new(SYS), file).map(|(_, group)| group)
        }

        fn of_devices_beneath(
            sys: &Path,
            devices: Vec<OwnedFd>,
            iommufd: OwnedFd,
        ) -> Result<Self, VfioGroupError> {
            if devices.len() >= MAX_HANDLES {
                return Err(VfioGroupError::TooMany {
                    count: devices.len(),
                    most: MAX_HANDLES - 1,
                });
            }
            match look(sys, &iommufd)? {
                VfioFile::Iommufd => {}
                is => return Err(other(&iommufd, "an iommufd (/dev/iommu)", &is)),
            }
            let (mut members, mut group) = (Vec::new(), None);
            for file in &devices {
                let descriptor = file.as_raw_fd();
                let (function, number) = device(sys, file)?;
                if members.contains(&function) {
                    return Err(VfioGroupError::Twice { number: descriptor, function });
                }
                match group.replace(number) {
                    Some(before) if before != number => {
                        let groups = [before, number];
                        return Err(VfioGroupError::Groups {
                            number: descriptor,
                            function,
                            groups,
                        });
                    }
                    _ => members.push(function),
                }
            }
            let number = group.ok_or(VfioGroupError::NoDevice)?;
            let files = Mutex::new(Files::Devices { devices, iommufd });
            Ok(Self { number, members, files })
        }
    }

    /// The function that a file is of, and its group.
    fn device(sys: &Path, file: &OwnedFd) -> Result<(PciAddress, u32), VfioGroupError> {
        let name = match look(sys, file)? {
            VfioFile::Device(name) => name,
            is => return Err(other(file, "the file of a device (/dev/vfio/devices/NAME)", &is)),
        };
        let number = file.as_raw_fd();
        function_of(sys, &name).map_err(|source| VfioGroupError::Look { number, source })
    }

    /// The function of a device's own file, and its group.
    fn function_of(sys: &Path, name: &str) -> io::Result<(PciAddress, u32)> {
        let device = sys.join("class/vfio-dev").join(name).join("device");
        let last = |link: &Path| -> io::Result<String> {
            let to = std::fs::read_link(link)?;
            Ok(to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
        };
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let (function, group) = (last(&device)?, last(&device.join("iommu_group"))?);
        let address =
            function.parse().map_err(|_| invalid(format!("'{function}' is no PCI function")))?;
        let group = group.parse().map_err(|_| invalid(format!("'{group}' is no IOMMU group")))?;
        Ok((address, group))
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
            let received = theirs.receive::<HandedFiles>(deadline).unwrap();
            let number = group.descriptors()[0];
            assert_eq!(received.message, HandedFiles::Group { group: number, container: None });
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
                ("virtual/misc/iommu", "is an iommufd (/dev/iommu), and not the file of an"),
                ("x/vfio-dev/vfio3", "is the file of a device (/dev/vfio/devices/vfio3), and not"),
                ("virtual/vfio/noiommu-4", "noiommu-4, a group without an IOMMU"),
                ("virtual/mem/null", "the character device 1:3 (mem/null)"),
            ] {
                let error = refused(device, false);
                assert!(error.contains(says), "{error}");
            }
            let error = refused("virtual/vfio/12", true);
            assert!(error.contains("group 12, and not a container"), "{error}");
        }

        /// What is called vfio3 and vfio4, a function of group 12 and one of another.
        fn devices() -> tempfile::TempDir {
            let sys = sys("pci0000:00/0000:01:00.0/vfio-dev/vfio3");
            let at = |path: &str| sys.path().join(path);
            let link = |to: &str, path: &str| {
                std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(to, at(path)).unwrap();
            };
            // As /dev/zero.
            link("../../devices/pci0000:00/0000:02:00.0/vfio-dev/vfio4", "dev/char/1:5");
            link("../../devices/virtual/misc/iommu", "dev/char/1:7");
            for (name, function, group) in
                [("vfio3", "0000:01:00.0", 12), ("vfio4", "0000:02:00.0", 13)]
            {
                let class = format!("class/vfio-dev/{name}");
                let (from, device) = (format!("{class}/device"), format!("devices/{function}"));
                link(&format!("../../../{device}"), &from);
                link(
                    &format!("../../kernel/iommu_groups/{group}"),
                    &format!("{device}/iommu_group"),
                );
            }
            sys
        }

        fn file(name: &str) -> OwnedFd {
            File::open(name).unwrap().into()
        }

        #[test]
        fn functions_are_handed_by_their_own_files_with_their_iommufd() {
            let sys = devices();
            // /dev/full is what this /sys has for an iommufd.
            let [device, iommufd] = ["/dev/null", "/dev/full"].map(file);
            let numbers = [device.as_raw_fd(), iommufd.as_raw_fd()];
            let group = VfioGroup::of_devices_beneath(sys.path(), vec![device], iommufd).unwrap();
            assert_eq!(group.number(), 12);
            let has = |text: &str| group.has(text.parse().unwrap());
            assert!(has("01:00.0") && !has("01:00.1"), "of its group only what was handed");
            let (mut ours, mut theirs) = Tube::pair().unwrap();
            let deadline = Deadline::after(std::time::Duration::from_secs(5));
            group.send(&mut ours, deadline).unwrap();
            let received = theirs.receive::<HandedFiles>(deadline).unwrap();
            let expected = HandedFiles::Devices { devices: vec![numbers[0]], iommufd: numbers[1] };
            assert_eq!(received.message, expected);
            received.handles.expect(2).unwrap();
            // What the kernel wants is closed, and still nobody opens it by its path.
            group.give_back();
            assert_eq!(group.descriptors(), [numbers[1]]);
            assert!(has("01:00.0"));
            group.send(&mut ours, deadline).unwrap();
            let received = theirs.receive::<HandedFiles>(deadline).unwrap();
            let nothing = HandedFiles::Devices { devices: vec![], iommufd: numbers[1] };
            assert_eq!(received.message, nothing);
        }

        #[test]
        fn functions_of_several_groups_and_files_that_are_mixed_up_are_refused() {
            let sys = devices();
            let refused = |devices: &[&str], iommufd: &str| {
                let devices = devices.iter().map(|name| file(name)).collect();
                VfioGroup::of_devices_beneath(sys.path(), devices, file(iommufd))
                    .unwrap_err()
                    .to_string()
            };
            for (devices, iommufd, says) in [
                (
                    &["/dev/null", "/dev/zero"][..],
                    "/dev/full",
                    "02:00.0 of IOMMU group 13, and those before it are of group 12",
                ),
                (
                    &["/dev/null", "/dev/null"],
                    "/dev/full",
                    "is function 01:00.0, which was handed twice",
                ),
                (
                    &["/dev/full"],
                    "/dev/full",
                    "is an iommufd (/dev/iommu), and not the file of a device",
                ),
                (&["/dev/null"], "/dev/zero", "and not an iommufd (/dev/iommu)"),
                (&[], "/dev/full", "No file of a device"),
                (
                    &["/dev/null"; MAX_HANDLES],
                    "/dev/full",
                    "32 files of devices were handed, 31 of one group",
                ),
            ] {
                let error = refused(devices, iommufd);
                assert!(error.contains(says), "{error}");
            }
        }
    }
}
