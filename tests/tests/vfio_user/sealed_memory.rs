//! Guest memory that its client could still shorten: taken, or refused for who wants that.
#![cfg(target_os = "linux")]

use std::os::fd::AsFd as _;

use crate::EINVAL;
use cordon_tests::vfio_user::{Served, map, ram};
use cordon_vfio_user::protocol::command::DMA_MAP;
use cordon_vfio_user::{Event, Options};
use rustix::fs::MemfdFlags;

const MIB: u64 = 1 << 20;

fn unsealed() -> std::os::fd::OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("unsealed", flags).unwrap();
    rustix::fs::ftruncate(&memory, MIB).unwrap();
    memory
}

#[test]
fn clients_that_do_not_seal_attach() {
    let served = Served::probe();
    let mut client = served.client();
    let reply = client.ask(DMA_MAP, &map(3, 0, 0, MIB), &[unsealed().as_fd()]);
    assert_eq!(reply.error, 0);
}

#[test]
fn memory_that_is_not_sealed_is_refused_with_the_reason_where_it_must_be() {
    let options = Options { sealed_memory: true, ..Options::default() };
    let served = Served::start_as("01:00.1", |_| {}, options);
    let mut client = served.client();
    let memory = unsealed();
    assert_eq!(client.refused(DMA_MAP, &map(3, 0, 0, MIB), &[memory.as_fd()]), EINVAL);
    served.until(|event| matches!(event, Event::Refused(why) if why.contains("not sealed")));
    // The same memory, once it is, and memory that was from the start. None is none to seal.
    rustix::fs::fcntl_add_seals(&memory, rustix::fs::SealFlags::SHRINK).unwrap();
    let other = ram(MIB);
    for (iova, memory) in [(0, memory.as_fd()), (MIB, other.as_fd())] {
        assert_eq!(client.ask(DMA_MAP, &map(3, 0, iova, MIB), &[memory]).error, 0);
    }
    client.ok(DMA_MAP, &map(3, 0, 4 * MIB, MIB));
    assert_eq!(served.simulator.held("01:00.1").2, 2);
}
