use super::*;
use crate::bar::BarKind;
use crate::header::Header;
use crate::intx::LineChange;
use crate::message::Message;
use crate::permission::Forward;
use crate::sample;
use proptest::prelude::*;

const BARS: [Option<Bar>; 6] = [
    Some(Bar { size: 0x20000, kind: BarKind::MEMORY_32 }),
    Some(Bar { size: 0x1000, kind: BarKind::MEMORY_32 }),
    Some(Bar { size: 0x10_0000, kind: BarKind::PREFETCHABLE_64 }),
    None,
    Some(Bar { size: 64, kind: BarKind::IO }),
    None,
];

fn of(config: &[u8], options: Options) -> ConfigSpace {
    ConfigSpace::new(&Description { config, bars: BARS, vectors: 32 }, options).unwrap()
}

fn linked() -> ConfigSpace {
    of(&sample::config(), Options::linked())
}

fn read(space: &ConfigSpace, offset: u32) -> u32 {
    let mut data = [0; 4];
    let device = sample::config();
    space
        .read_with(offset, &mut data, |at, data: &mut [u8]| {
            let at = at as usize;
            data.copy_from_slice(&device[at..at + data.len()]);
            Ok::<_, ()>(())
        })
        .unwrap();
    u32::from_le_bytes(data)
}

fn write(space: &mut ConfigSpace, offset: u32, data: &[u8]) -> Effects {
    space.write(offset, data).unwrap()
}

fn forwards(effects: &Effects) -> Vec<(u16, u8, u32)> {
    effects
        .forwards
        .iter()
        .map(|&Forward { offset, width, value }| (offset, width, value))
        .collect()
}

#[test]
fn a_fresh_function_is_off_whatever_the_host_set() {
    let space = linked();
    assert_eq!(read(&space, 0x00), 0x0002_c0d0);
    assert_eq!(read(&space, 0x04), 0x0010_0000);
    assert_eq!(read(&space, 0x0c), 0);
    assert_eq!(read(&space, 0x10) | read(&space, 0x30), 0);
    assert_eq!(read(&space, 0x3c), 0x0100);
    assert_eq!(read(&space, 0x40), 0x0003_4801);
    assert_eq!(read(&space, 0x50), 0x018a_7005);
    assert_eq!(read(&space, 0xb0), 0x001f_c011);
    assert!(!space.windows_visible() && space.mode() == InterruptMode::Intx);
    let multi = of(&sample::config(), Options::linked().with_multi_function(true));
    assert_eq!(read(&multi, 0x0c), 0x0080_0000);
}

#[test]
fn a_bus_that_follows_command_alone_has_every_bar_at_any_time() {
    let mut space = linked();
    space.place_bar(0, 0xe000_0000);
    space.place_bar(2, 0x8_0000_0000);
    let all = |space: &ConfigSpace| [0, 1, 2, 3, 4, 5].map(|number| space.on_bus_at(number));
    assert_eq!(all(&space), [None; 6]);
    write(&mut space, 0x04, &[2, 0]);
    // BAR 1 has no place yet, BAR 3 is the upper half of BAR 2, BAR 4 is an I/O BAR.
    let on = [Some(0xe000_0000), Some(0), Some(0x8_0000_0000), None, None, None];
    assert_eq!(all(&space), on);
    assert_eq!(space.decoded_at(1), None);
    // D3hot, a BAR that is being sized, and a device that is away: nothing moves.
    write(&mut space, 0x44, &[3]);
    assert_eq!((all(&space), space.decoded_at(0)), (on, None));
    write(&mut space, 0x10, &[0xff; 4]);
    assert_eq!(all(&space), on);
    write(&mut space, 0x10, &0xe100_0000u32.to_le_bytes());
    write(&mut space, 0x04, &[3, 0]);
    assert_eq!(all(&space)[0], Some(0xe100_0000));
    assert_eq!(all(&space)[4], Some(0));
    write(&mut space, 0x04, &[0, 0]);
    assert_eq!(all(&space), [None; 6]);
}

#[test]
fn reads_of_any_shape_are_answered() {
    let space = linked();
    let mut long = vec![7; 5000];
    space
        .read_with(0, &mut long, |_, data: &mut [u8]| {
            assert_eq!(data.len(), 4096);
            data.fill(0x55);
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!(
        (long[0], long[4], long[0x0e], long[0x10], long[4095], long[4096]),
        (0x55, 0, 0x55, 0, 0x55, 0)
    );
    let mut past = [7; 4];
    space.read_with(u32::MAX, &mut past, |_, _: &mut [u8]| Err(())).unwrap();
    assert_eq!(past, [0; 4]);
    assert!(!space.needs_device(0x04, 2) && space.needs_device(0x04, 4));
    assert!(
        !space.needs_device(0x10, 24) && !space.needs_device(4096, 4) && !space.needs_device(0, 0)
    );
    assert_eq!(space.read_with(0, &mut past, |_, _: &mut [u8]| Err("gone")), Err("gone"));
}

#[test]
fn windows_follow_mem_and_power() {
    let mut space = linked();
    assert!(write(&mut space, 0x10, &0xfe00_0000u32.to_le_bytes()).bars.contains(0));
    assert_eq!((space.bar_address(0), space.decoded_at(0)), (Some(0xfe00_0000), None));
    let on = write(&mut space, 0x04, &[0x06, 0x00, 0xff, 0xff]);
    assert_eq!(forwards(&on), [(4, 1, 6), (5, 1, 0)]);
    assert_eq!((on.windows, on.command), (Some(true), Some(6)));
    assert_eq!(space.decoded_at(0), Some(0xfe00_0000));
    assert!(write(&mut space, 0x04, &[0x06]).windows.is_none());
    let asleep = write(&mut space, 0x44, &[3, 0, 0, 0]);
    assert_eq!((asleep.windows, asleep.power), (Some(false), Some(PowerState::D3Hot)));
    assert_eq!(forwards(&asleep), [(0x44, 1, 0x0b)]);
    assert_eq!(read(&space, 0x44), 0x0b);
    assert!(write(&mut space, 0x44, &[2, 0]).is_empty());
    let replay: Vec<_> = space.replay().iter().map(|one| (one.offset, one.value)).collect();
    assert_eq!(replay, [(4, 6), (5, 0), (0x44, 0x0b)]);
    let awake = write(&mut space, 0x44, &[0, 0]);
    assert_eq!((awake.windows, awake.reset), (Some(true), None));
    assert_eq!(write(&mut space, 0x04, &[0x04]).windows, Some(false));
}

#[test]
fn waking_up_without_the_state_is_a_reset() {
    let mut config = sample::config();
    config[0x44] = 0;
    let mut space = of(&config, Options::linked());
    write(&mut space, 0x04, &[0x06]);
    let asleep = write(&mut space, 0x44, &[3]);
    assert_eq!((asleep.windows, asleep.forwards.len()), (Some(false), 0));
    let awake = write(&mut space, 0x44, &[0]);
    assert_eq!((awake.reset, awake.windows), (Some(ResetCause::PowerUp), None));
    assert_eq!(space.command(), 0);
}

#[test]
fn function_level_resets_are_ours() {
    for (offset, data) in [(0x78, &[0x10, 0x80][..]), (0x4c, &[1])] {
        let mut space = linked();
        write(&mut space, 0x10, &0xfe00_0000u32.to_le_bytes());
        write(&mut space, 0x04, &[0x07]);
        write(&mut space, 0xb2, &[0x00, 0x80]);
        write(&mut space, 0x3c, &[0x2a]);
        let effects = write(&mut space, offset, data);
        assert_eq!(effects.reset, Some(ResetCause::FunctionLevel));
        assert!(effects.forwards.iter().all(|one| one.value & 0x8000 == 0));
        assert_eq!((effects.windows, effects.command), (Some(false), Some(0)));
        assert_eq!(effects.interrupts.mode, Some(InterruptMode::Intx));
        assert_eq!((space.bar_address(0), read(&space, 0x10)), (None, 0));
        assert_eq!(read(&space, 0xb0) >> 16, 0x1f);
    }
}

#[test]
fn kept_bits_are_read_back_and_go_nowhere() {
    let mut space = linked();
    let effects = write(&mut space, 0x78, &[0xef, 0x03]);
    assert_eq!(forwards(&effects), [(0x78, 2, 0)]);
    assert_eq!(space.layout().forwarded_bits(0x78), 0x10);
    let mut data = [0; 2];
    space.overlay(0x78, &mut data);
    assert_eq!(data, [0xef, 0x03]);
    let _ = space.reset();
    space.overlay(0x78, &mut data);
    assert_eq!(data, [0, 0]);
}

#[test]
fn long_writes_go_dword_by_dword() {
    let mut space = linked();
    assert_eq!(space.write(0, &[0; 9]), Err(ConfigError::Length(9)));
    let mut all = Vec::new();
    let data = [0u8; 4096];
    space
        .write_with(0, &data, |_, effects| {
            all.extend(forwards(effects));
            Ok::<_, ()>(())
        })
        .unwrap();
    assert!(all.contains(&(0x04, 1, 0)) && all.contains(&(0xe0, 4, 0)));
    assert!(all.iter().all(|(at, ..)| !(0x10..0x28).contains(at)));
    space.write_with(0x0e, &[0, 0, 0, 0, 0x22, 0xbb], |_, _| Ok::<_, ()>(())).unwrap();
    assert_eq!(read(&space, 0x10), 0xbb22_0000);
    let mut calls = 0;
    let failed = space.write_with(0xe0, &[1; 12], |_, _| {
        calls += 1;
        if calls == 2 { Err("io") } else { Ok(()) }
    });
    assert_eq!((failed, calls), (Err("io"), 2));
}

#[test]
fn msix_is_the_guests_own() {
    let mut space = linked();
    assert!(space.owns_bar_access(0, 0x8000, 4) && !space.owns_bar_access(1, 0x8000, 4));
    assert!(space.write_bar(0, 0x4000, &[0; 4]).is_none());
    let set = |space: &mut ConfigSpace, vector: u64, words: [u32; 4]| {
        let words = (0..).zip(words);
        let each = words.map(|(number, word)| {
            space.write_bar(0, 0x8000 + vector * 16 + number * 4, &word.to_le_bytes()).unwrap()
        });
        each.last().unwrap()
    };
    // Entries change while MSI-X is off, without any effect.
    assert!(set(&mut space, 0, [0xfee0_0000, 0, 0x51, 0]).is_empty());
    assert!(set(&mut space, 1, [0xfee0_0000, 0, 0x52, 1]).is_empty());
    let on = write(&mut space, 0xb2, &[0x1f, 0x80]);
    assert!(on.forwards.is_empty());
    assert_eq!(on.interrupts.mode, Some(InterruptMode::Msix));
    assert_eq!(on.interrupts.vectors, Some((0, 32)));
    assert_eq!(read(&space, 0xb0), 0x801f_c011);
    let in_use: Vec<_> = (0..space.vectors()).filter(|v| space.vector(*v).in_use).collect();
    assert_eq!(in_use, [0, 1]);
    let message = Message { address: 0xfee0_0000, data: 0x51 };
    assert_eq!(space.signal(0), Some(Delivery::Message(message)));
    assert_eq!((space.signal(1), space.next_message()), (None, None));
    let mut bits = [0; 8];
    assert!(space.read_bar(0, 0xc000, &mut bits));
    assert_eq!(bits[0], 2);
    let unmask = set(&mut space, 1, [0xfee0_0000, 0, 0x52, 0]);
    assert_eq!((unmask.interrupts.vectors, unmask.interrupts.deliver), (Some((1, 1)), true));
    assert_eq!(space.next_message(), Some((1, Message { data: 0x52, ..message })));
    assert_eq!(space.next_message(), None);
    // Dwords that straddle the start of the table.
    let mut data = [9; 8];
    assert!(space.read_bar(0, 0x7ffc, &mut data));
    assert_eq!(data, [0, 0, 0, 0, 0, 0, 0xe0, 0xfe]);
    assert!(space.write_bar(0, 0x7ffc, &[1; 8]).is_some_and(|effects| effects.is_empty()));
}

#[test]
fn msi_is_the_guests_own() {
    let mut space = linked();
    write(&mut space, 0x54, &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
    write(&mut space, 0x5c, &[0x40, 0]);
    let on = write(&mut space, 0x52, &[0x21, 0]);
    assert_eq!(on.interrupts.mode, Some(InterruptMode::Msi));
    assert!(on.forwards.is_empty() && space.vectors() == 4);
    let message = Message { address: 0x1_fee0_0000, data: 0x43 };
    assert_eq!(space.signal(3), Some(Delivery::Message(message)));
    write(&mut space, 0x60, &[0x08]);
    assert_eq!((space.signal(3), read(&space, 0x64)), (None, 0x08));
    assert!(write(&mut space, 0x60, &[0]).interrupts.deliver);
    assert_eq!(space.next_message(), Some((3, message)));
    assert_eq!(read(&space, 0x64), 0);
    // A write that begins in front of the capability.
    assert_eq!(
        write(&mut space, 0x4e, &[0, 0, 0, 0, 0, 0]).interrupts.mode,
        Some(InterruptMode::Intx)
    );
}

#[test]
fn intx_follows_command_and_shows_in_status() {
    let mut space = linked();
    space.wire_interrupt(11, 2);
    assert_eq!(read(&space, 0x3c), 0x020b);
    assert_eq!(space.signal(7), Some(Delivery::Line(LineChange::Assert)));
    assert_eq!(read(&space, 0x04) >> 16, 0x18);
    assert_eq!(space.signal(0), None);
    let off = write(&mut space, 0x04, &[0x00, 0x04]);
    assert_eq!(off.interrupts.line, Some(LineChange::Deassert));
    assert_eq!(write(&mut space, 0x05, &[0]).interrupts.line, Some(LineChange::Assert));
    assert_eq!(space.end_of_interrupt(), Some(LineChange::Deassert));
    space.signal(0);
    let msix = write(&mut space, 0xb3, &[0x80]);
    assert_eq!(msix.interrupts.line, Some(LineChange::Deassert));
    assert_eq!(read(&space, 0x04) >> 16, 0x10);
    space.wire_interrupt(0, 0);
    write(&mut space, 0xb3, &[0]);
    assert_eq!((space.mode(), space.signal(0)), (InterruptMode::Off, None));
}

#[test]
fn a_client_with_emulation_of_its_own_reads_back_what_it_wrote() {
    let mut space = of(&sample::config(), Options::vfio_user());
    for (offset, data) in [(0xb2, &[0x1f, 0xc0][..]), (0x52, &[1, 0]), (0x54, &[4, 3, 2, 1])] {
        assert!(write(&mut space, offset, data).is_empty(), "{offset:#x}");
    }
    assert_eq!((read(&space, 0xb0) >> 16, read(&space, 0x54)), (0xc01f, 0x0102_0304));
    assert!(space.write_bar(0, 0x800c, &[0; 4]).is_some_and(|effects| effects.is_empty()));
    assert_eq!(write(&mut space, 0x79, &[0x80]).reset, Some(ResetCause::FunctionLevel));
}

#[test]
fn a_device_that_is_gone_reads_all_ones_and_comes_back_reset() {
    let mut space = linked();
    write(&mut space, 0x04, &[0x06]);
    space.signal(0);
    let gone = space.set_present(false);
    assert_eq!((gone.windows, gone.interrupts.line), (Some(false), Some(LineChange::Deassert)));
    assert_eq!(gone.interrupts.mode, Some(InterruptMode::Off));
    assert!(!space.needs_device(0, 4));
    assert_eq!(read(&space, 0x10), u32::MAX);
    assert!(write(&mut space, 0x04, &[0x06]).is_empty() && space.set_present(false).is_empty());
    let mut data = [0; 4];
    assert!(space.read_bar(0, 0x8000, &mut data) && data == [0xff; 4]);
    let back = space.set_present(true);
    assert_eq!((back.windows, space.command()), (None, 0));
    assert_eq!(back.interrupts.mode, Some(InterruptMode::Intx));
}

#[test]
fn a_device_that_exists_only_here_asks_nobody() {
    let header = Header { vendor: 0x1b36, device: 0x15, class: 0x08_80_00, ..Default::default() };
    let config = header.to_bytes();
    let mut bars = [None; 6];
    bars[0] = Some(Bar { size: 4096, kind: BarKind::MEMORY_32 });
    let described = Description { config: &config, bars, vectors: 0 };
    let mut space = ConfigSpace::new(&described, Options::synthetic()).unwrap();
    assert!(!space.needs_device(0, 4096));
    let mut data = [0x77; 64];
    space.overlay(0, &mut data);
    assert_eq!(data, config);
    let effects = write(&mut space, 0x04, &[0xff, 0xff]);
    assert_eq!(
        (effects.forwards.len(), effects.command, effects.windows),
        (0, Some(6), Some(true))
    );
    assert!(write(&mut space, 0xe0, &[1, 2, 3, 4]).is_empty() && space.replay().is_empty());
}

#[test]
fn what_is_no_type_0_function_is_refused() {
    let error = |config: &[u8]| {
        let described = Description { config, bars: BARS, vectors: 1 };
        ConfigSpace::new(&described, Options::linked()).unwrap_err()
    };
    assert_eq!(error(&[0; 63]), ConfigError::Short(63));
    assert_eq!(error(&[0xff; 4096]), ConfigError::Absent);
    let mut bridge = sample::config();
    bridge[0x0e] = 0x81;
    assert_eq!(error(&bridge), ConfigError::HeaderType(1));
}

#[path = "property_tests.rs"]
mod properties;
