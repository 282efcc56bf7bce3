//! Config space: reads (P5) and what of a write reaches the device (P6).

use cordon_backend::{BackendError, ErrorKind, OpenFunction, ServedFunction};
use cordon_pci::permission::{Forward, Layout};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::CONFIG_SPACE;

use crate::{failure, start};

/// A request is never longer than config space.
pub(super) fn check_length(length: usize) -> Result<(), Failure> {
    if (1..=CONFIG_SPACE).contains(&length) {
        Ok(())
    } else {
        Err(start::invalid(format!("Config access of {length} bytes: 1 to {CONFIG_SPACE} allowed")))
    }
}

/// An access of no width that there is.
pub(super) fn no_width(width: usize) -> Failure {
    start::invalid(format!("Config access of {width} bytes: 1 to 8 allowed"))
}

/// Bytes of `offset..offset + length` that lie in config space (P5.1, P6.3).
fn clamp(offset: u32, length: usize) -> usize {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    CONFIG_SPACE.saturating_sub(offset).min(length)
}

/// Reads `into.len()` bytes from `offset`. Bytes past the end read as zero (P5.1); a clamped width of
/// 1, 2 or 4 is one read of the backend's (P5.2); anything else is read in dwords, then bytes (P5.3).
///
/// # Errors
/// [`BackendError`] (P5.4).
pub fn read(
    function: &mut dyn OpenFunction,
    offset: u32,
    into: &mut [u8],
) -> Result<(), BackendError> {
    let (inside, past) = into.split_at_mut(clamp(offset, into.len()));
    past.fill(0);
    let mut at = offset;
    let mut rest = inside;
    while !rest.is_empty() {
        let width = match rest.len() {
            1 => 1,
            2 if at == offset => 2,
            4.. => 4,
            _ => 1,
        };
        let value = function.config_read(at, width)?.to_le_bytes();
        let (now, later) = rest.split_at_mut(width.into());
        now.copy_from_slice(&value[..now.len()]);
        at += u32::from(width);
        rest = later;
    }
    Ok(())
}

/// Writes `data` at `offset`, as far as the permission table lets a guest (P6.4): whoever sends it,
/// and whatever it kept back itself, no other bit reaches the device. A function-level reset is the
/// backend's, which restores what the host programmed (P8).
pub(super) fn write(
    function: &mut dyn ServedFunction,
    permissions: &Layout,
    offset: u32,
    data: &[u8],
) -> Result<(), Failure> {
    let data = &data[..clamp(offset, data.len())];
    match data.len() {
        0 => return Ok(()),
        1 | 2 | 4 => {}
        other => {
            let message = format!(
                "Function {}: config write of {other} bytes at {offset:#x}: 1, 2 or 4 allowed",
                function.address()
            );
            return Err(start::invalid(message));
        }
    }
    for Forward { offset, width, value } in permissions.split(offset, data).iter().copied() {
        let written = function.config_write(offset.into(), width, value);
        written.map_err(|error| failure(&error))?;
    }
    if permissions.asks_for_reset(offset, data) { reset(function) } else { Ok(()) }
}

/// P8: reset by the backend; a failure is an I/O error, unless the device is gone.
pub(super) fn reset(function: &mut dyn ServedFunction) -> Result<(), Failure> {
    let identity = function.identity();
    crate::reset::reset(function, &identity).map_err(|error| {
        let failure = failure(&error);
        let kind = match failure.kind {
            FailureKind::Busy | FailureKind::NoSpace => FailureKind::Io,
            FailureKind::NoDevice if error.kind == ErrorKind::Invalid => FailureKind::Io,
            kind => kind,
        };
        Failure { kind, ..failure }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dext_client::Client;
    use dext_client::fake::{Call, Fake};
    use ipc::wire::dext::IoReturn;
    use proptest::prelude::*;

    fn read(client: &mut Client, offset: u32, length: usize) -> Result<Vec<u8>, BackendError> {
        let mut bytes = vec![0xa5; length];
        super::read(client, offset, &mut bytes).map(|()| bytes)
    }

    fn reads(calls: &[Call]) -> Vec<(u64, u64)> {
        calls.iter().filter(|c| c.selector == 8).map(|c| (c.inputs[0], c.inputs[1])).collect()
    }

    fn writes(calls: &[Call]) -> Vec<(u64, u64, u64)> {
        let writes = calls.iter().filter(|call| call.selector == 9);
        writes.map(|call| (call.inputs[0], call.inputs[1], call.inputs[2])).collect()
    }

    #[test]
    fn p5_1_bytes_past_the_end_read_as_zero() {
        let (fake, mut client) = Fake::client();
        assert_eq!(read(&mut client, 4094, 4).unwrap()[2..], [0, 0]);
        assert_eq!(reads(&fake.calls()), [(4094, 2)]);
        assert_eq!(read(&mut client, 4096, 4).unwrap(), [0; 4]);
        assert_eq!(read(&mut client, u32::MAX, 2).unwrap(), [0; 2]);
        assert_eq!(reads(&fake.calls()).len(), 1);
    }

    #[test]
    fn p5_2_widths_1_2_4_are_one_read() {
        for width in [1, 2, 4] {
            let (fake, mut client) = Fake::client();
            let bytes = read(&mut client, 0x40, width).unwrap();
            assert_eq!(reads(&fake.calls()), [(0x40, width as u64)]);
            assert_eq!(bytes, Fake::config_bytes(0x40, width));
        }
    }

    #[test]
    fn p5_3_other_lengths_are_dwords_then_bytes() {
        let (fake, mut client) = Fake::client();
        let bytes = read(&mut client, 0x40, 11).unwrap();
        let expected = [(0x40, 4), (0x44, 4), (0x48, 1), (0x49, 1), (0x4a, 1)];
        assert_eq!(reads(&fake.calls()), expected);
        assert_eq!(bytes, Fake::config_bytes(0x40, 11));
        let (fake, mut client) = Fake::client();
        read(&mut client, 0, 6).unwrap();
        assert_eq!(reads(&fake.calls()), [(0, 4), (4, 1), (5, 1)]);
    }

    #[test]
    fn p5_4_a_failing_dext_is_an_io_error_and_a_lost_one_is_no_device() {
        let (fake, mut client) = Fake::client();
        fake.fail(8, IoReturn::NOT_OPEN);
        let error = read(&mut client, 0, 4).unwrap_err();
        assert_eq!(failure(&error).kind, FailureKind::Io);
        assert!(error.to_string().contains("01:00.0"), "{error}");
        assert!(error.to_string().contains("0xe00002cd"), "{error}");
        fake.die();
        let error = read(&mut client, 0, 4).unwrap_err();
        assert_eq!(failure(&error).kind, FailureKind::Lost);
    }

    /// MSI at 0x50, PCI Express with function-level reset at 0x70 (read requests of 512 bytes), MSI-X
    /// at 0xb0; a serial number at 0x100.
    fn permissions() -> Layout {
        let mut config = vec![0; CONFIG_SPACE];
        for (at, bytes) in [
            (0x06, &[0x10][..]),
            (0x34, &[0x50]),
            (0x50, &[0x05, 0x70, 0x8a, 0x00]),
            (0x70, &[0x10, 0xb0, 0x02, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x20]),
            (0xb0, &[0x11, 0x00, 0x1f, 0x80]),
            (0x100, &[0x03, 0x00, 0x01, 0x00]),
        ] {
            config[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Layout::new(&config)
    }

    fn write(client: &mut Client, offset: u32, data: &[u8]) -> Result<(), Failure> {
        super::write(client, &permissions(), offset, data)
    }

    fn resets(fake: &Fake) -> usize {
        fake.calls_of(17).len()
    }

    #[test]
    fn p6_1_command_is_forwarded_byte_by_byte() {
        let (fake, mut client) = Fake::client();
        write(&mut client, 4, &[0x06, 0x04]).unwrap();
        write(&mut client, 5, &[0x01]).unwrap();
        assert_eq!(writes(&fake.calls()), [(4, 1, 6), (5, 1, 4), (5, 1, 1)]);
    }

    #[test]
    fn p6_2_status_and_bars_are_dropped_and_succeed() {
        let (fake, mut client) = Fake::client();
        write(&mut client, 6, &[0xff, 0xff]).unwrap();
        for offset in (0x10..0x28).step_by(4) {
            write(&mut client, offset, &[0xff; 4]).unwrap();
        }
        write(&mut client, 0x0e, &[1, 2, 3, 4]).unwrap();
        write(&mut client, 0x27, &[1]).unwrap();
        assert_eq!(writes(&fake.calls()), []);
        write(&mut client, 4, &[0x07, 0x00, 0xff, 0xff]).unwrap();
        assert_eq!(writes(&fake.calls()), [(4, 1, 7), (5, 1, 0)]);
        write(&mut client, 3, &[9, 8]).unwrap();
        assert_eq!(writes(&fake.calls())[2..], [(4, 1, 8)]);
    }

    #[test]
    fn p6_3_what_no_capability_covers_is_forwarded_after_clamping() {
        let (fake, mut client) = Fake::client();
        write(&mut client, 0x0c, &[0x10]).unwrap();
        write(&mut client, 0x44, &[1, 2]).unwrap();
        write(&mut client, 0xe0, &[1, 2, 3, 4]).unwrap();
        write(&mut client, 0xe1, &[5, 6]).unwrap();
        write(&mut client, 4094, &[1, 2, 3, 4]).unwrap();
        write(&mut client, 9999, &[1]).unwrap();
        let expected = [
            (0x0c, 1, 0x10),
            (0x44, 2, 0x0201),
            (0xe0, 4, 0x0403_0201),
            (0xe1, 1, 5),
            (0xe2, 1, 6),
        ];
        assert_eq!(writes(&fake.calls()), expected);
        for length in [3, 5, 8] {
            let refused = write(&mut client, 0x50, &vec![0; length]).unwrap_err();
            assert_eq!(refused.kind, FailureKind::InvalidArgument);
        }
        assert_eq!(writes(&fake.calls()).len(), expected.len());
    }

    #[test]
    fn p6_4_what_the_host_keeps_does_not_reach_the_device_whoever_sends_it() {
        let (fake, mut client) = Fake::client();
        for offset in [0x00, 0x0e, 0x30, 0x3c, 0x50, 0x54, 0x58, 0x5c, 0xb0, 0xb4, 0x100, 0x104] {
            write(&mut client, offset, &[0xff; 4]).unwrap();
        }
        // MSI and MSI-X: messages are the host's (P9).
        write(&mut client, 0x52, &[0xff]).unwrap();
        write(&mut client, 0xb3, &[0x80]).unwrap();
        let last = writes(&fake.calls());
        assert_eq!(last, [(0x5e, 2, 0xffff)], "what follows MSI's 14 bytes is the device's own");
        // Of DevCtl what concerns the device alone, and read requests as large as the host's.
        write(&mut client, 0x78, &[0xff, 0x7f]).unwrap();
        assert_eq!(writes(&fake.calls())[1..], [(0x78, 2, 0x2810)]);
        assert_eq!(resets(&fake), 0);
    }

    #[test]
    fn p6_4_a_function_level_reset_is_the_backends() {
        let (fake, mut client) = Fake::client();
        write(&mut client, 0x79, &[0x80]).unwrap();
        assert_eq!((writes(&fake.calls()), resets(&fake)), (vec![(0x79, 1, 0)], 1));
        write(&mut client, 0x78, &[0, 0x80, 0, 0]).unwrap();
        assert_eq!(resets(&fake), 2);
        write(&mut client, 0x78, &[0x80, 0x7f]).unwrap();
        assert_eq!(resets(&fake), 2);
        fake.fail(17, IoReturn::NOT_OPEN);
        assert_eq!(write(&mut client, 0x79, &[0x80]).unwrap_err().kind, FailureKind::Io);
    }

    proptest! {
        #[test]
        fn no_write_ever_reaches_status_a_bar_or_a_message(
            offset in 0u32..0x110, data in proptest::collection::vec(any::<u8>(), 1..9)
        ) {
            let (fake, mut client) = Fake::client();
            let _ = write(&mut client, offset, &data);
            for (at, width, _) in writes(&fake.calls()) {
                let end = at + width;
                for range in [0x00..0x04u64, 0x06..0x0c, 0x0e..0x40, 0x50..0x5e, 0xb0..0xbc, 0x100..0x1000] {
                    prop_assert!(end <= range.start || at >= range.end, "{at:#x}..{end:#x}");
                }
            }
        }
    }
}
