use proptest::prelude::*;

use super::*;

/// Fixed fields of a description.
const FIXED: usize = 32;

/// A capability's bytes: id, version, where the next one is, and what it has of its own.
fn capability(id: u16, next: u32, own: &[u8]) -> Vec<u8> {
    let header = [&id.to_ne_bytes()[..], &1u16.to_ne_bytes(), &next.to_ne_bytes()].concat();
    [&header, own].concat()
}

/// A description with these capabilities one behind the other, each with that many bytes between.
fn description(all: &[(u16, Vec<u8>, usize)]) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    for (number, (id, own, gap)) in all.iter().enumerate() {
        bytes.extend(vec![0; *gap]);
        let end = bytes.len() + HEADER + own.len();
        let next = all.get(number + 1).map_or(0, |(_, _, gap)| u32::try_from(end + gap).unwrap());
        bytes.extend(capability(*id, next, own));
    }
    bytes
}

fn first(all: &[(u16, Vec<u8>, usize)]) -> u32 {
    all.first().map_or(0, |(_, _, gap)| u32::try_from(FIXED + gap).unwrap())
}

fn list(count: u32, pairs: &[(u64, u64)]) -> Vec<u8> {
    let mut own = [count.to_ne_bytes(), [0; 4]].concat();
    own.extend(
        pairs.iter().flat_map(|(one, other)| [one.to_ne_bytes(), other.to_ne_bytes()]).flatten(),
    );
    own
}

/// The one capability of a description that has this of its own.
fn only(own: &[u8]) -> Vec<u8> {
    capability(1, 0, own)
}

fn of(bytes: &[u8]) -> Capability<'_> {
    Capability { id: 1, bytes }
}

proptest! {
    #[test]
    fn a_chain_is_what_it_was_made_of(
        all in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40), 0usize..8), 0..MAX_CAPABILITIES)
    ) {
        let bytes = description(&all);
        let found = chain(&bytes, FIXED, first(&all)).unwrap();
        prop_assert_eq!(found.len(), all.len());
        for (found, (id, own, _)) in found.iter().zip(&all) {
            prop_assert_eq!(found.id, *id);
            prop_assert!(found.bytes[HEADER..].starts_with(own));
        }
    }

    #[test]
    fn whatever_a_kernel_says_ends_and_stays_inside(
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(8), Just(40), any::<u8>()], 0..200),
        first in 0u32..220,
        fixed in 0usize..64,
    ) {
        if let Ok(all) = chain(&bytes, fixed, first) {
            prop_assert!(all.len() <= MAX_CAPABILITIES);
            for one in all {
                prop_assert!(one.bytes.len() >= HEADER && one.bytes.len() + fixed <= bytes.len());
                if let Ok(areas) = one.areas(0x1000) {
                    prop_assert!(areas.iter().all(|(offset, size)| offset + size <= 0x1000));
                }
                let _ = (one.bus_ranges(), one.mappings());
            }
        }
    }
}

#[test]
fn chains_that_loop_go_back_or_leave_the_description_are_refused() {
    let at = |next: u32| {
        let mut bytes = vec![0; FIXED];
        bytes.extend(capability(1, 48, &[0; 8]));
        bytes.extend(capability(2, next, &[0; 8]));
        chain(&bytes, FIXED, 32).map(|all| all.len())
    };
    assert_eq!(at(0), Ok(2));
    let back = |next| Err(ChainError::Backwards { at: 48, next });
    assert_eq!((at(48), at(32), at(55)), (back(48), back(32), back(55)));
    for outside in [57, 64, 1 << 20, u32::MAX, 1, 31] {
        assert_eq!(at(outside), Err(ChainError::Outside(outside)), "{outside}");
    }
    assert_eq!(chain(&[0; 32], FIXED, 31), Err(ChainError::Outside(31)));
    assert_eq!(chain(&[0; 32], FIXED, 0), Ok(Vec::new()));
}

#[test]
fn one_capability_more_than_there_may_be_is_refused() {
    let many = |count| (0..count).map(|_| (7, Vec::new(), 0)).collect::<Vec<_>>();
    let (most, more) = (many(MAX_CAPABILITIES), many(MAX_CAPABILITIES + 1));
    assert_eq!(chain(&description(&most), FIXED, 32).unwrap().len(), 32);
    assert_eq!(chain(&description(&more), FIXED, 32), Err(ChainError::Endless));
}

#[test]
fn areas_lie_in_their_region_in_order_and_apart() {
    let areas = |count: u32, pairs: &[(u64, u64)]| of(&only(&list(count, pairs))).areas(0x4000);
    let good = [(0, 0x1000), (0x2000, 0x2000)];
    assert_eq!(areas(2, &good), Ok(good.to_vec()));
    assert_eq!(areas(0, &good), Ok(Vec::new()));
    for bad in [
        [(0, 0x1000), (0x800, 0x1000)],
        [(0, 0x1000), (0x2000, 0x2001)],
        [(0, 0x1000), (0x2000, 0)],
        [(0, 0x1000), (u64::MAX, 2)],
    ] {
        let (offset, size) = bad[1];
        assert_eq!(areas(2, &bad), Err(ChainError::Area(offset, size)));
    }
    assert_eq!(areas(3, &good), Err(ChainError::Entries { count: 3, room: 2 }));
    let endless = areas(u32::MAX, &good);
    assert_eq!(endless, Err(ChainError::Entries { count: u32::MAX, room: 2 }));
}

#[test]
fn one_area_more_than_are_read_is_refused() {
    let pairs: Vec<_> = (0..=u64::from(MAX_AREAS)).map(|one| (one * 2, 1)).collect();
    let read = |count| of(&only(&list(count, &pairs))).areas(0x4000);
    assert_eq!(read(MAX_AREAS).unwrap().len(), 64);
    assert_eq!(read(MAX_AREAS + 1), Err(ChainError::Entries { count: 65, room: 64 }));
}

#[test]
fn ranges_of_bus_addresses_are_in_order_and_apart() {
    let ranges = |pairs: &[(u64, u64)]| {
        of(&only(&list(u32::try_from(pairs.len()).unwrap(), pairs))).bus_ranges()
    };
    let good = [(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)];
    assert_eq!(ranges(&good), Ok(good.to_vec()));
    assert_eq!(ranges(&[(0, 5), (5, 9)]), Err(ChainError::Area(5, 9)));
    assert_eq!(ranges(&[(7, 6)]), Err(ChainError::Area(7, 6)));
    assert_eq!(of(&only(&9u32.to_ne_bytes())).mappings(), 9);
}
