use crate::EINVAL;
use cordon_tests::vfio_user::{Client, Served, access};
use cordon_vfio_user::protocol::command::REGION_WRITE;
use cordon_vfio_user::protocol::flag;

fn register(client: &mut Client, at: u64) -> u32 {
    u32::from_le_bytes(client.read(7, at, 4).try_into().unwrap())
}

#[test]
fn bar_registers_are_sized_the_usual_way() {
    let served = Served::probe();
    let mut client = served.client();
    for (at, mask) in [
        (0x10, 0xfffe_0000),
        (0x14, 0xffff_f000),
        (0x18, 0xfff0_000c),
        (0x1c, 0xffff_ffff),
        (0x20, 0xffff_ffc1),
        (0x24, 0),
        (0x30, 0),
    ] {
        client.write(7, at, &[0xff; 4]);
        assert_eq!(register(&mut client, at), mask, "{at:#x}");
    }
    client.write(7, 0x10, &0xfeb0_0000u32.to_le_bytes());
    client.write(7, 0x18, &0x4000_0000u32.to_le_bytes());
    client.write(7, 0x1c, &0x0000_0012u32.to_le_bytes());
    assert_eq!(register(&mut client, 0x10), 0xfeb0_0000);
    assert_eq!(register(&mut client, 0x18), 0x4000_000c);
    assert_eq!(register(&mut client, 0x1c), 0x12);
    // Bytewise too, and across the edge of what is virtual.
    client.write(7, 0x13, &[0xaa]);
    assert_eq!(register(&mut client, 0x10), 0xaab0_0000);
    client.write(7, 0x0e, &[0, 0, 0, 0, 0x22, 0xbb]);
    assert_eq!(register(&mut client, 0x10), 0xbb22_0000);
}

#[test]
fn what_is_not_virtual_reaches_the_device() {
    let served = Served::probe();
    let mut client = served.client();
    client.write(7, 0x04, &[0x07, 0x00]);
    assert_eq!(register(&mut client, 0x04) & 0xffff, 0x06 | 1);
    client.write(7, 0x3c, &[0x2a]);
    assert_eq!(register(&mut client, 0x3c) & 0xff, 0x2a);
    client.write(0, 0x10, &[1, 2, 3, 4]);
    assert_eq!(client.read(0, 0x10, 4), [1, 2, 3, 4]);
}

#[test]
fn a_write_that_wants_no_reply_gets_none() {
    let served = Served::probe();
    let mut client = served.client();
    client.send(REGION_WRITE, flag::NO_REPLY, &access(0, 0x10, 4, &[9, 8, 7, 6]), &[]);
    // Not even an error.
    client.send(REGION_WRITE, flag::NO_REPLY, &access(0, u64::MAX, 4, &[0; 4]), &[]);
    assert_eq!(client.read(0, 0x10, 4), [9, 8, 7, 6]);
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let served = Served::probe();
    let mut client = served.client();
    for body in [
        access(0, 0x10, 4, &[1, 2, 3]),
        access(0, 0x10, 4, &[1, 2, 3, 4, 5]),
        access(0, 0x10, 0, &[]),
        access(0, 0x1fffe, 4, &[0; 4]),
        access(0, u64::MAX, 4, &[0; 4]),
        access(7, 4094, 4, &[0; 4]),
        access(9, 0, 4, &[0; 4]),
        access(4, 0, 4, &[0; 4]),
        access(0, 0, u32::MAX, &[0; 64]),
        access(0, 0, 4, &[])[..12].to_vec(),
    ] {
        assert_eq!(client.refused(REGION_WRITE, &body, &[]), EINVAL, "{body:x?}");
    }
    assert_eq!(client.read(0, 0x10, 4), [0; 4]);
}
