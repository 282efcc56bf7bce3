use crate::EINVAL;
use cordon_tests::vfio_user::{Client, Served, access};
use cordon_vfio_user::protocol::command::REGION_WRITE;
use cordon_vfio_user::protocol::flag;
use cordon_vmm::PassthroughDevice as _;

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

/// The device's own registers, past the server.
fn of_device(served: &Served, at: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    served.proxy.config_read(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_not_virtual_reaches_the_device() {
    let served = Served::probe();
    let mut client = served.client();
    client.write(7, 0x04, &[0x07, 0x00]);
    assert_eq!(register(&mut client, 0x04) & 0xffff, 0x06 | 1);
    assert_eq!(of_device(&served, 0x04, 2), [0x07, 0x00]);
    client.write(7, 0x0c, &[0x10]);
    assert_eq!(of_device(&served, 0x0c, 1), [0x10]);
    client.write(0, 0x10, &[1, 2, 3, 4]);
    assert_eq!(client.read(0, 0x10, 4), [1, 2, 3, 4]);
}

#[test]
fn what_is_virtual_is_the_clients_and_does_not_reach_the_device() {
    let served = Served::probe();
    let mut client = served.client();
    // Interrupt line, MSI, and enable and function mask of MSI-X.
    for (at, bytes) in [
        (0x3c, &[0x2a][..]),
        (0x52, &[0x31, 0x00]),
        (0x54, &[0x00, 0xf0, 0xe0, 0xfe]),
        (0x5c, &[0x42, 0x41]),
        (0xb3, &[0x40]),
    ] {
        let before = of_device(&served, u32::try_from(at).unwrap(), bytes.len());
        client.write(7, at, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let mut expected = bytes.to_vec();
        if at == 0x52 {
            // 64-bit, and 32 vectors to choose from.
            expected[0] |= 0x8a;
        }
        assert_eq!(client.read(7, at, length), expected, "{at:#x}");
        assert_eq!(of_device(&served, u32::try_from(at).unwrap(), bytes.len()), before, "{at:#x}");
    }
}

#[test]
fn a_function_level_reset_by_config_space_is_a_reset_of_the_device() {
    let served = Served::probe();
    let mut client = served.client();
    client.write(7, 0x04, &[0x06, 0x00]);
    client.write(7, 0x10, &0xfeb0_0000u32.to_le_bytes());
    client.write(0, 0x10, &[1, 2, 3, 4]);
    let resets = client.read(0, 0x0c, 4);
    client.write(7, 0x78, &[0x00, 0x80]);
    let count = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
    assert_eq!((register(&mut client, 0x04) & 0xffff, register(&mut client, 0x10)), (0, 0));
    assert_eq!(of_device(&served, 0x04, 2), [0, 0], "it could still reach memory");
    assert_eq!(client.read(0, 0x10, 4), [0xff; 4], "it decodes no memory");
    client.master_bus();
    // One by the host: the bit does not reach the device by itself.
    assert_eq!(count(client.read(0, 0x0c, 4)), count(resets) + 1);
    assert_eq!(client.read(0, 0x10, 4), [0; 4]);
}

#[test]
fn the_msix_table_of_the_host_is_neither_seen_nor_written() {
    let served = Served::probe();
    // What the host's table holds, past the server's model.
    let below = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        served.proxy.bar_read(0, offset, &mut bytes).unwrap();
        bytes
    };
    let mut client = served.client();
    client.master_bus();
    let before = (below(0x8000, 8), below(0x8008, 8));
    assert_eq!(client.read(0, 0x8000, 16), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let entry = [0x00, 0xf0, 0xe0, 0xfe, 0, 0, 0, 0, 0x42, 0x41, 0, 0, 0, 0, 0, 0];
    client.write(0, 0x8000, &entry);
    assert_eq!(client.read(0, 0x8000, 16), entry);
    assert_eq!((below(0x8000, 8), below(0x8008, 8)), before);
    client.write(0, 0xc000, &[0xff; 8]);
    assert_eq!(client.read(0, 0xc000, 8), [0; 8]);
}

#[test]
fn a_write_that_wants_no_reply_gets_none() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
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
    client.master_bus();
    assert_eq!(client.read(0, 0x10, 4), [0; 4]);
}
