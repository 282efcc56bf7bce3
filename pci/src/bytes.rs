//! Little-endian access to byte slices. Bytes that are not there read as zero and cannot be
//! written, so no offset that a device or a guest names can panic.

use std::ops::Range;

use crate::registers::CONFIG_SPACE;

pub(crate) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([byte(bytes, at), byte(bytes, at.saturating_add(1))])
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at.saturating_add(2))) << 16
}

pub(crate) fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}

/// The part of `offset..offset + length` that lies in config space (P5.1).
pub(crate) fn inside(offset: u32, length: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(CONFIG_SPACE).min(CONFIG_SPACE);
    start..start.saturating_add(length).min(CONFIG_SPACE)
}

/// Bytes of a write at `at` that fall into the register bytes `register`: offset in the register
/// and value.
pub(crate) fn hits<'d>(
    register: Range<usize>,
    at: usize,
    data: &'d [u8],
) -> impl Iterator<Item = (usize, u8)> + 'd {
    data.iter().enumerate().filter_map(move |(number, value)| {
        let into = at.checked_add(number)?.checked_sub(register.start)?;
        (into < register.len()).then_some((into, *value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_touched() {
        let mut bytes = [1, 2, 3, 4];
        assert_eq!((byte(&bytes, 9), half(&bytes, 3), word(&bytes, 2)), (0, 4, 0x0403));
        assert_eq!(word(&bytes, usize::MAX), 0);
        put(&mut bytes, 3, &[9, 9]);
        put(&mut bytes, 9, &[9]);
        assert_eq!(bytes, [1, 2, 3, 9]);
    }

    #[test]
    fn ranges_end_with_config_space() {
        assert_eq!(inside(4094, 4), 4094..4096);
        assert_eq!(inside(u32::MAX, 4), 4096..4096);
        assert_eq!(inside(0, usize::MAX), 0..4096);
        let all: Vec<_> = hits(4..6, 3, &[7, 8, 9, 10]).collect();
        assert_eq!(all, [(0, 8), (1, 9)]);
        assert_eq!(hits(4..6, usize::MAX, &[7; 8]).count(), 0);
    }
}
