use std::path::PathBuf;

use cordon_backend::{
    Backend as _, BackendError, Behind, DmaRange, ErrorKind, OpenGroup, ResetKind, Source,
};
use ipc::{Access, SharedMemory};

use super::*;
use crate::Vfio;
use crate::fake::{FakeDevice, FakeKernel, Machine};
use crate::limits::MAX_OBJECTS;

const NAMES: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];
/// Numbers that a manager passed descriptors on by.
const DEVICE: i32 = 3;
const IOMMUFD: i32 = 4;

/// A machine with two functions in group 7 and one in group 9, each with a file of its own.
struct Host {
    machine: Machine,
    kernel: FakeKernel,
    vfio: Vfio,
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

impl Host {
    fn new() -> Self {
        let (machine, kernel) = (Machine::new(), FakeKernel::default());
        let functions = [(NAMES[0], 7), (NAMES[1], 7), ("0000:02:00.0", 9)];
        for (number, (name, group)) in (20..).zip(functions) {
            machine.function(name, group, Some("vfio-pci"));
            machine.cdev(name, number);
            let mut device = FakeDevice::new(0x1b36, 0x10);
            device.bus = vec![([0, 0, 1, 0], 7), ([0, 0, 1, 1], 7)];
            kernel.add(name, device);
            kernel.add_cdev(name, number);
        }
        let vfio = Vfio::over(Arc::new(kernel.clone()), machine.places());
        Self { machine, kernel, vfio }
    }

    fn open(&self) -> Result<OpenGroup, BackendError> {
        self.vfio.open_group(address("01:00.0"), Source::Own)
    }

    /// Opens a file beneath `/dev`, as a manager does that may.
    fn file(&self, name: &str) -> OwnedFd {
        self.kernel.open(&PathBuf::from("/dev").join(name)).unwrap()
    }

    fn hand(&self, devices: &[&OwnedFd], iommufd: &OwnedFd) -> Result<OpenGroup, BackendError> {
        let handed =
            |file: &OwnedFd, number| HandedFile { file: file.try_clone().unwrap(), number };
        let devices = (DEVICE..).zip(devices).map(|(number, file)| handed(file, number)).collect();
        let iommufd = handed(iommufd, IOMMUFD);
        let handed = HandedDevices { devices, iommufd };
        self.vfio.open_group(address("01:00.0"), Source::HandedDevices(handed))
    }
}

fn refused<T>(opened: Result<T, BackendError>) -> BackendError {
    match opened {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// Has a function reach memory that is mapped nowhere.
fn map(group: &mut OpenGroup, key: u64, memory: &SharedMemory) -> Result<(), BackendError> {
    let behind = Behind { memory, offset: 0x1000, writable: true };
    let range = DmaRange { key, size: 0x3000, mapped_at: None, behind };
    group.functions[0].register_dma(&range).map(drop)
}

#[test]
fn functions_are_opened_by_their_own_files_and_reach_memory_by_its_file() {
    let host = Host::new();
    let mut group = host.open().unwrap();
    let there: Vec<_> = group.functions.iter().map(|one| one.address()).collect();
    assert_eq!(there, ["01:00.0", "01:00.1"].map(address));
    assert!(group.group.uses_iommufd() && group.group.descriptors().len() == 1);
    assert!(host.kernel.is_bound(NAMES[0]) && host.kernel.is_bound(NAMES[1]));
    let space = group.functions[0].dma_space();
    assert!(!space.needs_mapping && space.shared);
    assert_eq!((space.granule, space.max_ranges), (4096, 65_535));

    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    map(&mut group, 0x8000, &memory).unwrap();
    let mapped = host.kernel.mappings().into_iter().collect::<Vec<_>>();
    assert_eq!(mapped, [(0x8000, (0x1000, 0x3000, 7))], "fixed, readable and writable");
    assert_eq!(map(&mut group, 0x8000, &memory).unwrap_err().kind, ErrorKind::Busy);
    let beyond = map(&mut group, 0xfee0_0000, &memory).unwrap_err();
    assert!(beyond.text.contains("none that the IOMMU maps"), "{beyond}");
    let at = cordon_backend::BusRange { address: 0x8000, length: 0x3000 };
    group.functions[0].unregister_dma(0x8000, at).unwrap();
    assert!(host.kernel.mappings().is_empty());

    // Everything ends with the process.
    drop(group);
    assert_eq!((host.kernel.spaces(), host.kernel.is_bound(NAMES[0])), (0, false));
}

#[test]
fn what_is_no_memory_is_refused_with_what_is_taken_and_a_limit_is_told() {
    let host = Host::new();
    let mut group = host.open().unwrap();
    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    for (errno, kind, said) in [
        (libc::EINVAL, ErrorKind::Refused, "files of memory only (memfd, hugetlbfs, tmpfs)"),
        (libc::ENOMEM, ErrorKind::NoSpace, "RLIMIT_MEMLOCK"),
    ] {
        host.kernel.fail("IOMMU_IOAS_MAP_FILE", errno);
        let error = map(&mut group, 0, &memory).unwrap_err();
        assert!(error.kind == kind && error.text.contains(said), "{error}");
    }
    map(&mut group, 0, &memory).unwrap();
}

#[test]
fn a_kernel_that_maps_no_files_is_given_addresses() {
    let host = Host::new();
    host.kernel.set_old_iommufd();
    let mut group = host.open().unwrap();
    assert!(group.functions[0].dma_space().needs_mapping);
    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    assert!(map(&mut group, 0, &memory).unwrap_err().text.contains("not mapped here"));
    let window = memory.map(0, 0x10_000, Access::ReadWrite).unwrap();
    let behind = Behind { memory: &memory, offset: 0x1000, writable: false };
    let mapped_at = Some(window.address() + 0x1000);
    let range = DmaRange { key: 0, size: 0x1000, mapped_at, behind };
    group.functions[0].register_dma(&range).unwrap();
    let (at, size, flags) = host.kernel.mappings()[&0];
    assert_eq!((at, size, flags), (window.address() as u64 + 0x1000, 0x1000, 5));
}

#[test]
fn the_groups_file_is_used_where_a_file_is_missing_or_not_for_this_user() {
    let host = Host::new();
    // The iommufd, then each function's own.
    for fail in 0..3 {
        // Those before it are opened.
        let opened = |group: &OpenGroup| !group.group.uses_iommufd();
        host.kernel.fail_after("open", fail, libc::EACCES);
        let group = host.open().unwrap();
        assert!(opened(&group), "{fail}");
        assert!(group.functions[0].dma_space().needs_mapping);
    }
    let places = host.machine.places();
    std::fs::remove_file(places.dev.join("vfio/devices/vfio20")).unwrap();
    assert!(!host.open().unwrap().group.uses_iommufd());
    host.kernel.fail("open", libc::EMFILE);
    host.machine.cdev("0000:02:00.0", 30);
    let other = host.vfio.open_group(address("02:00.0"), Source::Own);
    assert!(refused(other).text.contains("cannot open"), "no reason to try otherwise");
}

#[test]
fn a_function_that_another_process_has_is_refused_and_so_is_a_group_of_the_hosts() {
    let host = Host::new();
    let _group = host.open().unwrap();
    let held = refused(host.open());
    assert_eq!(held.kind, ErrorKind::Busy);
    assert!(held.text.contains("group 7 is held by another process"), "{held}");
    host.machine.function("0000:02:00.1", 9, Some("snd_hda_intel"));
    host.kernel.set_viable(false);
    let other = refused(host.vfio.open_group(address("02:00.0"), Source::Own));
    let why = "group 9 is not viable: 0000:02:00.1 is bound to snd_hda_intel";
    assert!(other.text.contains(why), "{other}");
    host.kernel.set_viable(true);
    host.kernel.fail("DEVICE_BIND_IOMMUFD", libc::ENODEV);
    let gone = refused(host.vfio.open_group(address("02:00.0"), Source::Own));
    assert_eq!(gone.kind, ErrorKind::Gone);
}

#[test]
fn what_a_dead_process_left_goes_on_as_it_is() {
    let host = Host::new();
    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    let mut group = host.open().unwrap();
    group.functions[0].claim().unwrap();
    map(&mut group, 0x8000, &memory).unwrap();
    let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let left = cordon_backend::Left {
        handed: None,
        group: group.group.descriptors().into_iter().map(duplicate).collect(),
        functions: vec![LeftFunction {
            address: address("01:00.0"),
            descriptors: group.functions[0].handed().into_iter().map(duplicate).collect(),
            request: group.functions[0].survives().request.map(duplicate),
        }],
    };
    // Killed: nothing is taken back.
    std::mem::forget(group);
    let resets = || host.kernel.device_of(NAMES[0], |one| one.resets());
    let before = resets();
    let mut group = host.vfio.open_group(address("01:00.0"), Source::Adopted(left)).unwrap();
    // The other one is still bound by what is dead, as far as the fake kernel sees.
    assert_eq!(group.functions.len(), 1);
    group.functions[0].claim().unwrap();
    let behind = Behind { memory: &memory, offset: 0x1000, writable: true };
    let range = DmaRange { key: 0x8000, size: 0x3000, mapped_at: None, behind };
    group.functions[0].adopt_dma(&range).unwrap();
    assert_eq!((host.kernel.mappings().len(), resets()), (1, before));
    let other = DmaRange { key: 0x20_0000, ..range };
    group.functions[0].register_dma(&other).unwrap();
    assert_eq!(host.kernel.mappings().len(), 2);

    let nothing = cordon_backend::Left { group: vec![host.file("iommu")], ..Default::default() };
    let none = refused(host.vfio.open_group(address("01:00.0"), Source::Adopted(nothing)));
    assert!(none.text.contains("0 address spaces instead of 1"), "{none}");
}

#[test]
fn a_bus_is_reset_if_the_iommufd_has_all_of_it() {
    let host = Host::new();
    for name in NAMES {
        host.kernel.device_of(name, |device| device.resettable = false);
    }
    let mut group = host.open().unwrap();
    let resets = || NAMES.map(|name| host.kernel.device_of(name, |one| one.resets()));
    assert_eq!(group.functions[0].reset_kinds(), [ResetKind::Bus]);
    group.functions[0].reset(ResetKind::Bus).unwrap();
    assert_eq!(resets(), [1, 1]);
    group.functions[1].claim().unwrap();
    let busy = group.functions[0].reset(ResetKind::Bus).unwrap_err();
    assert!(busy.kind == ErrorKind::Busy && busy.text.contains("01:00.1"), "{busy}");
    drop(group);
    for name in NAMES {
        let bus = vec![([0, 0, 1, 0], 7), ([0, 0, 2, 0], 9)];
        host.kernel.device_of(name, |device| device.bus = bus);
    }
    let mut group = host.open().unwrap();
    let foreign = group.functions[0].reset(ResetKind::Bus).unwrap_err();
    assert!(foreign.text.contains("02:00.0, which is of another IOMMU group"), "{foreign}");
    assert_eq!(resets(), [1, 1]);
}

#[test]
fn what_a_manager_opened_is_used_and_nothing_else_of_the_group() {
    let host = Host::new();
    let (own, iommufd) = (host.file("vfio/devices/vfio20"), host.file("iommu"));
    let mut group = host.hand(&[&own], &iommufd).unwrap();
    assert_eq!(group.functions.len(), 1);
    assert!(!host.kernel.is_bound(NAMES[1]));
    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    map(&mut group, 0x8000, &memory).unwrap();
    host.kernel.device_of(NAMES[0], |one| assert_eq!(one.resets(), 0, "but by being opened"));

    // Whoever handed them keeps them: the device runs on until the next process has them.
    std::mem::forget(group);
    assert_eq!((host.kernel.mappings().len(), host.kernel.spaces()), (1, 1));
    let group = host.hand(&[&own], &iommufd).unwrap();
    assert_eq!((host.kernel.mappings().len(), host.kernel.spaces()), (0, 1));
    host.kernel.device_of(NAMES[0], |one| assert_eq!(one.resets(), 1));
    drop(group);
    host.kernel.device_of(NAMES[0], |one| one.resettable = false);
    let left = refused(host.hand(&[&own], &iommufd));
    assert!(
        left.text.contains("01:00.1, which is of another IOMMU group or not vfio-pci's"),
        "{left}"
    );
}

#[test]
fn a_function_that_only_its_bus_resets_is_reset_with_it_before_somebody_else_has_it() {
    let host = Host::new();
    for name in NAMES {
        host.kernel.device_of(name, |one| one.resettable = false);
    }
    let files = ["vfio/devices/vfio20", "vfio/devices/vfio21"].map(|name| host.file(name));
    let iommufd = host.file("iommu");
    let mut group = host.hand(&[&files[0], &files[1]], &iommufd).unwrap();
    group.functions[0].claim().unwrap();
    std::mem::forget(group);
    let mut group = host.hand(&[&files[0], &files[1]], &iommufd).unwrap();
    for (name, function) in NAMES.iter().zip(&mut group.functions) {
        assert!(host.kernel.device_of(name, |one| one.resets()) > 0, "{name}");
        assert_eq!(function.config_read(4, 2).unwrap() & 0b100, 0, "bus mastering");
    }
}

#[test]
fn a_function_that_is_bound_to_another_iommufd_reaches_no_memory_of_a_dead_guests() {
    let host = Host::new();
    let (own, first) = (host.file("vfio/devices/vfio20"), host.file("iommu"));
    let mut group = host.hand(&[&own], &first).unwrap();
    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    map(&mut group, 0x8000, &memory).unwrap();
    // The manager keeps the function's file, and not the iommufd.
    host.kernel.hold(NAMES[0]);
    std::mem::forget(group);
    drop(first);
    let second = host.file("iommu");
    let refused = refused(host.hand(&[&own], &second));
    let says = "01:00.0, handed as descriptor 3, is bound still to another iommufd";
    assert!(refused.text.contains(says), "{refused}");
    assert_eq!(host.kernel.attached(NAMES[0]), None);
}

#[test]
fn functions_that_were_handed_and_not_claimed_are_there_after_an_adoption() {
    let host = Host::new();
    let files = ["vfio/devices/vfio20", "vfio/devices/vfio21"].map(|name| host.file(name));
    let iommufd = host.file("iommu");
    let mut group = host.hand(&[&files[0], &files[1]], &iommufd).unwrap();
    group.functions[0].claim().unwrap();
    let memory = SharedMemory::create("guest", 0x10_000).unwrap();
    map(&mut group, 0x8000, &memory).unwrap();
    std::mem::forget(group);
    let before = NAMES.map(|name| host.kernel.device_of(name, |one| one.resets()));
    let handed = |file: &OwnedFd, number| HandedFile { file: file.try_clone().unwrap(), number };
    let left = || cordon_backend::Left {
        group: vec![iommufd.try_clone().unwrap()],
        functions: vec![LeftFunction {
            address: address("01:00.0"),
            descriptors: vec![files[0].try_clone().unwrap()],
            request: None,
        }],
        handed: Some(HandedDevices {
            devices: (DEVICE..).zip(&files).map(|(number, file)| handed(file, number)).collect(),
            iommufd: handed(&iommufd, 5),
        }),
    };
    // Nothing is opened by a path.
    host.kernel.fail("open", libc::EACCES);
    let mut group = host.vfio.open_group(address("01:00.0"), Source::Adopted(left())).unwrap();
    let there: Vec<_> = group.functions.iter().map(|one| one.address()).collect();
    assert_eq!(there, ["01:00.0", "01:00.1"].map(address));
    group.functions[1].claim().unwrap();
    let after = NAMES.map(|name| host.kernel.device_of(name, |one| one.resets()));
    assert_eq!((after[0], after[1]), (before[0], before[1] + 1), "the one that was left goes on");
    assert_eq!(host.kernel.mappings().len(), 1);
}

#[test]
fn a_machine_without_interrupt_remapping_may_have_containers_still() {
    let host = Host::new();
    // Until nobody can be the reason any more that somebody else has the group.
    host.kernel.fail_always("DEVICE_BIND_IOMMUFD", libc::EPERM);
    assert!(!host.open().unwrap().group.uses_iommufd());
    let (own, iommufd) = (host.file("vfio/devices/vfio20"), host.file("iommu"));
    let refused = refused(host.hand(&[&own], &iommufd));
    assert!(refused.text.contains("iommufd's allow_unsafe_interrupts is off"), "{refused}");
}

#[test]
fn files_that_are_mixed_up_are_refused_by_their_numbers() {
    let host = Host::new();
    let own = host.file("vfio/devices/vfio20");
    let (other, group, iommufd) =
        (host.file("vfio/devices/vfio22"), host.file("vfio/7"), host.file("iommu"));
    for (devices, with, said) in [
        (
            &[&other][..],
            &iommufd,
            "descriptor 3 is the file of vfio22, which is no function of IOMMU group 7",
        ),
        (
            &[&group],
            &iommufd,
            "descriptor 3 is the file of IOMMU group 7, and was handed as the file of a device",
        ),
        (&[&own, &own], &iommufd, "descriptor 4 is 01:00.0, which was handed twice"),
        (&[], &iommufd, "whoever handed it must open it again"),
        (
            &[&own],
            &group,
            "descriptor 4 is the file of IOMMU group 7, and was handed as an iommufd",
        ),
    ] {
        let error = refused(host.hand(devices, with));
        assert!(error.text.contains(said), "{error}");
        assert!(!host.kernel.is_bound(NAMES[0]));
    }
    // One that somebody else's device reaches memory by.
    let _other = {
        let handed = HandedDevices {
            devices: vec![HandedFile { file: other, number: 7 }],
            iommufd: HandedFile { file: iommufd.try_clone().unwrap(), number: 8 },
        };
        host.vfio.open_group(address("02:00.0"), Source::HandedDevices(handed)).unwrap()
    };
    let busy = refused(host.hand(&[&own], &iommufd));
    assert_eq!(busy.kind, ErrorKind::Busy);
    assert!(busy.text.contains("descriptor 4 is in use"), "{busy}");
}

#[test]
fn objects_beyond_those_that_are_looked_at_are_not_taken_for_spaces() {
    let host = Host::new();
    let iommufd = host.file("iommu");
    for _ in 0..=MAX_OBJECTS {
        let mut new = Structure::new(12);
        host.kernel.described(iommufd.as_fd(), Described::AllocateIoas, &mut new).unwrap();
    }
    ioas::clear(&host.kernel, iommufd.as_fd()).unwrap();
    assert_eq!(host.kernel.spaces(), 1);
}

/// The file that the process tries to lock that a test starts of its own program.
const TRIES: &str = "CORDON_TEST_TRIES_A_LOCK";

#[test]
fn a_function_that_was_adopted_stays_locked_though_its_file_was_handed_once_more() {
    use std::process::Command;

    if let Some(path) = std::env::var_os(TRIES) {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(locked, Err(Errno::AGAIN));
        return;
    }
    let host = Host::new();
    let (own, iommufd) = (host.file("vfio/devices/vfio20"), host.file("iommu"));
    let mut group = host.hand(&[&own], &iommufd).unwrap();
    group.functions[0].claim().unwrap();
    let copy = |file: &OwnedFd, number| HandedFile { file: file.try_clone().unwrap(), number };
    let devices = vec![copy(&own, DEVICE)];
    let handed = HandedDevices { devices, iommufd: copy(&iommufd, IOMMUFD) };
    let left = cordon_backend::Left {
        group: vec![iommufd.try_clone().unwrap()],
        functions: vec![LeftFunction {
            address: address("01:00.0"),
            descriptors: vec![own.try_clone().unwrap()],
            request: None,
        }],
        handed: Some(handed),
    };
    // Killed.
    std::mem::forget(group);
    let adopted = host.vfio.open_group(address("01:00.0"), Source::Adopted(left)).unwrap();
    let tried = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cdev::tests::a_function_that_was_adopted_stays_locked_though_its_file_was_handed_once_more",
        ])
        .env(TRIES, format!("/proc/{}/fd/{}", std::process::id(), own.as_raw_fd()))
        .output()
        .unwrap();
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stdout));
    drop(adopted);
}

/// Names this test to the process that it starts of its own program, which has the file as standard input.
const HOLDS: &str = "CORDON_TEST_HOLDS_A_LOCK";

#[test]
fn a_function_that_another_process_serves_is_refused_while_that_lives() {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::{Command, Stdio};

    if std::env::var_os(HOLDS).is_some() {
        let lock = FlockOperation::NonBlockingLockExclusive;
        fcntl_lock(rustix::stdio::stdin(), lock).unwrap();
        println!("locked");
        // Until it is killed.
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    let host = Host::new();
    let own = host.file("vfio/devices/vfio20");
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "cdev::tests::a_function_that_another_process_serves_is_refused_while_that_lives",
        ])
        .env(HOLDS, "1")
        .stdin(own.try_clone().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(other.stdout.take().unwrap());
    let mut lines = said.by_ref().lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("locked")));
    let iommufd = host.file("iommu");
    let busy = refused(host.hand(&[&own], &iommufd));
    assert_eq!(busy.kind, ErrorKind::Busy);
    assert!(busy.text.contains("descriptor 3 is in use"), "{busy}");
    // Nor is what was left adopted that somebody else has since.
    let left = cordon_backend::Left {
        group: vec![iommufd.try_clone().unwrap()],
        functions: vec![LeftFunction {
            address: address("01:00.0"),
            descriptors: vec![own.try_clone().unwrap()],
            request: None,
        }],
        handed: None,
    };
    let taken = refused(host.vfio.open_group(address("01:00.0"), Source::Adopted(left)));
    assert!(taken.text.contains("too has it since its process died"), "{taken}");
    other.kill().unwrap();
    other.wait().unwrap();
    host.hand(&[&own], &iommufd).unwrap();
}
