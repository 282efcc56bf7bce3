use cordon_backend::{Backend as _, ErrorKind, GroupFunction, OpenGroup, ResetKind, Source};

use super::*;
use crate::Vfio;
use crate::fake::{FakeDevice, FakeKernel, Machine};

const NAMES: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];
/// What a reset of their bus reaches, as the kernel writes addresses, and the group of it.
const BOTH: [([u8; 4], u32); 2] = [([0, 0, 1, 0], 7), ([0, 0, 1, 1], 7)];

/// Two functions of one group that cannot be reset alone, and what a reset of their bus reaches.
fn opened(bus: &[([u8; 4], u32)]) -> (Machine, FakeKernel, OpenGroup) {
    let (machine, kernel) = (Machine::new(), FakeKernel::default());
    for name in NAMES {
        machine.function(name, 7, Some("vfio-pci"));
        let mut device = FakeDevice::new(0x8086, 0x100e);
        (device.resettable, device.bus) = (false, bus.to_vec());
        kernel.add(name, device);
    }
    let vfio = Vfio::over(std::sync::Arc::new(kernel.clone()), machine.places());
    let group = vfio.open_group(NAMES[0].parse().unwrap(), Source::Own).unwrap();
    (machine, kernel, group)
}

fn refused(function: &mut dyn GroupFunction) -> (ErrorKind, String) {
    let error = function.reset(ResetKind::Bus).unwrap_err();
    (error.kind, error.text)
}

#[test]
fn a_bus_is_reset_while_no_other_function_of_it_is_in_use() {
    let (_machine, kernel, mut group) = opened(&BOTH);
    let resets = || NAMES.map(|name| kernel.device_of(name, |one| one.resets()));
    let mut second = group.functions.remove(1);
    let mut first = group.functions.remove(0);
    assert_eq!(first.reset_kinds(), [ResetKind::Bus]);
    assert_eq!(first.reset(ResetKind::Function).unwrap_err().kind, ErrorKind::Unsupported);
    first.claim().unwrap();
    first.reset(ResetKind::Bus).unwrap();
    assert_eq!(resets(), [1, 1], "all that is there");
    second.claim().unwrap();
    for (function, other) in [(&mut first, "01:00.1"), (&mut second, "01:00.0")] {
        let (kind, text) = refused(function.as_mut());
        let names = text.contains(&format!("and in use there is {other}"));
        assert!(kind == ErrorKind::Busy && names, "{text}");
    }
    assert_eq!(resets(), [1, 1]);
    let mut second = second.release().unwrap().unwrap();
    first.reset(ResetKind::Bus).unwrap();
    second.claim().unwrap();
    assert_eq!(refused(first.as_mut()).0, ErrorKind::Busy);
    // One that is closed is in use no more.
    drop(second);
    first.reset(ResetKind::Bus).unwrap();
    assert_eq!(resets(), [3, 3]);
    kernel.fail("DEVICE_PCI_HOT_RESET", libc::EIO);
    assert_eq!(refused(first.as_mut()).0, ErrorKind::Refused);
}

#[test]
fn what_a_dead_process_claimed_is_in_use_before_it_is_claimed_again() {
    let (machine, kernel, mut group) = opened(&BOTH);
    group.functions[1].claim().unwrap();
    let owned = |fds: Vec<BorrowedFd<'_>>| {
        fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect::<Vec<_>>()
    };
    let one = &group.functions[1];
    let left = cordon_backend::Left {
        handed: None,
        group: owned(group.group.descriptors()),
        functions: vec![cordon_backend::LeftFunction {
            address: one.address(),
            descriptors: owned(one.survives().descriptors),
            request: None,
        }],
    };
    let vfio = Vfio::over(std::sync::Arc::new(kernel), machine.places());
    let address = NAMES[0].parse().unwrap();
    let mut adopted = vfio.open_group(address, Source::Adopted(left)).unwrap();
    let (kind, text) = refused(adopted.functions[0].as_mut());
    assert!(kind == ErrorKind::Busy && text.contains("01:00.1"), "{text}");
}

#[test]
fn a_bus_with_functions_of_other_groups_is_never_reset() {
    let with_another = [BOTH[0], BOTH[1], ([0, 0, 1, 8], 9)];
    let (_machine, kernel, mut group) = opened(&with_another);
    let (kind, text) = refused(group.functions[0].as_mut());
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("which has 01:01.0 of IOMMU group 9"), "{text}");
    assert_eq!(kernel.device_of(NAMES[0], |one| one.resets()), 0);
}

#[test]
fn one_function_more_than_a_bus_can_have_is_not_looked_at() {
    let many = vec![BOTH[0]; MAX_RESET];
    let (_machine, _kernel, mut group) = opened(&many);
    group.functions[0].reset(ResetKind::Bus).unwrap();
    let many = vec![BOTH[0]; MAX_RESET + 1];
    let (_machine, _kernel, mut group) = opened(&many);
    let (_, text) = refused(group.functions[0].as_mut());
    assert!(text.contains("reaches 257 functions: more than the 256"), "{text}");
}

#[test]
fn a_bus_that_cannot_be_reset_is_no_kind() {
    let (_machine, _kernel, group) = opened(&[]);
    assert_eq!(group.functions[0].reset_kinds(), []);
    // A request of a confined process has the number of one to a container.
    assert_eq!(crate::DEVICE_PCI_HOT_RESET, crate::IOMMU_MAP_DMA);
    let kernel = FakeKernel::default();
    let container = kernel.open("vfio".as_ref()).unwrap();
    assert!(reached(&kernel, container.as_fd()).unwrap().is_none());
}
