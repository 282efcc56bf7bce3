use super::*;
use crate::bar::BarKind;
use proptest::prelude::*;

const GRANULE: Granule = Granule::KIB_16;

fn bar(size: u64) -> Bar {
    Bar { size, kind: BarKind::MEMORY_32 }
}

fn msix(table_offset: u32, pba_offset: u32, vectors: u16) -> MsixCapability {
    MsixCapability { offset: 0, vectors, table_bar: 0, table_offset, pba_bar: 0, pba_offset }
}

fn placed(number: u8, bar: Bar, mapped: u64, msix: Option<&MsixCapability>) -> Vec<(u64, u64)> {
    place(number, bar, mapped, GRANULE, msix).iter().map(|one| (one.offset, one.length)).collect()
}

#[test]
fn p7_1_nothing_of_an_io_or_empty_bar() {
    let io = Bar { kind: BarKind::IO, ..bar(0x10000) };
    assert_eq!(placed(4, io, 0x10000, None), []);
    assert_eq!(placed(4, bar(0), 16384, None), []);
}

#[test]
fn p7_2_clamped_to_the_bar_and_to_what_is_mapped() {
    assert_eq!(placed(0, bar(0x8000), 0x10000, None), [(0, 0x8000)]);
    assert_eq!(placed(0, bar(0x10000), 0x8000, None), [(0, 0x8000)]);
}

#[test]
fn p7_3_split_around_the_msix_pages() {
    let whole = bar(0x20000);
    let split = placed(0, whole, 0x20000, Some(&msix(0x8000, 0xc000, 32)));
    assert_eq!(split, [(0, 0x8000), (0x10000, 0x10000)]);
    let apart = placed(0, whole, 0x20000, Some(&msix(0x4010, 0x1fff8, 32)));
    assert_eq!(apart, [(0, 0x4000), (0x8000, 0x14000)]);
    let three = placed(0, whole, 0x20000, Some(&msix(0x4010, 0xfff8, 32)));
    assert_eq!(three, [(0, 0x4000), (0x8000, 0x4000), (0x10000, 0x10000)]);
    assert_eq!(placed(1, whole, 0x20000, Some(&msix(0, 0, 32))), [(0, 0x20000)]);
    assert_eq!(placed(0, whole, 0x20000, Some(&msix(0, 0x800, 32))), [(0x4000, 0x1c000)]);
    // Pending bits inside of the table: what is left out of one hole is not given by the other.
    assert_eq!(placed(0, whole, 0x20000, Some(&msix(0x2000, 0x4000, 2048))), [(0xc000, 0x14000)]);
    let outside = placed(0, whole, 0x20000, Some(&msix(0xffff_fff8, 0xffff_0000, 2048)));
    assert_eq!(outside, [(0, 0x20000)]);
}

#[test]
fn p7_7_a_bar_below_a_granule_is_left_to_traps() {
    assert_eq!(placed(0, bar(0x1000), 0x4000, None), []);
    assert_eq!(placed(0, bar(0x9000), 0xc000, None), [(0, 0x8000)]);
    assert_eq!(place(0, bar(0x1000), 0x4000, Granule::KIB_4, None).len(), 1);
    assert_eq!((Granule::new(0), Granule::new(12)), (None, None));
}

#[test]
fn windows_of_others_are_checked() {
    let msix = msix(0x8000, 0xc000, 32);
    let windows = |all: &[(u64, u64)]| {
        let all: Vec<_> = all.iter().map(|&(offset, length)| Window { offset, length }).collect();
        check(all, 0, bar(0x20000), GRANULE, Some(&msix))
    };
    for (all, expected) in [
        (&[][..], Ok(())),
        (&[(0, 0x8000), (0x10000, 0x10000)], Ok(())),
        (&[(0x4000, 0x4000), (0x14000, 0x4000), (0x18000, 0x4000)], Ok(())),
        (&[(0, 0)], Err(WindowFault::Empty(0))),
        (&[(0, 0x4000), (0x4000, 0x1000)], Err(WindowFault::Unaligned(1))),
        (&[(0x1000, 0x4000)], Err(WindowFault::Unaligned(0))),
        (&[(0x10000, 0x14000)], Err(WindowFault::OutOfBar(0))),
        (&[(u64::MAX - 0x3fff, 0x4000)], Err(WindowFault::OutOfBar(0))),
        (&[(0x4000, 0x4000), (0, 0x4000)], Err(WindowFault::Order(1))),
        (&[(0, 0x8000), (0x4000, 0x4000)], Err(WindowFault::Order(1))),
        (&[(0, 0x8000), (0x8000, 0x4000)], Err(WindowFault::Msix(1))),
        (&[(0, 0x20000)], Err(WindowFault::Msix(0))),
    ] {
        assert_eq!(windows(all), expected, "{all:x?}");
    }
    let io = Bar { kind: BarKind::IO, ..bar(0x4000) };
    let one = [Window { offset: 0, length: 0x4000 }];
    assert_eq!(check(one, 0, io, GRANULE, None), Err(WindowFault::InputOutput(0)));
}

proptest! {
    #[test]
    fn what_is_placed_is_acceptable_and_complete(
        size: u64, mapped: u64, shift in 0u32..64, granule in 0u32..64,
        table: u32, pending: u32, near: bool, vectors in 1u16..=2048, pba_bar in 0u8..2,
    ) {
        let granule = Granule::new(1 << granule).unwrap();
        let (size, mapped) = (size >> shift, mapped >> shift);
        let place_of = |at: u32| if near { at & 0x1f_fff8 } else { at & !7 };
        let msix = MsixCapability { pba_bar, ..msix(place_of(table), place_of(pending), vectors) };
        let windows = place(0, bar(size), mapped, granule, Some(&msix));
        prop_assert_eq!(check(windows.iter().copied(), 0, bar(size), granule, Some(&msix)), Ok(()));
        let mut structures = vec![(msix.table_offset, msix.table_bytes())];
        if pba_bar == 0 {
            structures.push((msix.pba_offset, msix.pba_bytes()));
        }
        let mut total = 0u64;
        for window in windows.iter() {
            prop_assert!(window.offset + window.length <= mapped);
            total += window.length;
            for (start, bytes) in &structures {
                let start = u64::from(*start);
                prop_assert!(window.offset + window.length <= start || start + bytes <= window.offset);
            }
        }
        // Nothing more is left out than the granules that hold a structure.
        let granules: u64 = structures.iter().map(|(_, bytes)| bytes / granule.bytes() + 2).sum();
        let least = (size.min(mapped) & !(granule.bytes() - 1))
            .saturating_sub(granules.saturating_mul(granule.bytes()));
        prop_assert!(total >= least);
    }

    #[test]
    fn no_claim_of_any_numbers_panics_or_covers_msix(
        all in prop::collection::vec((any::<u64>(), any::<u64>(), 0u32..64), 0..8), size: u64,
        table: u32, vectors in 1u16..=2048,
    ) {
        let msix = msix(table & !7, 0, vectors);
        let all: Vec<_> = all
            .iter()
            .map(|(offset, length, shift)| Window { offset: offset >> shift, length: length >> shift })
            .collect();
        let verdict = check(all.iter().copied(), 0, bar(size), Granule::new(1).unwrap(), Some(&msix));
        if verdict.is_ok() {
            for window in all {
                let end = window.offset + window.length;
                prop_assert!(end <= size);
                let start = u64::from(msix.table_offset);
                prop_assert!(end <= start || start + msix.table_bytes() <= window.offset);
            }
        }
    }
}
