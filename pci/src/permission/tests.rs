use super::*;
use crate::bytes;
use crate::registers::CONFIG_SPACE;
use crate::sample;
use proptest::prelude::*;

#[test]
fn every_bit_of_every_structure_has_exactly_one_row_with_a_reason() {
    for structure in structures() {
        let length = if structure.length == Field::REST { 64 } else { structure.length };
        for at in 0..length {
            let masks: Vec<_> =
                structure.fields.iter().map(|field| field.mask(at, length)).collect();
            let (all, sum) = masks
                .iter()
                .fold((0u8, 0u32), |(all, sum), mask| (all | mask, sum + u32::from(*mask)));
            assert_eq!((all, sum), (0xff, 0xff), "{} at {at:#x}: {masks:x?}", structure.name);
        }
        for field in structure.fields {
            assert!(!field.reason.is_empty() && !field.name.is_empty(), "{}", structure.name);
            let is_covered = (0..length).any(|at| field.mask(at, length) != 0);
            assert!(is_covered, "{}: {}", structure.name, field.name);
        }
    }
}

#[test]
fn each_capability_has_one_table() {
    let mut ids: Vec<_> = structures().map(|one| format!("{:?} {}", one.id, one.name)).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
    assert_eq!(standard_capability(0x05).length, 24);
    assert_eq!(standard_capability(0x10).length, 60);
    assert_eq!(standard_capability(0xee).id, StructureId::UnknownStandard);
    assert_eq!(extended_capability(0x10).name, "Single Root I/O Virtualization");
    assert_eq!(extended_capability(0xeee).id, StructureId::UnknownExtended);
}

/// Ids that PCI and PCI Express give out: standard ones up to the Flattening Portal Bridge, extended ones up to
/// the MMIO Register Block Locator.
#[test]
fn every_capability_of_the_specifications_has_rows() {
    for id in 0x00..=0x15 {
        assert_eq!(standard_capability(id).id, StructureId::Standard(id), "{id:#x}");
    }
    for id in 0x00..=0x36 {
        assert_eq!(extended_capability(id).id, StructureId::Extended(id), "{id:#x}");
    }
    assert_eq!(standard_capability(0x16).id, StructureId::UnknownStandard);
    assert_eq!(extended_capability(0x37).id, StructureId::UnknownExtended);
}

fn sent(layout: &Layout, offset: u32, data: &[u8]) -> Vec<(u16, u8, u32)> {
    layout.split(offset, data).iter().map(|one| (one.offset, one.width, one.value)).collect()
}

#[test]
fn p6_1_and_p6_2_command_goes_byte_by_byte_status_and_bars_nowhere() {
    let layout = Layout::new(&sample::config());
    assert_eq!(sent(&layout, 4, &[0x06, 0x04, 0xff, 0xff]), [(4, 1, 6), (5, 1, 4)]);
    assert_eq!(sent(&layout, 3, &[9, 8]), [(4, 1, 8)]);
    for offset in (0x10..0x28).chain(0x30..0x34).chain([0x0e, 0x0f, 0x3c, 0x3d, 0x00, 0x08]) {
        assert_eq!(sent(&layout, offset, &[0xff]), [], "{offset:#x}");
    }
}

#[test]
fn p6_3_device_specific_vendor_and_unknown_registers_are_forwarded() {
    let layout = Layout::new(&sample::config());
    assert_eq!(sent(&layout, 0xe0, &[1, 2, 3, 4]), [(0xe0, 4, 0x0403_0201)]);
    assert_eq!(sent(&layout, 0xe1, &[1, 2, 3]), [(0xe1, 1, 1), (0xe2, 2, 0x0302)]);
    // The vendor capability at 0xc0 is 16 bytes.
    assert_eq!(sent(&layout, 0xc0, &[1, 2, 3, 4]), [(0xc3, 1, 4)]);
    assert_eq!(sent(&layout, 0xd0, &[9; 4]), [(0xd2, 2, 0x0909)]);
    // Extended: the vendor's own, and no other.
    assert_eq!(sent(&layout, 0x108, &[7; 4]), []);
    assert_eq!(sent(&layout, 0x208, &[7; 4]), [(0x208, 4, 0x0707_0707)]);
    assert_eq!(sent(&layout, 0x204, &[7; 4]), []);
    assert_eq!(sent(&layout, 0x210, &[7; 4]), []);
    assert_eq!(sent(&layout, 0xffe, &[7; 4]), []);
    assert!(layout.permits(0xe0, 4) && !layout.permits(0xe0, 0) && !layout.permits(0xffe, 4));
}

#[test]
fn p6_4_device_control_is_forwarded_bit_by_bit() {
    let mut config = sample::config();
    // As the host set it: 256 bytes payload, 512 bytes read request, extended tags, no snoop.
    config[0x78..0x7a].copy_from_slice(&0x2920u16.to_le_bytes());
    let layout = Layout::new(&config);
    assert_eq!(sent(&layout, 0x78, &0xffffu16.to_le_bytes()), [(0x78, 2, 0x2930)]);
    assert_eq!(sent(&layout, 0x78, &0x0000u16.to_le_bytes()), [(0x78, 2, 0x0120)]);
    assert_eq!(sent(&layout, 0x78, &[0x10, 0x10, 0xff, 0xff]), [(0x78, 2, 0x1130)]);
    // Completion timeout of DevCtl2.
    assert_eq!(sent(&layout, 0x98, &[0xff, 0xff]), [(0x98, 1, 0x1f)]);
}

#[test]
fn p6_4_a_read_request_stays_within_what_the_host_set_before_a_guest_lowered_it() {
    let mut config = sample::config();
    config[0x78..0x7a].copy_from_slice(&0x0000u16.to_le_bytes());
    let mut layout = Layout::new(&config);
    assert_eq!(layout.max_read_request(), Some(0));
    assert_eq!(sent(&layout, 0x78, &0x2000u16.to_le_bytes()), [(0x78, 2, 0x0000)]);
    layout.set_max_read_request(2);
    layout.set_max_read_request(8);
    assert_eq!(layout.max_read_request(), Some(2));
    assert_eq!(sent(&layout, 0x78, &0x5000u16.to_le_bytes()), [(0x78, 2, 0x2000)]);
    let mut none = Layout::new(&[0; 64]);
    none.set_max_read_request(2);
    assert_eq!(none.max_read_request(), None);
}

#[test]
fn p6_4_messages_and_resets_are_not_forwarded() {
    let layout = Layout::new(&sample::config());
    for offset in (0x50..0x68).chain(0xb0..0xbc) {
        assert!(!layout.permits(offset, 1), "{offset:#x}");
    }
    assert!(layout.asks_for_reset(0x78, &[0, 0x80]) && layout.asks_for_reset(0x79, &[0x80]));
    assert!(!layout.asks_for_reset(0x78, &[0x80, 0x7f]) && !layout.asks_for_reset(0x79, &[0x7f]));
    assert!(layout.asks_for_reset(0x48 + 4, &[1]) && !layout.asks_for_reset(0x48 + 4, &[0xfe]));
    let mut config = sample::config();
    config[0x77] = 0;
    config[0x4b] = 0;
    let layout = Layout::new(&config);
    assert!(!layout.asks_for_reset(0x78, &[0, 0x80, 0, 0]) && !layout.asks_for_reset(0x4c, &[1]));
}

#[test]
fn p6_4_d0_and_d3hot_are_forwarded_where_they_cost_nothing() {
    let layout = Layout::new(&sample::config());
    assert_eq!(sent(&layout, 0x44, &[3, 0xff, 0xff, 0xff]), [(0x44, 1, 0x0b)]);
    assert_eq!(sent(&layout, 0x44, &[0]), [(0x44, 1, 0x08)]);
    assert_eq!((sent(&layout, 0x44, &[1]), sent(&layout, 0x44, &[2])), (vec![], vec![]));
    let mut config = sample::config();
    config[0x44] = 0;
    assert_eq!(sent(&Layout::new(&config), 0x44, &[3, 0, 0, 0]), []);
}

#[test]
fn a_write_to_vpd_is_sent_as_a_read() {
    let mut config = sample::config();
    config[0xd0] = 0x03;
    config[0xd3] = 0x80;
    let layout = Layout::new(&config);
    assert_eq!(sent(&layout, 0xd2, &[0x10, 0x80]), [(0xd2, 2, 0x0010)]);
    assert_eq!(sent(&layout, 0xd4, &[1, 2, 3, 4]), []);
}

#[test]
fn a_second_msix_capability_and_one_that_does_not_fit_may_only_be_read() {
    let mut config = sample::config();
    (config[0xd0], config[0xd1]) = (0x11, 0xfc);
    (config[0xfc], config[0xfd]) = (0x10, 0);
    let layout = Layout::new(&config);
    assert!(!layout.permits(0xd3, 1) && !layout.permits(0xfe, 1));
    assert!(layout.known.msix.is_some_and(|msix| msix.offset == 0xb0));
}

#[test]
fn an_error_of_the_reader_is_the_callers() {
    assert_eq!(Layout::read(|_| Err::<u32, _>("gone")).unwrap_err(), "gone");
    let mut reads = 0;
    let config = sample::config();
    let layout = Layout::read(|offset| {
        reads += 1;
        Ok::<_, ()>(bytes::word(&config, offset.into()))
    });
    assert!(layout.is_ok() && reads < 64, "{reads}");
}

/// Config spaces near a real one, and some far from any.
pub(crate) fn configs() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec((0usize..CONFIG_SPACE, any::<u8>()), 0..200);
    let lists = prop::collection::vec((0usize..0x100, any::<u8>()), 0..30);
    (any::<bool>(), noise, lists).prop_map(|(wild, noise, lists)| {
        let mut config = sample::config();
        if wild {
            for (at, byte) in noise {
                config[at] = byte;
            }
        }
        for (at, byte) in lists {
            config[at] = byte;
        }
        (config[0x00], config[0x0e]) = (0xd0, config[0x0e] & 0x80);
        config
    })
}

proptest! {
    #[test]
    fn masks_and_rows_agree(config in configs()) {
        let layout = Layout::new(&config);
        for at in 0..0x1000u16 {
            for bit in 0..8 {
                let (_, field) = layout.row(at, bit).unwrap();
                let forwarded = layout.forwarded_bits(at) >> bit & 1 != 0;
                let is_power = Some(usize::from(at)) == layout.power_state() && bit < 2;
                prop_assert!(is_power || forwarded == (field.treatment == Treatment::Forwarded),
                    "{at:#x} bit {bit}: {field:?}");
            }
        }
        prop_assert!(layout.row(0x1000, 0).is_none());
    }

    /// What reached the device, bit by bit, against the table.
    #[test]
    fn no_write_changes_a_bit_that_it_may_not(
        config in configs(), offset in 0u32..0x1010, near in 0u32..0x120, pick: bool,
        data in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let layout = Layout::new(&config);
        let offset = if pick { near } else { offset };
        let forwards = layout.split(offset, &data);
        for one in forwards.iter() {
            prop_assert!(matches!(one.width, 1 | 2 | 4) && one.offset % u16::from(one.width) == 0);
            prop_assert!(!(4..6).contains(&one.offset) || one.width == 1);
            let value = one.value.to_le_bytes();
            for (at, value) in (one.offset..).zip(&value[..one.width.into()]) {
                let forwarded = layout.forwarded_bits(at);
                let changed = value ^ config[usize::from(at)];
                prop_assert!(forwarded != 0);
                // Bits that would start an action are 0 in any case.
                prop_assert_eq!(changed & !forwarded & value, 0, "{:#x}", at);
            }
            // Checked again, it is the same.
            let again = layout.split(one.offset.into(), &value[..one.width.into()]);
            prop_assert_eq!(&again[..], &[*one]);
        }
    }
}
