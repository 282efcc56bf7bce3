use super::*;
use proptest::prelude::*;

/// Config space of a function: PM, MSI, Express, MSI-X, serial number.
fn config() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, data: &[u8]| bytes::put(&mut bytes, at, data);
    put(0x06, &[0x10]);
    put(0x34, &[0x40]);
    put(0x40, &[0x01, 0x50, 0x03, 0x00, 0x08, 0x00]);
    put(0x50, &[0x05, 0x70, 0x8a, 0x00]);
    put(0x70, &[0x10, 0xb0, 0x02, 0x00, 0x02, 0x80, 0x00, 0x10]);
    put(0xb0, &[0x11, 0x00, 0x1f, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00]);
    put(0x100, &[0x03, 0x00, 0x01, 0x00]);
    bytes
}

fn all(bytes: &[u8]) -> Vec<Capability> {
    walk(reader(bytes)).map(|entry| entry.unwrap_or_else(|never| match never {})).collect()
}

fn at<T>(found: Result<T, Infallible>) -> T {
    found.unwrap_or_else(|never| match never {})
}

#[test]
fn both_lists_are_walked_in_order() {
    let found: Vec<_> = all(&config()).iter().map(|one| (one.id, one.offset)).collect();
    use CapabilityId::{Extended, Standard};
    let standard = [(0x01, 0x40), (0x05, 0x50), (0x10, 0x70), (0x11, 0xb0)];
    let mut expected: Vec<_> = standard.map(|(id, at)| (Standard(id), at)).into();
    expected.push((Extended(3), 0x100));
    assert_eq!(found, expected);
    assert_eq!(all(&config())[4].version, 1);
    let mut without = config();
    without[0x06] = 0;
    assert_eq!(all(&without).len(), 1);
    assert_eq!(walk_standard(reader(&config())).count(), 4);
}

#[test]
fn capabilities_say_what_they_are() {
    let bytes = config();
    let msi = at(MsiCapability::find(reader(&bytes))).unwrap();
    assert_eq!(msi, MsiCapability { offset: 0x50, vectors: 32, is_64bit: true, has_masks: false });
    let msix = at(MsixCapability::find(reader(&bytes))).unwrap();
    assert_eq!((msix.vectors, msix.table_bar, msix.pba_offset), (32, 0, 0xc000));
    assert_eq!((msix.table_bytes(), msix.pba_bytes()), (512, 8));
    let pm = at(PowerCapability::read(reader(&bytes), 0x40)).unwrap();
    assert!(pm.no_soft_reset && pm.version == 3 && pm.state == 0);
    let express = at(ExpressCapability::read(reader(&bytes), 0x70)).unwrap();
    assert!(express.function_level_reset && !express.slot);
    assert_eq!((express.port, express.max_payload), (PortType::Endpoint, 512));
    assert_eq!(at(find(reader(&bytes), CapabilityId::Standard(0x13))), None);
    let serial = at(find(reader(&bytes), CapabilityId::Extended(3))).unwrap();
    assert_eq!(serial.offset, 0x100);
}

#[test]
fn an_msix_capability_of_a_bar_that_cannot_be_is_none() {
    let mut bytes = config();
    bytes[0xb4] = 6;
    assert_eq!(at(MsixCapability::find(reader(&bytes))), None);
    let mut bytes = config();
    bytes[0x34] = 0xfc;
    (bytes[0xfc], bytes[0xfd]) = (0x11, 0);
    assert_eq!(at(MsixCapability::find(reader(&bytes))), None);
}

#[test]
fn loops_and_devices_that_are_gone_end_the_walk() {
    let mut bytes = config();
    (bytes[0x34], bytes[0x41]) = (0x40, 0x40);
    bytes[0x100..0x104].copy_from_slice(&0x1000_0001u32.to_le_bytes());
    assert_eq!(all(&bytes).len(), 2);
    assert_eq!(all(&[0xff; 4096]).len(), 0);
    assert_eq!(all(&[]).len(), 0);
    bytes[0x41] = 0x20;
    assert_eq!(all(&bytes).len(), 2);
}

#[test]
fn lists_longer_than_any_device_has_are_cut() {
    let mut bytes = config();
    bytes[0x34] = 0x40;
    for at in (0x40..0x100).step_by(4) {
        bytes[at..at + 2].copy_from_slice(&[0xee, u8::try_from((at + 4) % 0x100).unwrap()]);
    }
    for at in (0x100..0x1000u32).step_by(4) {
        let header = 0x0001_0077 | (at + 4) << 20;
        bytes[at as usize..][..4].copy_from_slice(&header.to_le_bytes());
    }
    // Of the first there is room for no more, of the others there are 960.
    assert_eq!(all(&bytes).len(), MAX_STANDARD + MAX_EXTENDED);
}

#[test]
fn an_error_of_the_reader_is_the_callers_and_ends_the_walk() {
    let bytes = config();
    for fails in 0..6 {
        let mut reads = 0;
        let found: Vec<Result<_, usize>> = walk(|offset| {
            reads += 1;
            if reads > fails { Err(reads) } else { Ok(bytes::word(&bytes, offset.into())) }
        })
        .collect();
        assert_eq!(found.last().unwrap(), &Err(fails + 1));
        assert_eq!(found.iter().filter(|one| one.is_err()).count(), 1);
    }
}

proptest! {
    #[test]
    fn no_offset_panics(offset: u16, seed in prop::collection::vec(any::<u8>(), 256)) {
        for offset in [offset, offset % 256] {
            let _ = MsiCapability::read(reader(&seed), offset);
            let _ = MsixCapability::read(reader(&seed), offset);
            let _ = PowerCapability::read(reader(&seed), offset);
            let _ = ExpressCapability::read(reader(&seed), offset);
            let _ = AfCapability::read(reader(&seed), offset);
            let _ = VendorCapability::read(reader(&seed), offset);
            let _ = VendorExtendedCapability::read(reader(&seed), offset);
        }
    }

    #[test]
    fn whatever_a_device_says_the_walk_ends(seed in prop::collection::vec(any::<u8>(), 4096)) {
        let found = all(&seed);
        prop_assert!(found.len() <= MAX_STANDARD + MAX_EXTENDED);
        let mut offsets: Vec<_> = found.iter().map(|one| one.offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        prop_assert_eq!(offsets.len(), found.len());
        for one in found {
            prop_assert!(one.offset % 4 == 0 && one.offset >= 0x40 && one.offset < 0x1000);
        }
    }
}
