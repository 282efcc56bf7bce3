//! Windows are checked, and one mapping sees another.

use super::*;
use proptest::prelude::*;

fn window() -> Window {
    SharedMemory::create("test", 4096).unwrap().map_all(Access::ReadWrite).unwrap()
}

#[test]
fn accesses_past_the_end_or_wrapping_are_refused() {
    let window = window();
    for offset in [4089, 4096, u64::MAX - 3, u64::MAX] {
        let error = window.read::<u64>(offset).unwrap_err();
        assert!(matches!(error, WindowError::OutOfRange { .. }), "{offset:#x}: {error}");
    }
    assert!(matches!(window.read::<u32>(2), Err(WindowError::Misaligned { .. })));
    assert!(matches!(window.read_width(0, 3), Err(WindowError::Width(3))));
}

/// A second view of a window from `shift` bytes on, as a platform that mapped it would hand it over.
#[expect(unsafe_code, reason = "hands over memory as a platform does")]
fn foreign(window: Window, shift: usize) -> Result<Window, WindowError> {
    let (base, length) = (window.base, window.length - shift);
    // SAFETY: inside the mapping, which the owner keeps, and which only windows look at.
    unsafe { Window::foreign(base.add(shift), length, Access::ReadWrite, Box::new(window)) }
}

#[test]
fn memory_of_others_must_be_aligned_for_the_widest_access() {
    for shift in [1, 2, 4, 7, 12] {
        let refused = foreign(window(), shift).unwrap_err();
        assert!(matches!(refused, WindowError::Base { alignment: 8, .. }), "{shift}: {refused}");
    }
    // A BAR smaller than a page need not begin at one.
    let inside = foreign(window(), 0x108).unwrap();
    inside.store_u64(0xef0, 7).unwrap();
    assert_eq!(inside.swap_u64(0xef0, 8).unwrap(), 7);
    assert!(matches!(inside.store_u64(0xef8, 1), Err(WindowError::OutOfRange { .. })));
}

#[test]
fn atomics_are_checked_as_other_accesses() {
    let window = window();
    for offset in [4, 4089, 4092, 4096, u64::MAX] {
        assert!(window.store_u64(offset, 1).is_err(), "{offset:#x}");
    }
    for offset in [2, 4093, 4096, u64::MAX] {
        assert!(window.store_u32(offset, 1).is_err(), "{offset:#x}");
    }
    window.store_u32(4092, 9).unwrap();
    assert_eq!(window.load_u32(4092).unwrap(), 9);
}

#[test]
fn a_read_only_window_refuses_stores() {
    let memory = SharedMemory::create("test", 4096).unwrap();
    let window = memory.map_all(Access::ReadOnly).unwrap();
    assert!(matches!(window.write(0, 1u8), Err(WindowError::ReadOnly)));
    assert!(matches!(window.copy_in(0, &[1]), Err(WindowError::ReadOnly)));
    assert!(matches!(window.swap_u64(0, 1), Err(WindowError::ReadOnly)));
}

#[cfg(target_os = "linux")]
#[test]
fn p7_6_a_window_is_never_executable() {
    let memory = SharedMemory::create("p7-6-window", 4096).unwrap();
    let _windows =
        [Access::ReadOnly, Access::ReadWrite].map(|access| memory.map_all(access).unwrap());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours: Vec<&str> = maps.lines().filter(|map| map.contains("p7-6-window")).collect();
    let protection = |map: &str| map.split_whitespace().nth(1).map(str::to_owned);
    let mut found: Vec<_> = ours.into_iter().filter_map(protection).collect();
    found.sort();
    assert_eq!(found, ["r--s", "rw-s"]);
}

#[test]
fn two_mappings_see_each_other() {
    let memory = SharedMemory::create("test", 4096).unwrap();
    let a = memory.map_all(Access::ReadWrite).unwrap();
    let b = memory.map_all(Access::ReadWrite).unwrap();
    a.set_bits_u64(8, 0b1010).unwrap();
    assert_eq!(b.swap_u64(8, 0).unwrap(), 0b1010);
    assert_eq!(a.read_width(8, 8).unwrap(), 0);
}

#[test]
fn other_memory_comes_under_the_same_addresses() {
    let memory = |value: u8, size| {
        let memory = SharedMemory::create("test", size).unwrap();
        let filled = memory.map_all(Access::ReadWrite).unwrap();
        filled.copy_in(0, &vec![value; filled.length()]).unwrap();
        memory
    };
    let first = memory(1, 0x10000);
    let window = first.map_all(Access::ReadWrite).unwrap();
    let address = window.address();
    let ones = memory(0xff, 0x4000);
    window.replace_with_copies(&ones).unwrap();
    assert_eq!(window.read::<u64>(0xfff8).unwrap(), u64::MAX);
    window.write(0xc000, 0u32).unwrap();
    let untouched = [&ones, &first].map(|memory| memory.map_all(Access::ReadOnly).unwrap());
    assert_eq!(untouched[0].read::<u32>(0).unwrap(), u32::MAX);
    assert_eq!(untouched[1].read::<u32>(0xc000).unwrap(), 0x0101_0101);
    let second = memory(2, 0x14000);
    window.replace(&second, 0x4000).unwrap();
    assert_eq!((window.read::<u8>(0xffff).unwrap(), window.address()), (2, address));
    assert!(matches!(window.replace(&second, 0x8000), Err(WindowError::OutOfRange { .. })));
    assert_eq!(window.read::<u8>(0).unwrap(), 2);
}

proptest! {
    #[test]
    fn copies_are_exact_at_any_offset(offset in 0u64..64, data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let window = window();
        window.copy_in(offset, &data).unwrap();
        let mut back = vec![0; data.len()];
        window.copy_out(offset, &mut back).unwrap();
        prop_assert_eq!(&back, &data);
        if offset > 0 {
            prop_assert_eq!(window.read::<u8>(offset - 1).unwrap(), 0);
        }
        prop_assert_eq!(window.read::<u8>(offset + data.len() as u64).unwrap(), 0);
    }
}
