use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cordon_backend::{Backend as _, BackendError, ErrorKind, OpenGroup, Source};

use super::*;
use crate::Vfio;
use crate::fake::{FakeDevice, FakeKernel, Machine};

const NAME: &str = "0000:01:00.0";
/// Numbers that a manager passed descriptors on by.
const GROUP: i32 = 3;
const CONTAINER: i32 = 4;

/// A machine with a function in group 7 and one in group 9, and a manager that opens files.
struct Host {
    machine: Machine,
    kernel: FakeKernel,
    vfio: Vfio,
}

impl Host {
    fn new() -> Self {
        let (machine, kernel) = (Machine::new(), FakeKernel::default());
        for (name, group) in [(NAME, 7), ("0000:02:00.0", 9)] {
            machine.function(name, group, Some("vfio-pci"));
            kernel.add(name, FakeDevice::new(0x1b36, 0x10));
        }
        let vfio = Vfio::over(Arc::new(kernel.clone()), machine.places());
        Self { machine, kernel, vfio }
    }

    /// Opens a file of `/dev/vfio`, as a manager does that may.
    fn opened(&self, name: &str) -> OwnedFd {
        self.kernel.open(&PathBuf::from("/dev/vfio").join(name)).unwrap()
    }

    /// Opens the group of the function in group 7 by duplicates of these, where nothing can be opened by a path.
    fn open(
        &self,
        group: &OwnedFd,
        container: Option<&OwnedFd>,
    ) -> Result<OpenGroup, BackendError> {
        let handed =
            |file: &OwnedFd, number| HandedFile { file: file.try_clone().unwrap(), number };
        let group = handed(group, GROUP);
        let container = container.map(|file| handed(file, CONTAINER));
        let address = NAME.parse().unwrap();
        self.vfio.open_group(address, Source::HandedGroup(HandedGroup { group, container }))
    }

    fn refused(&self, group: &OwnedFd, container: Option<&OwnedFd>) -> BackendError {
        match self.open(group, container) {
            Ok(_) => panic!("it was opened"),
            Err(error) => error,
        }
    }
}

#[test]
fn a_group_is_opened_by_what_was_handed_and_by_nothing_else() {
    let host = Host::new();
    let (group, container) = (host.opened("7"), host.opened("vfio"));
    host.kernel.fail("open", libc::EACCES);
    let opened = host.open(&group, Some(&container)).unwrap();
    assert_eq!(opened.functions.len(), 1);
    // Without a container it opens that, and nothing else: the error was not used up so far.
    drop(opened);
    let error = host.refused(&group, None);
    assert!(error.text.contains("dev/vfio/vfio"), "{error}");
    host.open(&group, None).unwrap();
}

#[test]
fn a_group_is_opened_again_by_the_same_files_once_nobody_has_its_functions() {
    let host = Host::new();
    let (group, container) = (host.opened("7"), host.opened("vfio"));
    for _ in 0..3 {
        // What a process leaves that is killed: the group is in the container.
        drop(host.open(&group, Some(&container)).unwrap());
        drop(host.open(&group, None).unwrap());
    }
    host.kernel.set_used(7, true);
    let error = host.refused(&group, Some(&container));
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.text.contains("group 7, handed as descriptor 3, is in use"), "{error}");
    host.kernel.set_used(7, false);
    host.open(&group, Some(&container)).unwrap();
}

#[test]
fn a_group_that_was_taken_back_is_to_be_opened_again() {
    let host = Host::new();
    let group = host.opened("7");
    host.kernel.take_back(7);
    // Nobody has its number by then.
    std::fs::remove_file(host.machine.places().sys.join("dev/char/236:7")).unwrap();
    let error = host.refused(&group, None);
    let says = "descriptor 3 is of IOMMU group 7 as it was before the kernel took its devices back";
    assert!(error.text.contains(says), "{error}");
}

#[test]
fn the_file_of_another_group_is_named_with_both() {
    let host = Host::new();
    let error = host.refused(&host.opened("9"), None);
    let says = "descriptor 3 is the file of IOMMU group 9, and function 01:00.0 is in group 7";
    assert!(error.text.contains(says), "{error}");
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[test]
fn what_is_no_group_and_what_is_no_container_is_named() {
    let host = Host::new();
    let (group, container) = (host.opened("7"), host.opened("vfio"));
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for (device, says) in [
        ("virtual/mem/null", "the character device 1:3 (mem/null), and was handed as"),
        ("virtual/misc/iommu", "an iommufd (/dev/iommu), and was handed as"),
        ("pci/vfio-dev/vfio5", "/dev/vfio/devices/vfio5), and was handed as"),
        ("virtual/vfio/noiommu-7", "noiommu-7, a group without an IOMMU"),
    ] {
        host.machine.number((1, 3), device);
        let error = host.refused(&null, Some(&container));
        assert!(error.text.contains("descriptor 3 is ") && error.text.contains(says), "{error}");
        let error = host.refused(&group, Some(&null));
        assert!(error.text.contains("descriptor 4 is ") && error.text.contains(says), "{error}");
    }
    let error = host.refused(&container, None);
    assert!(error.text.contains("descriptor 3 is a container (/dev/vfio/vfio)"), "{error}");
    let error = host.refused(&group, Some(&group));
    assert!(error.text.contains("descriptor 4 is the file of IOMMU group 7"), "{error}");
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = host.refused(&socket.into(), None);
    assert!(error.text.contains("descriptor 3 is a file of another kind"), "{error}");
}

#[test]
fn a_container_that_has_another_group_is_refused() {
    let host = Host::new();
    let (group, container) = (host.opened("7"), host.opened("vfio"));
    let other = host.opened("9");
    let enter = || host.kernel.set_container(other.as_fd(), container.as_fd()).unwrap();
    let refused = || {
        let error = host.refused(&group, Some(&container));
        assert!(error.text.contains("descriptor 4 has another group in it"), "{error}");
        assert_eq!(error.kind, ErrorKind::Busy);
    };
    enter();
    refused();
    // And once it has a type.
    host.kernel.plain(container.as_fd(), Plain::SetIommu(3)).unwrap();
    refused();
    host.kernel.plain(other.as_fd(), Plain::UnsetContainer).unwrap();
    host.open(&group, Some(&container)).unwrap();
}

#[test]
fn what_keeps_a_group_from_being_opened_keeps_it_from_being_handed() {
    let host = Host::new();
    let (group, container) = (host.opened("7"), host.opened("vfio"));
    host.kernel.set_viable(false);
    host.machine.function("0000:01:00.1", 7, Some("snd_hda_intel"));
    let error = host.refused(&group, Some(&container));
    assert!(error.text.contains("not viable: 0000:01:00.1 is bound to snd_hda_intel"), "{error}");
    host.kernel.set_viable(true);
    host.kernel.set_version(1, &[1, 3]);
    let error = host.refused(&group, Some(&container));
    assert!(error.text.contains("of version 1, not of version 0"), "{error}");
    host.kernel.set_version(0, &[1]);
    let error = host.refused(&group, Some(&container));
    assert!(error.text.contains("no type 1 IOMMU"), "{error}");
}
