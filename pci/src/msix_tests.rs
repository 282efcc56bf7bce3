use super::*;
use proptest::prelude::*;

fn msix(vectors: u16) -> Msix {
    Msix::new(MsixCapability {
        offset: 0xb0,
        vectors,
        table_bar: 0,
        table_offset: 0x8000,
        pba_bar: 2,
        pba_offset: 0xc000,
    })
}

fn fill(msix: &mut Msix, vector: u16, address: u64, data: u32, masked: bool) {
    let at = u64::from(vector) * 16;
    msix.write_table(at, &address.to_le_bytes());
    msix.write_table(at + 8, &data.to_le_bytes());
    msix.write_table(at + 12, &u32::from(masked).to_le_bytes());
}

fn control(msix: &mut Msix, high: u8) -> bool {
    msix.write_control(3, &[high])
}

#[test]
fn the_control_register_keeps_enable_and_function_mask() {
    let mut msix = msix(32);
    assert_eq!(msix.control(), 0x1f);
    assert!(msix.write_control(0, &[0xff, 0xff, 0xff, 0xff]));
    assert_eq!(msix.control(), 0xc01f);
    assert!(!control(&mut msix, 0xc7));
    assert!(control(&mut msix, 0));
    assert_eq!(msix.control(), 0x1f);
    assert!(!msix.write_control(4, &[0xff; 8]));
}

#[test]
fn entries_are_set_by_4_and_8_bytes_at_any_time() {
    let mut msix = msix(4);
    assert_eq!(msix.write_table(16, &[0xff; 4]), Some(1));
    assert_eq!(msix.write_table(24, &[7, 0, 0, 0, 0, 0, 0, 0]), Some(1));
    let message = Message { address: 0xffff_fffc, data: 7 };
    assert_eq!(msix.vector(1), VectorState { in_use: false, masked: false, message });
    control(&mut msix, 0x80);
    assert!(msix.vector(1).in_use && !msix.vector(0).in_use && !msix.vector(9).in_use);
    assert_eq!(msix.write_table(24, &[7, 0, 0, 0]), None);
    for (offset, data) in [(16, &[1; 2][..]), (17, &[1; 4]), (20, &[1; 8]), (64, &[1; 4]), (0, &[])]
    {
        assert_eq!(msix.write_table(offset, data), None, "{offset} {data:?}");
    }
    let mut entry = [0; 18];
    msix.read_table(16, &mut entry);
    assert_eq!(entry[..13], [0xfc, 0xff, 0xff, 0xff, 0, 0, 0, 0, 7, 0, 0, 0, 0]);
    let mut odd = [9; 3];
    msix.read_table(62, &mut odd);
    assert_eq!(odd, [0; 3]);
    msix.read_table(u64::MAX - 1, &mut odd);
}

#[test]
fn masking_an_entry_that_was_never_filled_in_is_no_use_of_it() {
    let mut msix = msix(4);
    control(&mut msix, 0x80);
    assert_eq!(msix.write_table(12, &[1, 0, 0, 0]), None);
    assert!(!msix.vector(0).in_use);
    fill(&mut msix, 0, 0xfee0_0000, 0x51, true);
    assert!(msix.vector(0).in_use && msix.vector(0).masked);
}

#[test]
fn masked_vectors_are_pending_and_come_with_the_unmask() {
    let mut msix = msix(130);
    for vector in [0, 1, 129] {
        fill(&mut msix, vector, 0xfee0_0000, 0x51 + u32::from(vector), vector != 0);
    }
    assert_eq!(msix.signal(0), None);
    control(&mut msix, 0x80);
    assert_eq!(msix.signal(0), Some(Message { address: 0xfee0_0000, data: 0x51 }));
    assert_eq!((msix.signal(1), msix.signal(129), msix.signal(130)), (None, None, None));
    let mut bits = [0; 25];
    msix.read_pending(0, &mut bits);
    assert_eq!((bits[0], bits[16], bits[24]), (2, 2, 0));
    assert!(!msix.has_deliverable());
    control(&mut msix, 0xc0);
    assert_eq!(msix.signal(0), None);
    fill(&mut msix, 129, 0xfee0_0000, 0x99, false);
    assert!(!msix.has_deliverable());
    control(&mut msix, 0x80);
    let vectors: Vec<_> = std::iter::from_fn(|| msix.next_deliverable()).collect();
    assert_eq!(
        vectors.iter().map(|(v, m)| (*v, m.data)).collect::<Vec<_>>(),
        [(0, 0x51), (129, 0x99)]
    );
    msix.read_pending(0, &mut bits);
    assert_eq!((bits[0], bits[16]), (2, 0));
    msix.reset();
    msix.read_pending(0, &mut bits);
    assert_eq!((bits[0], msix.control()), (0, 129));
}

#[test]
fn accesses_are_told_apart_by_bar_and_place() {
    let msix = msix(32);
    for (bar, offset, length, expected) in [
        (0, 0x8000, 4, Some(MsixRegion::Table)),
        (0, 0x7ffc, 8, Some(MsixRegion::Table)),
        (0, 0x81fc, 4, Some(MsixRegion::Table)),
        (0, 0x8200, 4, None),
        (2, 0x8000, 4, None),
        (2, 0xc007, 1, Some(MsixRegion::PendingBits)),
        (2, 0xc008, 1, None),
        (2, u64::MAX, 8, None),
    ] {
        assert_eq!(msix.region(bar, offset, length), expected, "{bar} {offset:#x}");
    }
}

proptest! {
    /// Against the plainest model: a set of vectors that are owed to the guest.
    #[test]
    fn what_is_raised_while_masked_is_delivered_once(
        vectors in 1u16..200,
        steps in prop::collection::vec((0u8..5, 0u16..200, any::<u32>()), 0..100),
    ) {
        let mut msix = msix(vectors);
        let mut owed = std::collections::BTreeSet::new();
        for (step, vector, value) in steps {
            match step {
                0 => { control(&mut msix, value.to_le_bytes()[0]); }
                1 => { msix.write_table(u64::from(vector) * 16 + 12, &value.to_le_bytes()); }
                2 => { msix.write_table(u64::from(vector) * 16, &u64::from(value).to_le_bytes()); }
                _ => {
                    let state = msix.vector(vector);
                    let sent = msix.signal(vector);
                    let on = msix.is_enabled() && vector < vectors;
                    prop_assert_eq!(sent.is_some(), on && !state.masked);
                    if on && state.masked { owed.insert(vector); }
                }
            }
            while let Some((vector, message)) = msix.next_deliverable() {
                prop_assert!(owed.remove(&vector));
                prop_assert_eq!(message, msix.vector(vector).message);
            }
            for vector in &owed {
                prop_assert!(msix.vector(*vector).masked || !msix.is_enabled());
                let mut byte = [0];
                msix.read_pending(u64::from(vector / 8), &mut byte);
                prop_assert!(byte[0] >> (vector % 8) & 1 != 0);
            }
        }
    }

    #[test]
    fn no_access_of_any_shape_panics(
        vectors in 0u16..=2048, offset: u64, bar: u8, data in prop::collection::vec(any::<u8>(), 0..20)
    ) {
        let mut msix = msix(vectors);
        let mut out = data.clone();
        msix.write_table(offset, &data);
        msix.write_table(offset % 40_000, &data);
        msix.read_table(offset, &mut out);
        msix.read_pending(offset % 300, &mut out);
        let _ = msix.region(bar, offset, data.len());
        msix.signal(u16::from(bar));
    }
}
