use std::os::fd::AsFd as _;

use crate::EINVAL;
use cordon_tests::vfio_user::{Client, Served, map, ram};
use cordon_vfio_user::protocol::command::DMA_MAP;

const EEXIST: i32 = 17;
const MIB: u64 = 1 << 20;

fn mapped(served: &Served) -> u64 {
    served.simulator.held("01:00.1").2
}

fn take(client: &mut Client, body: &[u8], memory: &ipc::SharedMemory) {
    let reply = client.ask(DMA_MAP, body, &[memory.as_fd()]);
    assert_eq!((reply.error, reply.body.len()), (0, 0), "the reply is a header alone");
}

#[test]
fn memory_with_a_descriptor_is_registered_with_the_dext() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(2 * MIB);
    take(&mut client, &map(3, 0, 0, MIB), &memory);
    take(&mut client, &map(1, MIB, 1 << 32, MIB), &memory);
    assert_eq!(mapped(&served), 2);
}

#[test]
fn memory_without_a_descriptor_is_taken_and_not_mapped() {
    let served = Served::probe();
    let mut client = served.client();
    client.ok(DMA_MAP, &map(3, 0, 0xfe00_0000, 0x20000));
    client.ok(DMA_MAP, &map(1, 0, 0xc0000, 0x20000));
    assert_eq!(mapped(&served), 0);
    assert_eq!(client.refused(DMA_MAP, &map(3, 0, 0xfe00_0000, 0x1000), &[]), EEXIST);
}

#[test]
fn ranges_that_cannot_be_are_refused_and_nothing_is_registered() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(MIB);
    let with = [memory.as_fd()];
    for (body, errno) in [
        (map(3, 0, 0, 0), EINVAL),
        (map(3, 0, u64::MAX, 2), EINVAL),
        (map(3, 0, u64::MAX - MIB + 2, MIB), EINVAL),
        (map(3, 1, 0, MIB), EINVAL),
        (map(3, u64::MAX, 0, MIB), EINVAL),
        (map(3, 0, 0, MIB + 1), EINVAL),
        (map(0, 0, 0, MIB), EINVAL),
        (map(4, 0, 0, MIB), EINVAL),
        (map(3, 0, 0, MIB)[..31].to_vec(), EINVAL),
        (Vec::new(), EINVAL),
    ] {
        assert_eq!(client.refused(DMA_MAP, &body, &with), errno, "{body:x?}");
    }
    // An offset that is no page's.
    assert_eq!(client.refused(DMA_MAP, &map(3, 7, 0, 4096), &with), EINVAL);
    assert_eq!((mapped(&served), served.container.usage()), (0, (0, 0)));
    take(&mut client, &map(3, 0, 0, MIB), &memory);
}

#[test]
fn overlaps_exist() {
    let served = Served::probe();
    let mut client = served.client();
    let memory = ram(4 * MIB);
    take(&mut client, &map(3, 0, MIB, MIB), &memory);
    for (iova, size) in [(MIB, MIB), (0, MIB + 1), (2 * MIB - 4096, MIB), (0, 4 * MIB)] {
        let body = map(3, 0, iova, size);
        assert_eq!(client.refused(DMA_MAP, &body, &[memory.as_fd()]), EEXIST, "{iova:#x}");
    }
    assert_eq!(mapped(&served), 1);
}

#[test]
fn descriptors_that_are_no_memory_or_too_many_are_refused_and_closed() {
    let served = Served::probe();
    let mut client = served.client();
    let null = std::fs::File::open("/dev/null").unwrap();
    let body = map(3, 0, 0, MIB);
    assert_eq!(client.refused(DMA_MAP, &body, &[null.as_fd()]), EINVAL);
    for count in [1, 2, 16, 40] {
        // A pipe tells when its last writing end is closed.
        let (read, write) = std::io::pipe().unwrap();
        assert_eq!(client.refused(DMA_MAP, &body, &vec![write.as_fd(); count]), EINVAL, "{count}");
        drop(write);
        let soon = ipc::Deadline::after(std::time::Duration::from_secs(5));
        assert!(ipc::poll::wait_readable(&read, soon).unwrap(), "{count} are left open");
    }
    assert_eq!(mapped(&served), 0);
}

#[test]
fn a_refusal_of_the_dexts_is_told() {
    let served = Served::probe();
    let mut client = served.client();
    served.simulator.fault("fail:selector=5,nth=1,code=0xe00002db");
    let memory = ram(MIB);
    let enospc = client.refused(DMA_MAP, &map(3, 0, 0, MIB), &[memory.as_fd()]);
    assert_eq!(enospc, 28);
    take(&mut client, &map(3, 0, 0, MIB), &memory);
}
