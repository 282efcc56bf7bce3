use super::*;
use proptest::prelude::*;

fn one(number: usize, kind: BarKind, size: u64) -> Bars {
    let mut bars = [None; BAR_COUNT];
    bars[number] = Some(Bar { size, kind });
    Bars::new(&bars)
}

fn sized(kind: BarKind, size: u64) -> [u32; 2] {
    let mut bars = one(2, kind, size);
    assert!(bars.write(0x18, &[0xff; 8]).is_empty());
    [bars.register(2), bars.register(3)]
}

#[test]
fn sizing_shows_mask_and_type() {
    assert_eq!(sized(BarKind::MEMORY_32, 0x1000), [0xffff_f000, 0]);
    assert_eq!(sized(BarKind::IO, 64), [0xffff_ffc1, 0]);
    assert_eq!(sized(BarKind::PREFETCHABLE_64, 1 << 20), [0xfff0_000c, 0xffff_ffff]);
    assert_eq!(sized(BarKind::MEMORY_64, 1 << 33), [0x0000_0004, 0xffff_fffe]);
    assert_eq!(sized(BarKind::MEMORY_64, 1 << 63), [0x0000_0004, 0x8000_0000]);
    assert_eq!(sized(BarKind::MEMORY_32, 1 << 31), [0x8000_0000, 0]);
}

#[test]
fn absurd_sizes_are_rounded_or_not_there() {
    assert_eq!(sized(BarKind::MEMORY_32, 0), [0, 0]);
    assert_eq!(sized(BarKind::MEMORY_32, 1), [0xffff_fff0, 0]);
    assert_eq!(sized(BarKind::IO, 1), [0xffff_fffd, 0]);
    assert_eq!(sized(BarKind::MEMORY_32, 0x1001), [0xffff_e000, 0]);
    assert_eq!(sized(BarKind::MEMORY_32, (1 << 31) + 1), [0, 0]);
    assert_eq!(sized(BarKind::MEMORY_64, (1 << 63) + 1), [0, 0]);
    assert_eq!(sized(BarKind::MEMORY_64, u64::MAX), [0, 0]);
    assert!(one(5, BarKind::MEMORY_64, 0x1000).get(5).is_none());
}

#[test]
fn an_upper_half_is_no_bar_of_its_own() {
    let bar = |kind| Some(Bar { size: 0x1000, kind });
    let mut all = [None; BAR_COUNT];
    (all[0], all[1]) = (bar(BarKind::MEMORY_64), bar(BarKind::IO));
    let mut bars = Bars::new(&all);
    assert!(bars.get(1).is_none() && !bars.has_io());
    bars.write(BAR0, &[0, 0, 0, 0x40, 2, 0, 0, 0]);
    assert_eq!((bars.address(0), bars.address(1)), (Some(0x2_4000_0000), None));
}

#[test]
fn a_bar_that_is_sized_stays_where_it_is() {
    let mut bars = one(2, BarKind::MEMORY_64, 0x4000);
    assert!(bars.write(0x18, &0x4000_0004u32.to_le_bytes()).contains(2));
    assert!(bars.write(0x1c, &[1, 0, 0, 0]).contains(2));
    assert!(bars.write(0x18, &[0xff; 4]).is_empty());
    assert!(bars.is_being_sized(2));
    assert!(bars.write(0x18, &0x4000_0004u32.to_le_bytes()).is_empty());
    assert!(bars.write(0x1c, &[0xff; 4]).is_empty());
    assert_eq!(bars.address(2), Some(0x1_4000_0000));
    assert!(bars.write(0x1c, &[1, 0, 0, 0]).is_empty());
    assert!(!bars.is_being_sized(2));
    // The last 16 KiB below 8 GiB are an address like any other.
    assert!(bars.write(0x18, &0xffff_c004u32.to_le_bytes()).contains(2));
    assert_eq!(bars.address(2), Some(0x1_ffff_c000));
    // A 32-bit BAR may also be sized with the type bits left out.
    let mut bars = one(0, BarKind::MEMORY_32, 0x1000);
    bars.write(BAR0, &0xfeb0_0000u32.to_le_bytes());
    assert!(bars.write(BAR0, &0xffff_fff0u32.to_le_bytes()).is_empty());
    assert_eq!((bars.register(0), bars.address(0)), (0xffff_f000, Some(0xfeb0_0000)));
}

#[test]
fn bytes_and_ranges_beyond_the_registers_are_taken() {
    let mut bars = one(0, BarKind::MEMORY_32, 0x20000);
    bars.write(BAR0, &0xfeb0_0000u32.to_le_bytes());
    assert!(bars.write(0x13, &[0xaa]).contains(0));
    assert_eq!(bars.register(0), 0xaab0_0000);
    assert!(bars.write(0x0e, &[0, 0, 0, 0, 0x22, 0xbb]).contains(0));
    assert_eq!(bars.image()[..4], 0xbb22_0000u32.to_le_bytes());
    assert!(bars.write(0x26, &[0xff; 8]).is_empty());
    assert!(bars.reset().contains(0));
    assert!(bars.address(0).is_none() && bars.register(9) == 0);
}

proptest! {
    #[test]
    fn any_description_and_any_write_keep_the_rules(
        described in prop::collection::vec(prop::option::of((any::<u64>(), 0u32..64, any::<u8>())), 6),
        writes in prop::collection::vec((0usize..0x40, prop::collection::vec(any::<u8>(), 0..9)), 0..40),
    ) {
        let mut all = [None; BAR_COUNT];
        for (to, from) in all.iter_mut().zip(&described) {
            *to = from.map(|(size, shift, kind)| Bar { size: size >> shift, kind: BarKind::from_bits(kind) });
        }
        let mut bars = Bars::new(&all);
        for (offset, data) in writes {
            let before: Vec<_> = (0..6).map(|bar| bars.address(bar)).collect();
            let moved = bars.write(offset, &data);
            for number in 0..6 {
                prop_assert!(!(moved.contains(number) && bars.is_being_sized(number)));
                if !moved.contains(number) {
                    prop_assert_eq!(before[number], bars.address(number));
                }
                if let (Some(address), Some(bar)) = (bars.address(number), bars.get(number)) {
                    prop_assert_eq!(address % bar.size, 0);
                    prop_assert!(bar.size >= all[number].unwrap().size);
                }
            }
        }
    }

    #[test]
    fn what_is_sized_is_the_size(number in 0usize..5, shift in 4u32..64, wide: bool) {
        let size = 1u64 << if wide { shift } else { shift % 28 + 4 };
        let kind = if wide { BarKind::MEMORY_64 } else { BarKind::MEMORY_32 };
        let mut bars = one(number, kind, size);
        bars.write(BAR0 + 4 * number, &[0xff; 8]);
        let high = if wide { bars.register(number + 1) } else { u32::MAX };
        let mask = u64::from(high) << 32 | u64::from(bars.register(number) & !0xf);
        prop_assert_eq!((!mask).wrapping_add(1), size);
    }
}
