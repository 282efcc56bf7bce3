use cordon_backend::{Behind, Delivery, ErrorKind, Left, LeftFunction};
use ipc::wire::function::InterruptIndex;
use ipc::{Access, SharedMemory};

use super::*;
use crate::fake::{FakeDevice, FakeKernel, Machine};

const NAME: &str = "0000:01:00.0";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A machine with two functions of one device in group 7, and one in group 9.
fn machine() -> (Machine, FakeKernel, Vfio) {
    let (machine, kernel) = (Machine::new(), FakeKernel::default());
    for (name, group) in [(NAME, 7), ("0000:01:00.1", 7), ("0000:02:00.0", 9)] {
        machine.function(name, group, Some("vfio-pci"));
        kernel.add(name, FakeDevice::new(0x1b36, 0x10));
    }
    let vfio = Vfio::over(Arc::new(kernel.clone()), machine.places());
    (machine, kernel, vfio)
}

fn refused<T>(opened: Result<T, BackendError>) -> BackendError {
    match opened {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

fn served(group: &OpenGroup, vfio: &Vfio) -> Box<dyn ServedFunction> {
    let function = &group.functions[0];
    let handed = function.handed().iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    vfio.open_function(function.address(), Source::Handed(handed)).unwrap()
}

#[test]
fn a_group_is_open_in_one_process_and_has_its_functions_of_whichever_device() {
    let (machine, kernel, vfio) = machine();
    machine.function("0000:05:00.0", 7, Some("vfio-pci"));
    kernel.add("0000:05:00.0", FakeDevice::new(0x1b36, 0x10));
    machine.function("0000:05:00.1", 7, None);
    let group = vfio.open_group(address("01:00.1"), Source::Own).unwrap();
    let there: Vec<_> = group.functions.iter().map(|one| one.address()).collect();
    assert_eq!(there, ["01:00.0", "01:00.1", "05:00.0"].map(address));
    let held = refused(vfio.open_group(address("01:00.0"), Source::Own));
    assert_eq!(held.kind, ErrorKind::Busy);
    assert!(held.text.contains("group 7 is held by another process"), "{held}");
    assert!(held.text.contains("0000:01:00.0, 0000:01:00.1"), "{held}");
    let other = vfio.open_group(address("02:00.0"), Source::Own).unwrap();
    assert_eq!(other.functions.len(), 1);
    drop(group);
    vfio.open_group(address("01:00.0"), Source::Own).unwrap();
}

#[test]
fn a_group_that_cannot_be_had_is_refused_with_the_function_and_the_driver() {
    let (machine, kernel, vfio) = machine();
    let open = |text: &str| refused(vfio.open_group(address(text), Source::Own));
    assert_eq!(open("05:00.0").kind, ErrorKind::NoSuchDevice);
    machine.function("0000:03:00.0", 11, Some("nvme"));
    let error = open("03:00.0");
    assert!(error.text.contains("its driver is nvme, not vfio-pci"), "{error}");
    machine.function("0000:03:00.1", 11, None);
    assert!(open("03:00.1").text.contains("it has no driver, not vfio-pci"));
    machine.function("0000:04:00.0", 12, Some("vfio-pci"));
    machine.write("dev/vfio/noiommu-12", "");
    let error = open("04:00.0");
    assert!(error.text.contains("noiommu-12 has no IOMMU"), "{error}");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    machine.function("0000:01:00.2", 7, Some("snd_hda_intel"));
    kernel.set_viable(false);
    let error = open("01:00.0");
    let why = "group 7 is not viable: 0000:01:00.2 is bound to snd_hda_intel";
    assert!(error.text.contains(why), "{error}");
    kernel.set_viable(true);
    kernel.fail("open", libc::EACCES);
    let error = open("01:00.0");
    assert!(error.text.contains("give its file to the user"), "{error}");
    assert_eq!(error.code, Some(13));
    kernel.fail("GROUP_SET_CONTAINER", libc::EBUSY);
    assert_eq!(open("01:00.0").kind, ErrorKind::Busy);
    let lost = vfio.open_group(address("01:00.0"), Source::Handed(Vec::new()));
    assert_eq!(refused(lost).kind, ErrorKind::Unsupported);
}

#[test]
fn functions_of_a_group_are_claimed_at_once_and_keep_what_both_were_given() {
    let (_machine, kernel, vfio) = machine();
    let mut group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let mut second = group.functions.remove(1);
    let mut first = group.functions.remove(0);
    assert!(first.dma_space().shared && !first.is_claimed().unwrap());
    first.claim().unwrap();
    first.claim().unwrap();
    assert!(first.is_claimed().unwrap() && !second.is_claimed().unwrap());
    second.claim().unwrap();
    let command = || kernel.device_of(NAME, |one| one.get(7, 4, 2));
    assert_eq!(command(), [6, 0], "it decodes its memory and reaches ours");
    let memory = SharedMemory::create("ram", 0x4000).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    let range = |key, offset| DmaRange {
        key,
        size: 0x1000,
        mapped_at: Some(window.address() + usize::try_from(offset).unwrap()),
        behind: Behind { memory: &memory, offset, writable: true },
    };
    for function in [&mut first, &mut second] {
        function.register_dma(&range(0x1000, 0)).unwrap();
    }
    first.register_dma(&range(0x2000, 0x1000)).unwrap();
    // The same bus address for other memory would be taken from under the other function.
    let other = second.register_dma(&range(0x2000, 0x2000)).unwrap_err();
    assert_eq!(other.kind, ErrorKind::Busy);
    let there = || kernel.mappings().into_keys().collect::<Vec<_>>();
    assert_eq!(there(), [0x1000, 0x2000]);
    let mut first = first.release().unwrap().expect("it can be claimed again");
    assert_eq!(there(), [0x1000], "what the other one has stays");
    assert_eq!(command(), [2, 4], "it reaches nothing, not by its pin either");
    assert!(!first.is_claimed().unwrap() && second.is_claimed().unwrap());
    first.claim().unwrap();
    assert_eq!(command(), [6, 0]);
    first.register_dma(&range(0x1000, 0)).unwrap();
    drop(second);
    assert_eq!(there(), [0x1000]);
    drop(first);
    assert_eq!(there(), Vec::<u64>::new());
}

#[test]
fn a_function_that_does_not_become_quiet_is_closed() {
    let (_machine, kernel, vfio) = machine();
    let mut group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let mut first = group.functions.remove(0);
    first.claim().unwrap();
    let memory = SharedMemory::create("ram", 0x1000).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    let behind = Behind { memory: &memory, offset: 0, writable: true };
    let range = DmaRange { key: 0, size: 0x1000, mapped_at: Some(window.address()), behind };
    first.register_dma(&range).unwrap();
    kernel.fail("IOMMU_UNMAP_DMA", libc::EAGAIN);
    let error = first.release().err().unwrap().to_string();
    assert!(error.contains("01:00.0: Release failed"), "{error}");
}

#[test]
fn more_functions_of_a_group_than_are_served_are_refused() {
    let (machine, kernel, vfio) = machine();
    for number in 2..=crate::limits::MAX_FUNCTIONS {
        let name = format!("0000:{:02x}:00.0", number + 0x10);
        machine.function(&name, 7, Some("vfio-pci"));
        kernel.add(&name, FakeDevice::new(0x1b36, 0x10));
    }
    let error = refused(vfio.open_group(address("01:00.0"), Source::Own));
    assert!(error.text.contains("group 7 has more than 32 functions"), "{error}");
}

#[test]
fn guest_memory_lies_at_its_guest_address_and_goes_with_its_function() {
    let (_machine, kernel, vfio) = machine();
    let mut group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let memory = SharedMemory::create("ram", 0x10_0000).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    let function = &mut group.functions[0];
    function.claim().unwrap();
    assert_eq!(function.dma_space().addresses, BusAddresses::Chosen);
    let behind = Behind { memory: &memory, offset: 0x1000, writable: true };
    let mapped_at = Some(window.address() + 0x1000);
    let range = DmaRange { key: 0x8000_0000, size: 0x2000, mapped_at, behind };
    let bus = function.register_dma(&range).unwrap();
    assert_eq!(bus, BusRange { address: 0x8000_0000, length: 0x2000 });
    let there = (window.address() as u64 + 0x1000, 0x2000, 3);
    assert_eq!(kernel.mappings().get(&0x8000_0000), Some(&there));
    let twice = function.register_dma(&range).unwrap_err();
    assert_eq!(twice.kind, ErrorKind::Busy);
    let unmapped = DmaRange { key: 0, mapped_at: None, ..range };
    assert!(function.register_dma(&unmapped).is_err());
    function.unregister_dma(0x8000_0000, bus).unwrap();
    assert!(function.unregister_dma(0x8000_0000, bus).is_err());
    function.register_dma(&range).unwrap();
    drop(group);
    assert!(kernel.mappings().is_empty());
}

/// What a process leaves that dies, as the one who keeps it has it.
fn left(group: &OpenGroup, claimed: &[usize]) -> Left {
    let copy = |fds: Vec<BorrowedFd<'_>>| -> Vec<OwnedFd> {
        fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()
    };
    let Survives::Descriptors(of_group) = group.group.survives() else {
        panic!("nothing survives")
    };
    let functions = claimed.iter().map(|at| {
        let function = &group.functions[*at];
        let SurvivingFunction { descriptors, request } = function.survives();
        let (address, descriptors) = (function.address(), copy(descriptors));
        let request = copy(request.into_iter().collect()).pop();
        LeftFunction { address, descriptors, request }
    });
    Left { functions: functions.collect(), group: copy(of_group), handed: None }
}

#[test]
fn what_a_dead_process_left_is_adopted_as_it_is() {
    let (_machine, kernel, vfio) = machine();
    let mut group = vfio.open_group(address("02:00.0"), Source::Own).unwrap();
    let name = "0000:02:00.0";
    let memory = SharedMemory::create("ram", 0x10_0000).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    let behind = Behind { memory: &memory, offset: 0, writable: true };
    let mapped_at = Some(window.address());
    let range = DmaRange { key: 0x8000_0000, size: 0x2000, mapped_at, behind };
    let function = &mut group.functions[0];
    function.claim().unwrap();
    let bus = function.register_dma(&range).unwrap();
    let own = function.adopt_dma(&DmaRange { key: 0, ..range }).unwrap_err();
    assert!(own.text.contains("nobody used its DMA space before"), "{own}");
    let before = kernel.mappings();
    // Its guest has switched its memory off since.
    kernel.device_of(name, |one| one.set(7, 4, &[4, 0]));
    let left = left(&group, &[0]);
    // Killed: it gives nothing back.
    std::mem::forget(group);
    // A function process that was taken over can do this.
    kernel.device_of(name, FakeDevice::forget_request);

    kernel.fail("open", libc::EBUSY);
    kernel.fail("GROUP_GET_DEVICE_FD", libc::EBUSY);
    kernel.fail("SET_IOMMU", libc::EBUSY);
    let mut group = vfio.open_group(address("02:00.0"), Source::Adopted(left)).unwrap();
    let function = &mut group.functions[0];
    assert!(!function.is_claimed().unwrap());
    function.claim().unwrap();
    assert!(function.is_claimed().unwrap());
    assert_eq!(kernel.device_of(name, |one| (one.get(7, 4, 2), one.resets())), (vec![4, 0], 0));
    // What was not told is refused, and what was is there; as is what was asked for when the process died.
    assert_eq!(function.register_dma(&range).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(function.adopt_dma(&range).unwrap(), bus);
    assert_eq!(kernel.mappings(), before);
    function.adopt_dma(&DmaRange { key: 0x9000_0000, ..range }).unwrap();
    assert_eq!(kernel.mappings().len(), 2);
    kernel.fail("IOMMU_MAP_DMA", libc::ENOMEM);
    let none = function.adopt_dma(&DmaRange { key: 0xa000_0000, ..range }).unwrap_err();
    assert_eq!(none.kind, ErrorKind::NoSpace, "{none}");
    function.unregister_dma(0x8000_0000, bus).unwrap();
    assert_eq!(kernel.mappings().keys().copied().collect::<Vec<_>>(), [0x9000_0000]);
    // The kernel tells by the event that it was told of when the device was opened, and once more since.
    kernel.device_of(name, |one| one.ask_for());
    let ready = ipc::poll::wait(
        &[group.functions[0].liveness().unwrap().source(())],
        Some(ipc::Deadline::now()),
    );
    assert_eq!(ready.unwrap().len(), 1);
}

#[test]
fn what_nobody_had_claimed_is_opened_anew_and_can_be_claimed_after_an_adoption() {
    let (_machine, kernel, vfio) = machine();
    let mut group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    group.functions[1].claim().unwrap();
    let left = left(&group, &[1]);
    std::mem::forget(group);
    let mut group = vfio.open_group(address("01:00.0"), Source::Adopted(left)).unwrap();
    let there: Vec<_> = group.functions.iter().map(|one| one.address()).collect();
    assert_eq!(there, ["01:00.0", "01:00.1"].map(address));
    kernel.device_of("0000:01:00.1", |one| one.set(7, 4, &[0, 0]));
    for function in &mut group.functions {
        function.claim().unwrap();
    }
    let command = |name| kernel.device_of(name, |one| one.get(7, 4, 2));
    assert_eq!((command(NAME), command("0000:01:00.1")), (vec![6, 0], vec![0, 0]));
}

#[test]
fn what_is_no_group_in_its_container_is_not_adopted() {
    let (_machine, kernel, vfio) = machine();
    let adopt = |left| refused(vfio.open_group(address("02:00.0"), Source::Adopted(left)));
    assert!(adopt(Left::default()).text.contains("0 descriptors of a group were left"));
    let group = vfio.open_group(address("02:00.0"), Source::Own).unwrap();
    let mut other = left(&group, &[0]);
    other.functions[0].descriptors.clear();
    assert!(adopt(other).text.contains("0 descriptors of 02:00.0 were left"));
    let mut swapped = left(&group, &[0]);
    swapped.group.swap(0, 1);
    assert_eq!(adopt(swapped).code, u32::try_from(libc::ENOTTY).ok());
    let mut memory = left(&group, &[0]);
    memory.functions[0].descriptors = vec![SharedMemory::create("x", 4096).unwrap().into_fd()];
    assert_eq!(adopt(memory).code, u32::try_from(libc::ENOTTY).ok());
    let alone = left(&group, &[0]);
    kernel.take_from_container(9);
    assert!(adopt(alone).text.contains("is in no container"));
}

#[test]
fn a_bar_is_a_part_of_the_devices_descriptor() {
    let (_machine, kernel, vfio) = machine();
    let mut group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    kernel.device_of(NAME, |one| one.set(0, 0x1008, &[1, 2, 3, 4]));
    let memory = group.functions[0].bar_memory(0).unwrap();
    assert_eq!(memory.size, 0x4000);
    let (part, at) = memory.part(0x1000, 0x1000).unwrap();
    let window = part.map(at, 0x1000).unwrap();
    assert_eq!(window.read::<u32>(8).unwrap(), 0x0403_0201);
    for none in [1, 6, 7, 255] {
        assert_eq!(group.functions[0].bar_memory(none).unwrap_err().kind, ErrorKind::Unsupported);
    }
}

#[test]
fn the_function_process_serves_what_it_is_handed() {
    let (_machine, kernel, vfio) = machine();
    let group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let mut function = served(&group, &vfio);
    assert_eq!(function.identity().vendor, 0x1b36);
    assert!(function.is_claimed().unwrap() && function.liveness().is_none());
    assert_eq!(function.open_bar(0).unwrap(), 0x4000);
    assert!(function.open_bar(3).is_err() && function.open_bar(7).is_err());
    function.bar_write(0, 8, 4, 7).unwrap();
    assert_eq!(function.bar_read(0, 8, 4).unwrap(), 7);
    function.config_write(0x3c, 1, 9).unwrap();
    assert_eq!(function.config_read(0x3c, 1).unwrap(), 9);
    assert_eq!(function.reset_kinds(), [ResetKind::Function]);
    function.reset(ResetKind::Function).unwrap();
    assert_eq!(function.reset(ResetKind::Bus).unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(kernel.device_of(NAME, |one| one.resets()), 1);
    let own = vfio.open_function(address("01:00.0"), Source::Own);
    assert_eq!(refused(own).kind, ErrorKind::Unsupported);
    let none = vfio.open_function(address("01:00.0"), Source::Handed(Vec::new()));
    assert!(refused(none).text.contains("0 descriptors"));
}

#[test]
fn a_device_without_a_reset_has_none() {
    let (_machine, kernel, vfio) = machine();
    kernel.device_of(NAME, |one| one.resettable = false);
    let mut group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    assert!(group.functions[0].reset_kinds().is_empty());
    let error = group.functions[0].reset(ResetKind::Function).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

/// Tells whom to signal, and which of the first vectors signal somebody then.
fn connected(kernel: &FakeKernel, function: &mut dyn ServedFunction, whom: &[bool]) -> Vec<usize> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let whom: Vec<_> = whom.iter().map(|one| one.then(|| event.as_fd())).collect();
    match function.delivery() {
        Delivery::Kernel(interrupts) => interrupts.connect(InterruptIndex::Msix, &whom).unwrap(),
        Delivery::Notified(_) => panic!("the kernel delivers"),
    }
    kernel.device_of(NAME, |one| (0..8).filter(|vector| one.fire(2, *vector)).collect())
}

#[test]
fn vectors_come_and_go_as_they_are_used() {
    let (_machine, kernel, vfio) = machine();
    let group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let mut function = served(&group, &vfio);
    assert_eq!(function.set_up_interrupts().unwrap(), 8);
    let function = function.as_mut();
    assert_eq!(connected(&kernel, function, &[true, false, true]), [0, 2]);
    // Fewer: nobody is signalled for those that are not named.
    assert_eq!(connected(&kernel, function, &[true]), [0]);
    assert_eq!(connected(&kernel, function, &[false, true]), [1]);
    // More than the kernel was told of at first.
    assert_eq!(connected(&kernel, function, &[true; 8]), (0..8).collect::<Vec<_>>());
    assert_eq!(connected(&kernel, function, &[]), Vec::<usize>::new());
    assert_eq!(connected(&kernel, function, &[]), Vec::<usize>::new(), "off is off");
    assert_eq!(connected(&kernel, function, &[true, true]), [0, 1]);
}

#[test]
fn a_process_that_comes_after_one_that_died_tells_the_kernel_anew() {
    let (_machine, kernel, vfio) = machine();
    let group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let mut first = served(&group, &vfio);
    assert_eq!(connected(&kernel, first.as_mut(), &[true, true]), [0, 1]);
    drop(first);
    let fires = kernel.device_of(NAME, |one| one.fire(2, 1));
    assert!(fires, "the kernel goes on without a process");
    let mut second = served(&group, &vfio);
    second.set_up_interrupts().unwrap();
    assert_eq!(connected(&kernel, second.as_mut(), &[true; 4]), [0, 1, 2, 3]);
    // And one that goes on with another kind.
    let mut third = served(&group, &vfio);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let Delivery::Kernel(interrupts) = third.delivery() else { panic!() };
    interrupts.connect(InterruptIndex::Intx, &[Some(event.as_fd())]).unwrap();
    let fired = || kernel.device_of(NAME, |one| one.fire(0, 0));
    assert!(fired() && !fired());
    interrupts.mask_intx(false).unwrap();
    assert!(fired());
}

#[test]
fn the_kernel_wants_a_device_back_and_its_process_sees_it() {
    let (_machine, kernel, vfio) = machine();
    let group = vfio.open_group(address("01:00.0"), Source::Own).unwrap();
    let function = &group.functions[0];
    let is_asked = || {
        let liveness = function.liveness().unwrap();
        let ready = ipc::poll::wait(&[liveness.source(())], Some(ipc::Deadline::now()));
        !ready.unwrap().is_empty()
    };
    assert!(!is_asked());
    kernel.device_of(NAME, |one| one.ask_for());
    assert!(is_asked());
    assert_eq!(function.lost("waiting").kind, ErrorKind::Gone);
    assert_eq!(function.descriptors().len(), 3);
    assert_eq!(group.group.descriptors().len(), 2);
}

#[test]
fn functions_are_listed_without_being_opened() {
    let (machine, kernel, vfio) = machine();
    machine.function("0000:03:00.0", 11, Some("nvme"));
    for name in [NAME, "0000:01:00.1", "0000:02:00.0"] {
        let folder = format!("sys/bus/pci/devices/{name}");
        let resource = "0x1000 0x4fff 0x140204\n".to_owned() + &"0x0 0x0 0x0\n".repeat(5);
        machine.write(&format!("{folder}/resource"), &resource);
        let config = machine.write(&format!("{folder}/config"), "");
        let mut bytes = [0; 256];
        bytes[..12].copy_from_slice(&[0x36, 0x1b, 0x10, 0, 6, 0, 0x10, 0, 2, 2, 8, 1]);
        std::fs::write(config, bytes).unwrap();
    }
    // A virtual function, as its config space is until vfio-pci shows it.
    let folder = "sys/bus/pci/devices/0000:01:00.1";
    let config = machine.write(&format!("{folder}/config"), "");
    std::fs::write(config, [[0xff; 4], [6, 0, 0x10, 0], [2, 2, 8, 1]].concat()).unwrap();
    machine.write(&format!("{folder}/vendor"), "0x8086\n");
    machine.write(&format!("{folder}/device"), "0x10ca\n");
    let group = vfio.open_group(address("02:00.0"), Source::Own).unwrap();
    let mut listed = vfio.list(64).unwrap();
    let found: Vec<_> = listed.iter().map(|one| one.function.address()).collect();
    assert_eq!(found, ["01:00.0", "01:00.1", "02:00.0"].map(address));
    let claimed: Vec<_> = listed.iter_mut().map(|one| one.function.is_claimed().unwrap()).collect();
    assert_eq!(claimed, [false, false, true]);
    let first = listed[0].function.as_mut();
    assert_eq!((first.identity().vendor, first.identity().class), (0x1b36, 0x01_0802));
    assert_eq!(first.bars().unwrap()[0].map(|bar| bar.size), Some(0x4000));
    assert_eq!(first.config_read(8, 4).unwrap(), 0x0108_0202);
    assert_eq!((first.config_read(2, 2).unwrap(), first.config_read(4095, 1).unwrap()), (0x10, 0));
    assert!(first.config_read(4094, 4).is_err() && first.config_read(0, 3).is_err());
    let second = listed[1].function.as_mut();
    assert_eq!((second.identity().vendor, second.identity().device), (0x8086, 0x10ca));
    assert_eq!(second.config_read(0, 4).unwrap(), 0x10ca_8086);
    assert_eq!(vfio.list(1).unwrap().len(), 1);
    drop(group);
    assert_eq!(kernel.device_of(NAME, |one| one.resets()), 0);
}
