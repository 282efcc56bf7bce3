use std::os::fd::AsFd as _;
use std::path::Path;

use super::*;
use crate::container::check;
use crate::fake::FakeKernel;
use crate::kernel::Kernel as _;

/// A kernel, a container's file, and that of the group which is in it.
fn entered() -> (FakeKernel, OwnedFd, OwnedFd) {
    let kernel = FakeKernel::default();
    let [fd, group] = ["vfio", "7"].map(|name| kernel.open(Path::new(name)).unwrap());
    kernel.set_container(group.as_fd(), fd.as_fd()).unwrap();
    (kernel, fd, group)
}

fn opened() -> (FakeKernel, AddressSpace, OwnedFd) {
    let (kernel, fd, group) = entered();
    let container = Container::new(Arc::new(kernel.clone()), fd).unwrap();
    (kernel, AddressSpace::new(Mapper::Container(container)).unwrap(), group)
}

/// Of memory whose file is not asked for.
fn range(at: u64, size: u64) -> Range<'static> {
    let (mapped_at, file) = (Some(0x7000_0000), rustix::stdio::stdin());
    Range { at, size, mapped_at, writable: true, memory: (1, 2, at), file }
}

#[test]
fn what_the_iommu_can_do_is_what_it_says() {
    let (_, space, _group) = opened();
    let space = space.space();
    assert_eq!((space.granule, space.mappings), (4096, 65_535));
    assert_eq!(space.ranges, [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 48) - 1)]);
}

#[test]
fn another_kernel_is_refused() {
    let (kernel, fd, _group) = entered();
    check(&kernel, fd.as_fd()).unwrap();
    kernel.set_version(1, &[1, 3]);
    assert!(matches!(check(&kernel, fd.as_fd()), Err(VfioError::Version(1))));
    kernel.set_version(0, &[1, 8]);
    assert!(matches!(check(&kernel, fd.as_fd()), Err(VfioError::NoType1)));
    kernel.set_version(0, &[1, 3]);
    kernel.fail("SET_IOMMU", libc::EPERM);
    let refused = Container::new(Arc::new(kernel), fd).unwrap_err().to_string();
    assert!(refused.contains("allow_unsafe_interrupts"), "{refused}");
}

#[test]
fn memory_is_mapped_once_for_all_and_is_there_until_the_last_gives_it_back() {
    let (kernel, mut space, _group) = opened();
    let read_only = Range { writable: false, ..range(0x8000, 0x1000) };
    space.map(&range(0, 0x4000)).unwrap();
    space.map(&read_only).unwrap();
    let mapped = [(0, (0x7000_0000, 0x4000, 3)), (0x8000, (0x7000_0000, 0x1000, 1))];
    assert_eq!(kernel.mappings().into_iter().collect::<Vec<_>>(), mapped);
    space.map(&range(0, 0x4000)).unwrap();
    space.unmap(0).unwrap();
    assert_eq!(kernel.mappings().len(), 2);
    space.unmap(0).unwrap();
    assert_eq!(kernel.mappings().len(), 1);
    let none = space.unmap(0).unwrap_err().to_string();
    assert_eq!(none, "nothing is mapped at 0x0");
    space.unmap(0x8000).unwrap();
    assert!(kernel.mappings().is_empty());
}

#[test]
fn other_memory_at_the_same_addresses_is_refused() {
    let (kernel, mut space, _group) = opened();
    space.map(&range(0, 0x4000)).unwrap();
    for other in [
        range(0, 0x8000),
        Range { memory: (1, 3, 0), ..range(0, 0x4000) },
        Range { writable: false, ..range(0, 0x4000) },
        // The kernel sees that they overlap.
        range(0x2000, 0x4000),
    ] {
        let refused = space.map(&other).unwrap_err();
        assert!(matches!(refused, VfioError::Mapped { .. }), "{refused}");
    }
    assert_eq!(kernel.mappings().len(), 1);
}

#[test]
fn addresses_that_the_iommu_keeps_for_itself_are_refused_with_those_that_it_maps() {
    let (kernel, mut space, _group) = opened();
    for (at, size) in [(0xfee0_0000, 0x1000), (0xfed0_0000, 0x20_0000), (1 << 48, 0x1000)] {
        let refused = space.map(&range(at, size)).unwrap_err().to_string();
        assert!(refused.contains("0x0 to 0xfedfffff, 0xfef00000 to"), "{refused}");
    }
    for (at, size) in [(u64::MAX - 0xfff, 0x2000), (0, 0)] {
        assert!(matches!(space.map(&range(at, size)), Err(VfioError::Reserved { .. })));
    }
    space.map(&range(0xfede_f000, 0x1_1000)).unwrap();
    assert_eq!(kernel.mappings().len(), 1);
}

#[test]
fn memory_that_may_not_be_locked_is_told_with_the_limit_and_what_raises_it() {
    let (kernel, mut space, _group) = opened();
    kernel.fail("IOMMU_MAP_DMA", libc::ENOMEM);
    let error = space.map(&range(0, 0x4000)).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("0x4000 bytes more") && said.contains("RLIMIT_MEMLOCK"), "{said}");
    assert_eq!(error.of("it", "MapDma").kind, cordon_backend::ErrorKind::NoSpace);
    space.map(&range(0, 0x4000)).unwrap();
    kernel.fail("IOMMU_UNMAP_DMA", libc::EIO);
    assert!(space.unmap(0).is_err());
    space.unmap(0).unwrap();
    assert!(kernel.mappings().is_empty(), "one that failed is still known");
}
