//! Config space: reads (P5) and what of a write is forwarded (P6).

use cordon_backend::{BackendError, OpenFunction, ServedFunction};
use ipc::wire::common::Failure;
use ipc::wire::function::CONFIG_SPACE;

use crate::{failure, start};

const COMMAND: std::ops::Range<u32> = 0x04..0x06;
const STATUS: std::ops::Range<u32> = 0x06..0x08;
const BARS: std::ops::Range<u32> = 0x10..0x28;

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

/// Writes `data` at `offset`, as far as the guest may.
pub(super) fn write(
    function: &mut dyn ServedFunction,
    offset: u32,
    data: &[u8],
) -> Result<(), Failure> {
    let data = &data[..clamp(offset, data.len())];
    let end = offset + u32::try_from(data.len()).unwrap_or(0);
    let touches = |range: &std::ops::Range<u32>| offset < range.end && range.start < end;
    if data.is_empty() {
        return Ok(());
    }
    if touches(&COMMAND) {
        // P6.1: byte by byte, whatever else the write touches.
        for (at, byte) in (offset..).zip(data) {
            if COMMAND.contains(&at) {
                forward(function, at, 1, (*byte).into())?;
            }
        }
        if COMMAND.contains(&offset) && end <= COMMAND.end {
            return Ok(());
        }
    }
    if touches(&STATUS) || touches(&BARS) {
        // P6.2: bus identity and address decoding are the host's.
        return Ok(());
    }
    let width = match data.len() {
        1 => 1,
        2 => 2,
        4 => 4,
        other => {
            let message = format!(
                "Function {}: config write of {other} bytes at {offset:#x}: 1, 2 or 4 allowed",
                function.address()
            );
            return Err(start::invalid(message));
        }
    };
    let mut value = [0; 4];
    value[..data.len()].copy_from_slice(data);
    forward(function, offset, width, u32::from_le_bytes(value))
}

fn forward(
    function: &mut dyn ServedFunction,
    offset: u32,
    width: u8,
    value: u32,
) -> Result<(), Failure> {
    function.config_write(offset, width, value).map_err(|error| failure(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dext_client::Client;
    use dext_client::fake::{Call, Fake};
    use ipc::wire::common::FailureKind;
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
        assert_eq!(failure(&error).kind, FailureKind::NoDevice);
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
        assert_eq!(writes(&fake.calls())[2..], [(4, 1, 8), (3, 2, 0x0809)]);
    }

    #[test]
    fn p6_3_everything_else_is_forwarded_after_clamping() {
        let (fake, mut client) = Fake::client();
        write(&mut client, 0x50, &[0x05]).unwrap();
        write(&mut client, 0xb2, &[0x00, 0x80]).unwrap();
        write(&mut client, 0x100, &[1, 2, 3, 4]).unwrap();
        write(&mut client, 4094, &[1, 2, 3, 4]).unwrap();
        write(&mut client, 9999, &[1]).unwrap();
        let expected =
            [(0x50, 1, 5), (0xb2, 2, 0x8000), (0x100, 4, 0x0403_0201), (4094, 2, 0x0201)];
        assert_eq!(writes(&fake.calls()), expected);
        let refused = write(&mut client, 0x50, &[0; 3]).unwrap_err();
        assert_eq!(refused.kind, FailureKind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn no_write_ever_reaches_status_or_a_bar(
            offset in 0u32..0x40, data in proptest::collection::vec(any::<u8>(), 1..9)
        ) {
            let (fake, mut client) = Fake::client();
            let _ = write(&mut client, offset, &data);
            for (at, width, _) in writes(&fake.calls()) {
                let end = at + width;
                for range in [STATUS, BARS] {
                    prop_assert!(end <= range.start.into() || at >= range.end.into(), "{at:#x}..{end:#x}");
                }
            }
        }
    }
}
