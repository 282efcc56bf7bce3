use std::os::fd::AsFd as _;

use crate::EINVAL;
use cordon_tests::vfio_user::{Served, map, ram, unmap};
use cordon_vfio_user::protocol::command::{DMA_MAP, DMA_UNMAP};

const ENOENT: i32 = 2;
const MIB: u64 = 1 << 20;

fn mapped(served: &Served) -> u64 {
    served.simulator.held("01:00.1").2
}

#[test]
fn the_answer_repeats_the_request_and_comes_once_the_registration_is_gone() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(MIB);
    assert_eq!(client.ask(DMA_MAP, &map(3, 0, MIB, MIB), &[memory.as_fd()]).error, 0);
    assert_eq!(mapped(&served), 1);
    assert_eq!(client.ok(DMA_UNMAP, &unmap(0, MIB, MIB)), unmap(0, MIB, MIB));
    assert_eq!(mapped(&served), 0);
}

#[test]
fn a_chipset_that_shuffles_low_memory_loses_and_leaks_nothing() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(128 * MIB);
    let with = [memory.as_fd()];
    for _ in 0..20 {
        assert_eq!(client.ask(DMA_MAP, &map(3, 0, 0, 128 * MIB), &with).error, 0);
        client.ok(DMA_UNMAP, &unmap(0, 0, 128 * MIB));
        let pieces = [(0, 0xa0000), (0xc0000, 0x20000), (0xe0000, 0x20000), (0x100000, 127 * MIB)];
        for (at, size) in pieces {
            assert_eq!(client.ask(DMA_MAP, &map(3, at, at, size), &with).error, 0);
        }
        client.ok(DMA_MAP, &map(3, 0, 0xa0000, 0x20000));
        assert_eq!(mapped(&served), 4);
        for (at, size) in pieces.into_iter().chain([(0xa0000, 0x20000)]) {
            client.ok(DMA_UNMAP, &unmap(0, at, size));
        }
        assert_eq!((mapped(&served), served.container.usage()), (0, (0, 0)));
    }
}

#[test]
fn all_takes_everything_back() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(4 * MIB);
    for at in 0..4 {
        let body = map(3, at * MIB, at * MIB, MIB);
        assert_eq!(client.ask(DMA_MAP, &body, &[memory.as_fd()]).error, 0);
    }
    client.ok(DMA_UNMAP, &unmap(2, 0, 0));
    assert_eq!(mapped(&served), 0);
}

#[test]
fn what_is_not_mapped_is_not_unmapped() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(MIB);
    assert_eq!(client.ask(DMA_MAP, &map(3, 0, MIB, MIB), &[memory.as_fd()]).error, 0);
    for (body, errno) in [
        (unmap(0, 0, MIB), ENOENT),
        (unmap(0, MIB, MIB / 2), ENOENT),
        (unmap(0, MIB, 2 * MIB), ENOENT),
        (unmap(0, MIB + 4096, 4096), ENOENT),
        (unmap(0, u64::MAX, u64::MAX), ENOENT),
        (unmap(2, MIB, MIB), EINVAL),
        (unmap(1, MIB, MIB), EINVAL),
        (unmap(0, MIB, MIB)[..23].to_vec(), EINVAL),
    ] {
        assert_eq!(client.refused(DMA_UNMAP, &body, &[]), errno, "{body:x?}");
    }
    assert_eq!(mapped(&served), 1);
    client.ok(DMA_UNMAP, &unmap(0, MIB, MIB));
}

#[test]
fn descriptors_that_come_along_are_closed_and_the_memory_is_unmapped() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(MIB);
    // SPDK's client sends the memory's own; twenty are more than a message may have.
    for count in [1, 2, 20] {
        assert_eq!(client.ask(DMA_MAP, &map(3, 0, MIB, MIB), &[memory.as_fd()]).error, 0);
        assert_eq!(mapped(&served), 1);
        let (read, write) = std::io::pipe().unwrap();
        let reply = client.ask(DMA_UNMAP, &unmap(0, MIB, MIB), &vec![write.as_fd(); count]);
        assert_eq!((reply.error, reply.body), (0, unmap(0, MIB, MIB)));
        assert_eq!(mapped(&served), 0);
        drop(write);
        let soon = ipc::Deadline::after(std::time::Duration::from_secs(5));
        assert!(ipc::poll::wait_readable(&read, soon).unwrap(), "{count} are left open");
    }
}
