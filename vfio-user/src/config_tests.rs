use super::*;
use crate::fake::{Call, Fake};
use Call::{BarRead, BarWrite, ConfigWrite, Reset};
use cordon_vmm::BarInfo;

const COMMAND: u32 = 0x04;
const BAR0: u32 = 0x10;
/// DevCtl of PCI Express, and its bit that starts a function-level reset.
const DEVICE_CONTROL: u32 = 0x78;
const RESET: [u8; 2] = [0, 0x80];
/// A device that is as its host wants it: COMMAND and MSI-X on.
const COMMAND_RESTORED: [Call; 2] = [ConfigWrite(4, 1, 0), ConfigWrite(5, 1, 0)];

/// MSI at 0x50, PCI Express with function-level reset at 0x70, MSI-X at 0xb0: 32 vectors, table at
/// 0x8000 and pending bits at 0xc000 of BAR 0.
fn config_space() -> Vec<u8> {
    let mut config = vec![0; 4096];
    for (at, bytes) in [
        (0x00, &[0xd0, 0xc0, 0x02, 0x00, 0x46, 0x01, 0x18, 0x00][..]),
        (0x0e, &[0x80]),
        (0x34, &[0x50]),
        (0x3c, &[0x2a, 0x01]),
        (0x50, &[0x05, 0x70, 0x8b, 0x00, 0x00, 0xf0, 0xe0, 0xfe, 0, 0, 0, 0, 0x42, 0x41]),
        (0x70, &[0x10, 0xb0, 0x02, 0x00, 0x02, 0x00, 0x00, 0x10]),
        (0xb0, &[0x11, 0x00, 0x1f, 0x80, 0x00, 0x80, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00]),
    ] {
        config[at..at + bytes.len()].copy_from_slice(bytes);
    }
    config
}

fn bars() -> [Option<BarInfo>; 6] {
    let mut bars = [None; 6];
    bars[0] = Some(BarInfo { memory_index: 0, size: 0x2_0000, kind: 0 });
    bars
}

/// A device, and a client that has looked.
fn looked() -> (Fake, Config) {
    let (fake, mut config) = (Fake::new(config_space(), bars()), Config::default());
    read(&mut config, &fake, 0, 4);
    fake.calls();
    (fake, config)
}

fn read(config: &mut Config, fake: &Fake, offset: u32, length: usize) -> Vec<u8> {
    let mut data = vec![0xa5; length];
    config.read(fake, offset, &mut data).unwrap();
    data
}

fn sized(config: &mut Config, fake: &Fake, bar: u32) -> u32 {
    config.write(fake, BAR0 + 4 * bar, &[0xff; 4]).unwrap();
    u32::from_le_bytes(read(config, fake, BAR0 + 4 * bar, 4).try_into().unwrap())
}

#[test]
fn what_the_host_set_up_does_not_show_and_what_the_device_is_does() {
    let (fake, mut config) = looked();
    let seen = read(&mut config, &fake, 0, 0x100);
    assert_eq!(seen[..4], [0xd0, 0xc0, 0x02, 0x00]);
    // COMMAND, the interrupt status, the slot's other functions, the host's interrupt line.
    assert_eq!((&seen[4..8], seen[0x0e]), (&[0, 0, 0x10, 0][..], 0));
    assert_eq!(seen[0x3c..0x3e], [0, 1]);
    // MSI is offered with the vectors that the host registered; nothing of it is set up.
    assert_eq!(seen[0x50..0x5e], [0x05, 0x70, 0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(seen[0xb0..0xbc], [0x11, 0, 0x1f, 0, 0, 0x80, 0, 0, 0, 0xc0, 0, 0]);
    // What is the client's alone is not asked of the device.
    let before = fake.config_reads();
    assert_eq!(read(&mut config, &fake, BAR0, 8), [0; 8]);
    assert_eq!(fake.config_reads(), before);
}

#[test]
fn the_model_is_made_once_and_the_device_brought_to_it() {
    let (fake, mut config) = (Fake::new(config_space(), bars()), Config::default());
    assert_eq!(read(&mut config, &fake, COMMAND, 2), [0, 0]);
    assert_eq!(fake.calls(), COMMAND_RESTORED);
    read(&mut config, &fake, 0, 4096);
    assert_eq!(fake.calls(), []);
}

#[test]
fn sizes_that_no_register_can_show_are_no_trouble() {
    let mut bars = [None; 6];
    let bar = |size, kind| Some(BarInfo { memory_index: 0, size, kind });
    for absurd in [(1 << 63) + 1, u64::MAX] {
        bars[0] = bar(absurd, BarInfo::WIDTH_64);
        bars[2] = bar(absurd, 0);
        bars[3] = bar(3, 0);
        bars[4] = bar(0, 0);
        bars[5] = bar(1 << 63, BarInfo::WIDTH_64);
        let (fake, mut config) = (Fake::new(config_space(), bars), Config::default());
        let shown: Vec<u32> = (0..6).map(|bar| sized(&mut config, &fake, bar)).collect();
        assert_eq!(shown, [0, 0, 0, 0xffff_fff0, 0, 0], "{absurd:#x}");
        // And there is nothing to find in them.
        config.write_bar(&fake, 0, u64::MAX - 7, &[0; 8]).unwrap();
        config.read_bar(&fake, 0, u64::MAX - 7, &mut [0; 8]).unwrap();
    }
}

#[test]
fn p6_4_writes_reach_the_device_in_order_as_far_as_a_guest_may() {
    let (fake, mut config) = looked();
    config.write(&fake, COMMAND, &[0x06, 0x04, 0xff, 0xff]).unwrap();
    assert_eq!(fake.calls(), [ConfigWrite(4, 1, 6), ConfigWrite(5, 1, 4)]);
    assert_eq!(read(&mut config, &fake, COMMAND, 4), [6, 4, 0x10, 0]);
    assert!(config.intx_disabled());
    // BARs, the ROM, messages and identity never do.
    config.write(&fake, 0x00, &[0xff; 4]).unwrap();
    config.write(&fake, 0x10, &[0xff; 44]).unwrap();
    config.write(&fake, 0x52, &[0xff; 12]).unwrap();
    config.write(&fake, 0xb2, &[0xff; 2]).unwrap();
    assert_eq!(fake.calls(), []);
    assert_eq!(read(&mut config, &fake, 0xb2, 2), [0x1f, 0xc0]);
    // Registers that belong to no capability are the driver's.
    config.write(&fake, 0x40, &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(fake.calls(), [ConfigWrite(0x40, 4, 0x0403_0201), ConfigWrite(0x44, 1, 5)]);
}

#[test]
fn a_reset_by_config_space_is_the_hosts_and_the_device_is_as_after_one() {
    let (fake, mut config) = looked();
    config.write(&fake, COMMAND, &[0x06, 0x04]).unwrap();
    config.write(&fake, BAR0, &0xfe00_0000u32.to_le_bytes()).unwrap();
    config.write(&fake, 0xb2, &[0x1f, 0x80]).unwrap();
    fake.calls();
    config.write(&fake, DEVICE_CONTROL, &RESET).unwrap();
    // The bit itself is sent as 0.
    let expected = [&[ConfigWrite(0x78, 2, 0), Reset][..], &COMMAND_RESTORED].concat();
    assert_eq!(fake.calls(), expected);
    assert_eq!(read(&mut config, &fake, COMMAND, 2), [0, 0]);
    assert_eq!(read(&mut config, &fake, BAR0, 4), [0; 4]);
    assert_eq!(read(&mut config, &fake, 0xb2, 2), [0x1f, 0]);
    assert!(!config.intx_disabled());
}

#[test]
fn a_reset_that_fails_is_an_error_and_bus_mastering_is_off_all_the_same() {
    let (fake, mut config) = looked();
    for (kind, is_error) in [(ErrorKind::Io, true), (ErrorKind::TimedOut, false)] {
        config.write(&fake, COMMAND, &[0x06]).unwrap();
        fake.calls();
        fake.next_reset_fails(kind);
        let written = config.write(&fake, DEVICE_CONTROL, &RESET);
        assert_eq!(written.is_err_and(|error| error.kind() == kind), is_error);
        assert_eq!(fake.calls()[1..], [&[Reset][..], &COMMAND_RESTORED].concat());
        assert_eq!(read(&mut config, &fake, COMMAND, 2), [0, 0]);
    }
}

#[test]
fn a_reset_by_command_forgets_what_the_client_wrote() {
    let (fake, mut config) = looked();
    config.write(&fake, COMMAND, &[0x06]).unwrap();
    config.write(&fake, BAR0, &0xfe00_0000u32.to_le_bytes()).unwrap();
    fake.calls();
    config.reset(&fake).unwrap();
    assert_eq!(fake.calls(), COMMAND_RESTORED);
    assert_eq!(read(&mut config, &fake, COMMAND, 2), [0, 0]);
    assert_eq!(read(&mut config, &fake, BAR0, 4), [0; 4]);
    // Before anybody looked there is nothing to forget.
    config = Config::default();
    config.reset(&fake).unwrap();
    assert_eq!(fake.calls(), []);
}

#[test]
fn p7_3_msix_table_and_pending_bits_are_the_clients_and_the_rest_is_the_device() {
    let (fake, mut config) = looked();
    let at = |config: &mut Config, offset: u64, length: usize| {
        let mut data = vec![0xa5; length];
        config.read_bar(&fake, 0, offset, &mut data).unwrap();
        data
    };
    assert_eq!(at(&mut config, 0x800c, 4), [1, 0, 0, 0], "masked as after a reset");
    config.write_bar(&fake, 0, 0x8010, &0xfee0_1000u64.to_le_bytes()).unwrap();
    config.write_bar(&fake, 0, 0x801c, &[0; 4]).unwrap();
    assert_eq!(at(&mut config, 0x8010, 8), 0xfee0_1000u64.to_le_bytes());
    assert_eq!(at(&mut config, 0x801c, 4), [0; 4]);
    config.write_bar(&fake, 0, 0xc000, &[0xff; 8]).unwrap();
    assert_eq!(at(&mut config, 0xc000, 8), [0; 8]);
    assert_eq!(fake.calls(), []);
    // Next to them, and in another BAR.
    assert_eq!(at(&mut config, 0x8200, 4), b"ofde");
    config.write_bar(&fake, 0, 0x7ffc, &[1, 0, 0, 0]).unwrap();
    config.write_bar(&fake, 1, 0x8000, &[2]).unwrap();
    let expected = [BarRead(0, 0x8200, 4), BarWrite(0, 0x7ffc, 4, 1), BarWrite(1, 0x8000, 1, 2)];
    assert_eq!(fake.calls(), expected);
}

#[test]
fn a_device_that_is_gone_reads_all_ones_also_where_the_model_would_answer() {
    let (fake, mut config) = looked();
    config.write(&fake, COMMAND, &[0x06, 0x04]).unwrap();
    config.write(&fake, BAR0, &0xfe00_0000u32.to_le_bytes()).unwrap();
    config.write_bar(&fake, 0, 0x8000, &[1, 2, 3, 4]).unwrap();
    fake.calls();
    fake.goes_away();
    for (offset, length) in [(0, 4), (BAR0, 4), (COMMAND, 2), (0, 4096)] {
        assert_eq!(read(&mut config, &fake, offset, length), vec![0xff; length], "{offset:#x}");
    }
    let mut table = [0; 4];
    config.read_bar(&fake, 0, 0x8000, &mut table).unwrap();
    assert_eq!(table, [0xff; 4]);
    config.write(&fake, BAR0, &0xfd00_0000u32.to_le_bytes()).unwrap();
    config.write_bar(&fake, 0, 0x8000, &[9; 4]).unwrap();
    assert_eq!(fake.calls(), []);
    // Claimed and reset meanwhile, perhaps set up otherwise by the host.
    fake.set_config(0x78, &[0x20, 0]);
    fake.comes_back();
    assert_eq!(read(&mut config, &fake, BAR0, 4), [0; 4]);
    assert_eq!(fake.calls(), COMMAND_RESTORED);
    assert!(!config.intx_disabled());
    config.read_bar(&fake, 0, 0x8000, &mut table).unwrap();
    assert_eq!(table, [0; 4]);
    config.write(&fake, DEVICE_CONTROL, &[0, 0x08]).unwrap();
    assert_eq!(fake.calls(), [ConfigWrite(0x78, 2, 0x0820)]);
}

#[test]
fn a_return_that_nobody_noticed_is_one_all_the_same() {
    let (fake, mut config) = looked();
    config.write(&fake, COMMAND, &[0x06]).unwrap();
    fake.calls();
    fake.goes_away();
    fake.comes_back();
    let mut byte = [0];
    config.read_bar(&fake, 0, 0, &mut byte).unwrap();
    assert_eq!(fake.calls(), [&COMMAND_RESTORED[..], &[BarRead(0, 0, 1)]].concat());
    assert_eq!(read(&mut config, &fake, COMMAND, 2), [0, 0]);
}

#[test]
fn a_device_that_cannot_be_brought_to_its_model_is_not_there_yet() {
    let (fake, mut config) = (Fake::new(config_space(), bars()), Config::default());
    fake.next_config_write_fails(ErrorKind::NoDevice);
    assert_eq!(read(&mut config, &fake, 0, 4), [0xff; 4]);
    fake.next_config_write_fails(ErrorKind::Io);
    assert_eq!(config.read(&fake, 0, &mut [0; 4]).unwrap_err().kind(), ErrorKind::Io);
    fake.calls();
    assert_eq!(read(&mut config, &fake, 0, 4), [0xd0, 0xc0, 0x02, 0x00]);
    assert_eq!(fake.calls(), COMMAND_RESTORED);
}

#[test]
fn what_is_no_endpoint_is_refused_by_name() {
    let fake = Fake::new(config_space(), bars());
    fake.set_config(0x0e, &[0x01]);
    let mut config = Config::default();
    let error = config.read(&fake, 0, &mut [0; 4]).unwrap_err();
    let said = "fake: Header type 0x1: only type 0 can be passed through";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotSupported, said));
    // All ones are nobody.
    fake.set_config(0, &[0xff; 64]);
    assert_eq!(read(&mut config, &fake, 0, 4), [0xff; 4]);
}
