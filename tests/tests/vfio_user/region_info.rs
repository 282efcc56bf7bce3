use crate::EINVAL;
use cordon_tests::vfio_user::{Client, Served, words};
use cordon_tests::{PROBE_MSIX, windows};
use cordon_vfio_user::protocol::command::REGION_INFO;
use ipc::{Access, SharedMemory};

fn ask(index: u32, argument: u32) -> Vec<u8> {
    words(&[argument, 0, index, 0, 0, 0, 0, 0])
}

fn word(body: &[u8], number: usize) -> u32 {
    u32::from_le_bytes(body[4 * number..4 * number + 4].try_into().unwrap())
}

fn double(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().unwrap())
}

fn size(client: &mut Client, index: u32) -> u64 {
    double(&client.ok(REGION_INFO, &ask(index, 32)), 16)
}

#[test]
fn every_index_is_answered_and_unused_ones_are_empty() {
    let served = Served::probe();
    let mut client = served.client();
    let sizes: Vec<u64> = (0..9).map(|index| size(&mut client, index)).collect();
    assert_eq!(sizes, [0x20000, 0x1000, 0x10_0000, 0, 64, 0, 0, 4096, 0]);
}

#[test]
fn a_region_with_holes_is_told_in_two_steps_and_its_areas_are_the_device() {
    let served = Served::probe();
    let mut client = served.client();
    let expected = windows(0x2_0000, &PROBE_MSIX);
    let count = u32::try_from(expected.len()).unwrap();
    let size = 48 + 16 * count;
    let first = client.ask(REGION_INFO, &ask(0, 32), &[]);
    // How long the answer would be; no capabilities yet, and no descriptor.
    assert_eq!(
        (word(&first.body, 0), word(&first.body, 1), word(&first.body, 3)),
        (size, 0b0111, 0)
    );
    assert_eq!((first.body.len(), first.descriptors.len()), (32, 0));
    let mut second = client.ask(REGION_INFO, &ask(0, size), &[]);
    let body = &second.body;
    assert_eq!((body.len(), word(body, 1), word(body, 3)), (size as usize, 0b1111, 32));
    assert_eq!(body[32..48], words(&[1 | 1 << 16, 0, count, 0]));
    let area = |at: usize| (double(body, at), double(body, at + 8));
    let areas: Vec<_> = (48..size as usize).step_by(16).map(area).collect();
    // The pages of MSI-X table and pending bits are in none.
    assert_eq!(areas, expected);
    let offset = double(body, 24);
    let memory = SharedMemory::measured(second.descriptors.pop().unwrap()).unwrap();
    assert!(second.descriptors.is_empty());
    let window = memory.map(offset + areas[0].0, 0x8000, Access::ReadWrite).unwrap();
    assert_eq!(window.read::<u32>(0).unwrap(), u32::from_le_bytes(*b"PRBE"));
}

#[test]
fn a_region_without_holes_is_mapped_whole() {
    let served = Served::probe();
    let mut client = served.client();
    let reply = client.ask(REGION_INFO, &ask(2, 32), &[]);
    assert_eq!((word(&reply.body, 0), word(&reply.body, 1)), (32, 0b0111));
    assert_eq!(reply.descriptors.len(), 1);
}

#[test]
fn small_io_and_config_regions_are_trapped() {
    let served = Served::probe();
    let mut client = served.client();
    // BAR 1 has 4 KiB: a window only where that is a page.
    let small = windows(0x1000, &[]).is_empty();
    for index in [1, 4, 7].into_iter().filter(|index| small || *index != 1) {
        let reply = client.ask(REGION_INFO, &ask(index, 32), &[]);
        assert_eq!((word(&reply.body, 1), reply.descriptors.len()), (0b0011, 0), "{index}");
    }
}

#[test]
fn indexes_and_sizes_that_are_not_there_are_refused() {
    let served = Served::probe();
    let mut client = served.client();
    for index in [9, 255, u32::MAX] {
        assert_eq!(client.refused(REGION_INFO, &ask(index, 32), &[]), EINVAL);
    }
    assert_eq!(client.refused(REGION_INFO, &ask(0, 31), &[]), EINVAL);
    assert_eq!(client.refused(REGION_INFO, &ask(0, 32)[..31], &[]), EINVAL);
    assert_eq!(client.refused(REGION_INFO, &[], &[]), EINVAL);
}
