use crate::{EINVAL, fake};
use cordon_tests::vfio_user::{Served, access};
use cordon_vfio_user::protocol::MAX_DATA;
use cordon_vfio_user::protocol::command::REGION_READ;

#[test]
fn config_space_is_read_whole_and_in_parts() {
    let served = Served::probe();
    let mut client = served.client();
    let whole = client.read(7, 0, 4096);
    assert_eq!(whole[..4], [0xd0, 0xc0, 0x02, 0x00]);
    for (offset, count) in [(0, 1), (2, 2), (0x34, 4), (0x100, 12), (4095, 1)] {
        let at = usize::try_from(offset).unwrap();
        assert_eq!(client.read(7, offset, count), whole[at..at + count as usize]);
    }
}

#[test]
fn bars_are_read_at_any_length() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    assert_eq!(client.read(0, 0, 4), b"PRBE");
    assert_eq!(client.read(0, 1, 3), b"RBE");
    client.write(2, 3, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(client.read(2, 0, 16), [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 0]);
    assert_eq!(client.read(2, 0, 0x4000).len(), 0x4000);
}

/// A client's own windows are its own to take away; what it asks the server for is not answered by the device.
#[test]
fn p6_4_memory_reads_as_ones_while_command_or_the_power_state_keeps_the_device_from_decoding_it() {
    let served = Served::probe();
    let mut client = served.client();
    assert_eq!(client.read(0, 0, 4), [0xff; 4], "as after a reset");
    client.master_bus();
    client.write(0, 0x10, &[1, 2, 3, 4]);
    for (register, off, on) in [(0x04, 0x04, 0x06), (0x44, 0x03, 0x00)] {
        client.write(7, register, &[off]);
        assert_eq!(client.read(0, 0x10, 4), [0xff; 4], "{register:#x}");
        client.write(0, 0x10, &[0; 4]);
        client.write(7, register, &[on]);
        assert_eq!(client.read(0, 0x10, 4), [1, 2, 3, 4], "{register:#x}");
    }
}

#[test]
fn ranges_that_are_not_there_are_refused() {
    let served = Served::probe();
    let mut client = served.client();
    for (region, offset, count) in [
        (0, 0x20000, 1),
        (0, 0x1fffe, 4),
        (0, u64::MAX, 1),
        (0, u64::MAX - 3, 8),
        (0, 0, 0),
        (2, 0, (1 << 20) + 1),
        (2, 0, u32::MAX),
        (3, 0, 4),
        (6, 0, 1),
        (7, 4096, 1),
        (7, 4094, 4),
        (8, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        let errno = client.refused(REGION_READ, &access(region, offset, count, &[]), &[]);
        assert_eq!(errno, EINVAL, "{region} {offset:#x} {count}");
    }
    assert_eq!(client.refused(REGION_READ, &access(0, 0, 4, &[])[..15], &[]), EINVAL);
    // An I/O BAR is there and cannot be reached (P7.1).
    assert_eq!(client.refused(REGION_READ, &access(4, 0, 4, &[]), &[]), EINVAL);
}

#[test]
fn a_dead_function_reads_as_all_ones_and_the_client_stays() {
    let served = Served::probe();
    let mut client = served.client();
    cordon_tests::signal(served.proxy.pid(), rustix::process::Signal::KILL);
    assert!(cordon_tests::eventually(|| served.proxy.death().is_some()));
    assert_eq!(client.read(7, 0, 4), [0xff; 4]);
    assert_eq!(client.read(0, 0, 8), [0xff; 8]);
    client.write(7, 4, &[6, 0]);
    client.write(0, 0x10, &[1, 2, 3, 4]);
    client.still_works();
}

#[test]
fn one_byte_more_than_a_message_carries_is_refused_of_a_region_that_has_it() {
    let served = fake::Served::start(|_, _| Ok(0x1111_1111_1111_1111));
    let mut client = served.client();
    let most = usize::try_from(MAX_DATA).unwrap();
    assert!(client.read(0, 1, MAX_DATA) == vec![0x11; most]);
    for count in [MAX_DATA + 1, 2 * MAX_DATA] {
        assert_eq!(client.refused(REGION_READ, &access(0, 0, count, &[]), &[]), EINVAL, "{count}");
    }
    client.still_works();
}
