use std::os::fd::AsFd as _;

use crate::EINVAL;
use cordon_tests::vfio_user::{Served, words};
use cordon_vfio_user::protocol::command::GET_INFO;

#[test]
fn a_resettable_pci_device_with_9_regions_and_5_interrupt_indexes() {
    let served = Served::probe();
    let mut client = served.client();
    // QEMU says 16, cloud-hypervisor 32.
    for argument in [16, 32] {
        let mut body = words(&[argument, 0, 0, 0]);
        body.resize(16, 0);
        assert_eq!(client.ok(GET_INFO, &body), words(&[16, 0b11, 9, 5]));
    }
}

#[test]
fn short_bodies_are_refused_and_descriptors_are_closed() {
    let served = Served::probe();
    let mut client = served.client();
    assert_eq!(client.refused(GET_INFO, &[], &[]), EINVAL);
    assert_eq!(client.refused(GET_INFO, &words(&[16, 0, 0]), &[]), EINVAL);
    assert_eq!(client.refused(GET_INFO, &words(&[15, 0, 0, 0]), &[]), EINVAL);
    let (read, write) = std::io::pipe().unwrap();
    let reply = client.ask(GET_INFO, &words(&[16, 0, 0, 0]), &[write.as_fd()]);
    assert_eq!((reply.error, reply.body.len()), (0, 16));
    drop(write);
    let soon = ipc::Deadline::after(std::time::Duration::from_secs(5));
    assert!(ipc::poll::wait_readable(&read, soon).unwrap(), "it is left open");
}
