//! What the capabilities that Cordon acts on say.

use super::{CapabilityId, find};
use crate::registers::{EXTENDED, capability};

/// Reads the 2 bytes at an even offset.
fn half<E>(read: &mut impl FnMut(u16) -> Result<u32, E>, at: u16) -> Result<u16, E> {
    let [a, b, c, d] = read(at & !3)?.to_le_bytes();
    Ok(u16::from_le_bytes(if at & 2 == 0 { [a, b] } else { [c, d] }))
}

/// Whether a structure of `length` bytes at `offset` lies in the first 256 bytes.
fn fits(offset: u16, length: u16) -> bool {
    usize::from(offset) + usize::from(length) <= EXTENDED
}

/// The MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Vectors that the function can ask for: 1, 2, 4, 8, 16 or 32.
    pub vectors: u16,
    /// Whether the message address has 64 bits.
    pub is_64bit: bool,
    /// Whether it has mask and pending bits for each vector.
    pub has_masks: bool,
}

impl MsiCapability {
    /// What the capability at `offset` says; `None` if it would not fit.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        mut read: impl FnMut(u16) -> Result<u32, E>,
        offset: u16,
    ) -> Result<Option<Self>, E> {
        if !fits(offset, 10) {
            return Ok(None);
        }
        let control = half(&mut read, offset + 2)?;
        let vectors = 1 << (control >> 1 & 0b111).min(5);
        let (is_64bit, has_masks) = (control & 1 << 7 != 0, control & 1 << 8 != 0);
        let msi = Self { offset, vectors, is_64bit, has_masks };
        Ok(fits(offset, msi.length()).then_some(msi))
    }

    /// The first MSI capability of a function.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn find<E>(mut read: impl FnMut(u16) -> Result<u32, E>) -> Result<Option<Self>, E> {
        match find(&mut read, CapabilityId::Standard(capability::MSI))? {
            Some(found) => Self::read(read, found.offset),
            None => Ok(None),
        }
    }

    /// Bytes of the structure: 10, 14, 20 or 24.
    #[must_use]
    pub fn length(&self) -> u16 {
        match (self.is_64bit, self.has_masks) {
            (false, false) => 10,
            (true, false) => 14,
            (false, true) => 20,
            (true, true) => 24,
        }
    }

    /// Offset of the message data in the structure.
    pub(crate) fn data(&self) -> usize {
        if self.is_64bit { 12 } else { 8 }
    }

    /// Offset of the mask bits in the structure; the pending bits are behind them.
    pub(crate) fn masks(&self) -> usize {
        self.data() + 4
    }
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Entries of the table: 1..=2048.
    pub vectors: u16,
    /// BAR of the table: 0..=5.
    pub table_bar: u8,
    /// Offset of the table in its BAR, a multiple of 8.
    pub table_offset: u32,
    /// BAR of the pending-bit array: 0..=5.
    pub pba_bar: u8,
    /// Offset of the pending-bit array in its BAR, a multiple of 8.
    pub pba_offset: u32,
}

impl MsixCapability {
    /// Bytes of the structure.
    pub const LENGTH: u16 = 12;

    /// What the capability at `offset` says; `None` if it would not fit, or names a BAR above 5.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        mut read: impl FnMut(u16) -> Result<u32, E>,
        offset: u16,
    ) -> Result<Option<Self>, E> {
        if !fits(offset, Self::LENGTH) {
            return Ok(None);
        }
        let control = half(&mut read, offset + 2)?;
        let (table, pending) = (read(offset + 4)?, read(offset + 8)?);
        let bar = |word: u32| u8::try_from(word & 0b111).ok().filter(|bar| *bar < 6);
        let (Some(table_bar), Some(pba_bar)) = (bar(table), bar(pending)) else {
            return Ok(None);
        };
        Ok(Some(Self {
            offset,
            vectors: (control & 0x7ff) + 1,
            table_bar,
            table_offset: table & !0b111,
            pba_bar,
            pba_offset: pending & !0b111,
        }))
    }

    /// The first MSI-X capability of a function.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn find<E>(mut read: impl FnMut(u16) -> Result<u32, E>) -> Result<Option<Self>, E> {
        match find(&mut read, CapabilityId::Standard(capability::MSIX))? {
            Some(found) => Self::read(read, found.offset),
            None => Ok(None),
        }
    }

    /// Bytes of the table: 16 for each entry.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        16 * u64::from(self.vectors)
    }

    /// Bytes of the pending-bit array: one bit for each vector, in words of 64.
    #[must_use]
    pub fn pba_bytes(&self) -> u64 {
        8 * u64::from(self.vectors.div_ceil(64))
    }

    /// Offset of the control register in config space.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.offset.saturating_add(2)
    }
}

/// The power management capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Version, 0..=7.
    pub version: u8,
    /// Power state that the device is in, 0..=3.
    pub state: u8,
    /// Whether the function keeps its state on the way from D3hot to D0. One that does not loses
    /// the BARs that the host programmed.
    pub no_soft_reset: bool,
}

impl PowerCapability {
    /// Bytes of the structure.
    pub const LENGTH: u16 = 8;

    /// What the capability at `offset` says; `None` if it would not fit.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        mut read: impl FnMut(u16) -> Result<u32, E>,
        offset: u16,
    ) -> Result<Option<Self>, E> {
        if !fits(offset, Self::LENGTH) {
            return Ok(None);
        }
        let [_, _, capabilities, _] = read(offset)?.to_le_bytes();
        let [control, ..] = read(offset + 4)?.to_le_bytes();
        let (version, state) = (capabilities & 0b111, control & 0b11);
        Ok(Some(Self { offset, version, state, no_soft_reset: control & 1 << 3 != 0 }))
    }
}

/// What kind of PCI Express port a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// An endpoint.
    Endpoint,
    /// A legacy endpoint.
    LegacyEndpoint,
    /// An endpoint of the root complex.
    IntegratedEndpoint,
    /// A port of a bridge or switch, or an event collector; the value of the field.
    Other(u8),
}

/// The PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Version, 1 or 2 on devices that exist.
    pub version: u8,
    /// Kind of port.
    pub port: PortType,
    /// Whether a slot belongs to it.
    pub slot: bool,
    /// Whether it is capable of a function-level reset.
    pub function_level_reset: bool,
    /// Largest payload that it is capable of, in bytes: 128..=16384.
    pub max_payload: u16,
}

impl ExpressCapability {
    /// What the capability at `offset` says; `None` if it would not fit.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        mut read: impl FnMut(u16) -> Result<u32, E>,
        offset: u16,
    ) -> Result<Option<Self>, E> {
        if !fits(offset, length_of(1)) {
            return Ok(None);
        }
        let flags = half(&mut read, offset + 2)?;
        let [version, kind, ..] = [flags & 0xf, flags >> 4 & 0xf].map(|v| v.to_le_bytes()[0]);
        if !fits(offset, length_of(version)) {
            return Ok(None);
        }
        let device = read(offset + 4)?;
        let port = match kind {
            0 => PortType::Endpoint,
            1 => PortType::LegacyEndpoint,
            9 => PortType::IntegratedEndpoint,
            other => PortType::Other(other),
        };
        Ok(Some(Self {
            offset,
            version,
            port,
            slot: flags & 1 << 8 != 0,
            function_level_reset: device & 1 << 28 != 0,
            max_payload: 128 << (device & 0b111),
        }))
    }

    /// Bytes of the structure: 20 in version 1, 60 from version 2 on.
    #[must_use]
    pub fn length(&self) -> u16 {
        length_of(self.version)
    }
}

fn length_of(version: u8) -> u16 {
    if version < 2 { 20 } else { 60 }
}

/// The Advanced Features capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Whether it is capable of a function-level reset.
    pub function_level_reset: bool,
}

impl AfCapability {
    /// Bytes of the structure.
    pub const LENGTH: u16 = 6;

    /// What the capability at `offset` says; `None` if it would not fit.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        mut read: impl FnMut(u16) -> Result<u32, E>,
        offset: u16,
    ) -> Result<Option<Self>, E> {
        if !fits(offset, Self::LENGTH) {
            return Ok(None);
        }
        let [_, _, _, features] = read(offset)?.to_le_bytes();
        Ok(Some(Self { offset, function_level_reset: features & 1 << 1 != 0 }))
    }
}

/// A vendor-specific capability of the first 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Bytes of the structure as it says, at least 3.
    pub length: u8,
}

impl VendorCapability {
    /// What the capability at `offset` says.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(mut read: impl FnMut(u16) -> Result<u32, E>, offset: u16) -> Result<Self, E> {
        let [_, _, length, _] = read(offset)?.to_le_bytes();
        Ok(Self { offset, length: length.max(3) })
    }
}

/// A vendor-specific extended capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorExtendedCapability {
    /// Offset of the capability.
    pub offset: u16,
    /// Bytes of the structure as it says, 8..=4095.
    pub length: u16,
}

impl VendorExtendedCapability {
    /// What the capability at `offset` says.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(mut read: impl FnMut(u16) -> Result<u32, E>, offset: u16) -> Result<Self, E> {
        let header = read(offset.saturating_add(4).min(0xffc))?;
        let length = u16::try_from(header >> 20).unwrap_or(0).max(8);
        Ok(Self { offset, length })
    }
}
