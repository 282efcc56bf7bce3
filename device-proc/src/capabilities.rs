//! The capability list of a function, as far as Cordon needs it.
//!
//! Runs in every role. The list is the device's: a loop or a pointer to nowhere ends the walk.

use cordon_backend::{BackendError, OpenFunction};
use ipc::wire::common::MsixInfo;

/// MSI capability.
pub const MSI: u8 = 0x05;
/// MSI-X capability.
pub const MSIX: u8 = 0x11;

const STATUS: u32 = 0x06;
const CAPABILITY_LIST: u32 = 1 << 4;
const POINTER: u32 = 0x34;

/// Most capabilities that fit in the 192 bytes after the header.
const MAX_CAPABILITIES: usize = 48;

/// Offset of capability `id`, if the function has it.
///
/// # Errors
/// [`BackendError`] when config space cannot be read.
pub fn find(function: &mut dyn OpenFunction, id: u8) -> Result<Option<u16>, BackendError> {
    if function.config_read(STATUS, 2)? & CAPABILITY_LIST == 0 {
        return Ok(None);
    }
    let mut at = function.config_read(POINTER, 1)? & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            return Ok(None);
        }
        let [found, next, ..] = function.config_read(at, 2)?.to_le_bytes();
        if found == id {
            return Ok(u16::try_from(at).ok());
        }
        at = u32::from(next & 0xfc);
    }
    Ok(None)
}

/// The MSI-X capability, if the function has one that makes sense.
///
/// # Errors
/// [`BackendError`] when config space cannot be read.
pub fn msix(function: &mut dyn OpenFunction) -> Result<Option<MsixInfo>, BackendError> {
    let Some(capability) = find(function, MSIX)? else {
        return Ok(None);
    };
    let at = u32::from(capability);
    let control = function.config_read(at + 2, 2)?;
    let table = function.config_read(at + 4, 4)?;
    let pending = function.config_read(at + 8, 4)?;
    let bar = |word: u32| u8::try_from(word & 0b111).ok().filter(|bar| *bar < 6);
    let (Some(table_bar), Some(pba_bar)) = (bar(table), bar(pending)) else {
        tracing::warn!("MSI-X capability at {at:#x} names a BAR above 5 and is ignored");
        return Ok(None);
    };
    Ok(Some(MsixInfo {
        capability,
        vectors: u16::try_from((control & 0x7ff) + 1).unwrap_or(1),
        table_bar,
        table_offset: table & !0b111,
        pba_bar,
        pba_offset: pending & !0b111,
    }))
}

/// Vectors that the MSI capability can have, 0 without it.
///
/// # Errors
/// [`BackendError`] when config space cannot be read.
pub fn msi_vectors(function: &mut dyn OpenFunction) -> Result<u16, BackendError> {
    let Some(capability) = find(function, MSI)? else {
        return Ok(0);
    };
    let control = function.config_read(u32::from(capability) + 2, 2)?;
    Ok(1 << ((control >> 1) & 0b111).min(5))
}

/// Bytes of the MSI-X table: one entry is 16 bytes.
#[must_use]
pub fn table_bytes(msix: &MsixInfo) -> u64 {
    16 * u64::from(msix.vectors)
}

/// Bytes of the pending-bit array: one bit a vector, in words of 64.
#[must_use]
pub fn pba_bytes(msix: &MsixInfo) -> u64 {
    8 * u64::from(msix.vectors.div_ceil(64))
}
