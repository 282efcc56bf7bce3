use std::os::fd::AsFd as _;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::fake::{FakeDevice, FakeKernel};

const NAME: &str = "0000:01:00.0";

fn opened(made: FakeDevice) -> (FakeKernel, Result<Device, VfioError>) {
    let kernel = FakeKernel::default();
    kernel.add(NAME, made);
    let group = kernel.open(std::path::Path::new("/dev/vfio/7")).unwrap();
    let fd = kernel.device(group.as_fd(), NAME).unwrap();
    let device = Device::new(Arc::new(kernel.clone()), fd, NAME.parse().unwrap());
    (kernel, device)
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// How often an event was signalled since it was last looked at.
fn signalled(event: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

#[test]
fn a_device_is_described_by_its_regions_and_its_config_space() {
    let mut made = FakeDevice::new(0x1b36, 0x0010);
    made.sparse.insert(2, vec![(0, 0x1000), (0x1000, 0x1000), (0x3000, 0x1000)]);
    made.sizes[2] = 0x8000;
    let (_, device) = opened(made);
    let device = device.unwrap();
    let identity = device.identity();
    assert_eq!((identity.vendor, identity.device, identity.class), (0x1b36, 0x10, 0x01_0802));
    let bars = device.bars();
    assert_eq!(bars[0], Some(BarInfo { memory_index: 0, size: 0x4000, kind: 4 }));
    assert_eq!(bars[2].map(|bar| bar.size), Some(0x8000));
    assert_eq!(bars[1], None);
    let region = |number| device.region(number).unwrap();
    assert_eq!(
        (region(0).mappable_from_start(), region(2).mappable_from_start()),
        (0x4000, 0x2000)
    );
    assert_eq!(region(2).mappable.len(), 3);
    assert_eq!(region(7).mappable_from_start(), 0);
    assert_eq!((device.interrupts(2), device.interrupts(9), device.is_resettable()), (8, 0, true));
}

#[test]
fn parts_of_a_region_that_make_no_sense_are_refused() {
    let mut made = FakeDevice::new(1, 2);
    made.sparse.insert(0, vec![(0x1000, 0x4000)]);
    let (_, device) = opened(made);
    let error = device.unwrap_err();
    assert!(matches!(error, VfioError::Chain { .. }));
    let said = ipc::chain(&error);
    assert!(said.contains("region 0 is described with capabilities"), "{said}");
    assert!(said.contains("0x1000+0x4000 is no area of it"), "{said}");
    let mut made = FakeDevice::new(1, 2);
    made.sparse.insert(0, (0..2000).map(|one| (2 * one, 1)).collect());
    let (_, device) = opened(made);
    let said = device.unwrap_err().to_string();
    assert_eq!(said, "region 0 is described with 32048 bytes");
    let mut made = FakeDevice::new(1, 2);
    made.sizes[0] = 1 << 63;
    let said = opened(made).1.unwrap_err().to_string();
    assert!(said.contains("region 0 is said to be 0x0+0x8000000000000000"), "{said}");
}

#[test]
fn accesses_are_one_of_their_width_and_stay_in_their_region() {
    let (kernel, device) = opened(FakeDevice::new(1, 2));
    let device = device.unwrap();
    device.write(0, 0x3ff8, 8, 0x1122_3344_5566_7788).unwrap();
    device.write(0, 0x3ff8, 1, 0xff).unwrap();
    assert_eq!(kernel.device_of(NAME, |one| one.get(0, 0x3ff8, 3)), [0xff, 0x77, 0x66]);
    assert_eq!(device.read(0, 0x3ffc, 4).unwrap(), 0x1122_3344);
    for (region, offset, width) in [
        (0, 0x3ffd, 4),
        (0, 0x4000, 1),
        (0, u64::MAX, 8),
        (0, 0, 3),
        (0, 0, 0),
        (1, 0, 1),
        (9, 0, 1),
    ] {
        let refused = device.read(region, offset, width).unwrap_err().to_string();
        assert!(refused.contains("out of reach"), "{refused}");
        assert!(device.write(region, offset, width, 0).is_err());
    }
}

#[test]
fn config_space_ends_where_it_does_and_is_zero_from_there_on() {
    let mut made = FakeDevice::new(0x1234, 0x11e8);
    made.sizes[7] = 256;
    made.set(7, 256, &[7; 8]);
    let (kernel, device) = opened(made);
    let device = device.unwrap();
    assert_eq!(device.config_read(0, 4).unwrap(), 0x11e8_1234);
    assert_eq!((device.config_read(256, 4).unwrap(), device.config_read(254, 4).unwrap()), (0, 0));
    device.config_write(256, 4, 9).unwrap();
    device.config_write(u32::MAX, 4, 9).unwrap();
    assert_eq!(kernel.device_of(NAME, |one| one.get(7, 256, 2)), [7, 7]);
    device.switch_on().unwrap();
    assert_eq!(device.config_read(4, 2).unwrap(), 6);
}

#[test]
fn the_kernel_is_told_whom_to_signal() {
    let (kernel, device) = opened(FakeDevice::new(1, 2));
    let device = device.unwrap();
    let (one, other) = (event(), event());
    device.signal(2, &[Some(one.as_fd()), None, Some(other.as_fd())]).unwrap();
    let fire = |vector| kernel.device_of(NAME, |device| device.fire(2, vector));
    assert!(fire(0) && !fire(1) && fire(2) && fire(2) && !fire(3));
    assert_eq!((signalled(&one), signalled(&other)), (1, 2));
    device.signal(2, &[]).unwrap();
    assert!(!fire(0));
    let refused = device.signal(2, &[None; 9]).unwrap_err();
    assert!(matches!(refused, VfioError::Refused { request: "DEVICE_SET_IRQS", .. }), "{refused}");
    device.signal(0, &[Some(one.as_fd())]).unwrap();
    let fire = || kernel.device_of(NAME, |device| device.fire(0, 0));
    assert!(fire() && !fire(), "it is held back after each");
    device.mask_intx(false).unwrap();
    assert!(fire());
}

#[test]
fn what_is_no_pci_function_is_refused_and_a_failing_request_is_named() {
    let kernel = FakeKernel::default();
    kernel.add(NAME, FakeDevice::new(1, 2));
    let group = kernel.open(std::path::Path::new("/dev/vfio/7")).unwrap();
    let open = || {
        let fd = kernel.device(group.as_fd(), NAME).unwrap();
        Device::new(Arc::new(kernel.clone()), fd, NAME.parse().unwrap())
    };
    for request in ["DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO", "DEVICE_GET_IRQ_INFO"] {
        kernel.fail(request, libc::EIO);
        match open().unwrap_err() {
            VfioError::Refused { request: named, .. } => assert_eq!(named, request),
            other => panic!("{other}"),
        }
    }
    let device = open().unwrap();
    kernel.fail("DEVICE_RESET", libc::EAGAIN);
    assert!(device.reset().is_err());
    device.reset().unwrap();
    assert_eq!(kernel.device_of(NAME, |one| one.resets()), 1);
    let fd = std::fs::File::open("/dev/null").unwrap().into();
    let linux = Device::new(Arc::new(crate::Linux), fd, NAME.parse().unwrap());
    assert!(matches!(linux.unwrap_err(), VfioError::Refused { request: "DEVICE_GET_INFO", .. }));
}
