//! Which kinds of reset a device survives, as data (P8). Whoever resets, for a guest, between two clients
//! or in recovery, asks here first.
//!
//! A row is added for what owners of the hardware have seen, with the evidence. A device without a row
//! survives every kind.

use std::ops::RangeInclusive;

/// What a reset reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// The one function: a function-level reset, or what a platform does in its place.
    Function,
    /// Everything on its bus, by the bridge above it.
    Bus,
}

/// What is known of some devices.
#[derive(Clone, Debug)]
pub struct ResetRow {
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device ids, first to last.
    pub devices: RangeInclusive<u16>,
    /// The kinds that these devices survive.
    pub survives: &'static [ResetKind],
    /// What becomes of them otherwise, and what helps.
    pub why: &'static str,
}

/// Every device that does not survive every kind.
pub const ROWS: &[ResetRow] = &[ResetRow {
    vendor: 0x10de,
    devices: 0x2b80..=0x2bff,
    survives: &[ResetKind::Bus],
    why: "NVIDIA GB202: it never returns from a function-level reset, and reads 0xffff0001 in place of \
          its ids until its power is cycled",
}];

/// A reset that would lose the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device would not survive it ({why}); for a reset cycle its power, or disconnect and connect its enclosure"
)]
pub struct ResetRefused {
    /// The row's words.
    pub why: &'static str,
}

/// The first of `offered`, in that order, that a device survives.
///
/// # Errors
/// [`ResetRefused`] when it survives none of them.
pub fn choose(
    vendor: u16,
    device: u16,
    offered: &[ResetKind],
) -> Result<Option<ResetKind>, ResetRefused> {
    let row = ROWS.iter().find(|row| row.vendor.eq(&vendor) && row.devices.contains(&device));
    let Some(row) = row else { return Ok(offered.first().copied()) };
    match offered.iter().find(|kind| row.survives.contains(kind)) {
        Some(kind) => Ok(Some(*kind)),
        None => Err(ResetRefused { why: row.why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [ResetKind; 2] = [ResetKind::Function, ResetKind::Bus];

    #[test]
    fn p8_a_device_without_a_row_is_reset_by_the_narrowest_kind_that_there_is() {
        assert_eq!(choose(0x8086, 0x1572, &BOTH), Ok(Some(ResetKind::Function)));
        assert_eq!(choose(0x8086, 0x1572, &[ResetKind::Bus]), Ok(Some(ResetKind::Bus)));
        assert_eq!(choose(0x8086, 0x1572, &[]), Ok(None));
        // Next to the row, and of another vendor.
        for (vendor, device) in [(0x10de, 0x2b7f), (0x10de, 0x2c00), (0x1002, 0x2b85)] {
            assert_eq!(choose(vendor, device, &BOTH), Ok(Some(ResetKind::Function)));
        }
    }

    #[test]
    fn p8_gb202_is_never_reset_by_function() {
        for device in [0x2b80, 0x2b85, 0x2bb1, 0x2bff] {
            assert_eq!(choose(0x10de, device, &BOTH), Ok(Some(ResetKind::Bus)));
            let refused = choose(0x10de, device, &[ResetKind::Function]).unwrap_err().to_string();
            assert!(refused.contains("GB202") && refused.contains("cycle its power"), "{refused}");
        }
    }

    #[test]
    fn rows_have_their_reason_and_leave_something_out() {
        for row in ROWS {
            assert!(row.why.len() > 40 && row.survives.len() < BOTH.len(), "{row:?}");
            assert!(row.devices.start() <= row.devices.end(), "{row:?}");
        }
    }
}
