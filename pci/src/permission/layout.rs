//! The table laid over the config space of one device.

use std::fmt;
use std::ops::{Deref, Range};

use super::field::{
    Field, Shown, Structure, StructureId, Treatment, UNCLAIMED, UNCLAIMED_EXTENDED,
};
use super::{header, standard};
use crate::bytes;
use crate::capabilities::{
    self, AfCapability, Capability, CapabilityId, ExpressCapability, MsiCapability, MsixCapability,
    PowerCapability, VendorCapability, VendorExtendedCapability,
};
pub use crate::limits::MAX_WRITE;
use crate::power::PowerState;
use crate::registers::{
    AF_CONTROL, COMMAND, CONFIG_SPACE, DEVICE_CONTROL, EXTENDED, HEADER, PM_CONTROL, capability,
    extended as extended_id,
};

/// A config write that reaches the device: an aligned access of 1, 2 or 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// Offset in config space, a multiple of the width.
    pub offset: u16,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// The value, in the low bytes.
    pub value: u32,
}

/// The config writes that one write of a guest comes to, in order. Use it as a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    all: [Forward; MAX_WRITE],
    count: usize,
}

impl Forwards {
    pub(crate) fn push(&mut self, offset: usize, data: &[u8]) {
        let (Ok(offset), Ok(width)) = (u16::try_from(offset), u8::try_from(data.len())) else {
            return;
        };
        if let Some(free) = self.all.get_mut(self.count) {
            *free = Forward { offset, width, value: bytes::word(data, 0) };
            self.count += 1;
        }
    }
}

impl Deref for Forwards {
    type Target = [Forward];

    fn deref(&self) -> &[Forward] {
        &self.all[..self.count]
    }
}

type Space = Box<[u8; CONFIG_SPACE]>;

fn space() -> Space {
    Box::new([0; CONFIG_SPACE])
}

/// The capabilities that have rules of their own; the first of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) power: Option<PowerCapability>,
    pub(crate) express: Option<ExpressCapability>,
    pub(crate) advanced: Option<AfCapability>,
    pub(crate) msi: Option<MsiCapability>,
    pub(crate) msix: Option<MsixCapability>,
}

/// What may be done to each bit of one device's config space.
///
/// It is built once, from the capabilities that the device shows. Where structures of a device
/// overlap, the strictest row holds.
#[derive(Clone)]
pub struct Layout {
    /// Bits that reach the device.
    forward: Space,
    /// Bits of our own making in a read.
    pub(crate) shown: Space,
    /// Of these, the ones that a guest's write changes without any model.
    pub(crate) kept: Space,
    /// Bits that are sent as 0.
    ours: Space,
    /// What the host had set, where bytes are forwarded in part or kept.
    pub(crate) host: Space,
    extents: Vec<(u16, u16, &'static Structure)>,
    pub(crate) known: Known,
}

impl Layout {
    /// The layout of a device that `read` reads, by aligned dwords: its capabilities, and those
    /// registers of which the host's setting must be kept.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(mut read: impl FnMut(u16) -> Result<u32, E>) -> Result<Self, E> {
        let capabilities = capabilities::walk(&mut read).collect::<Result<Vec<_>, E>>()?;
        let mut layout = Self {
            forward: Box::new([0xff; CONFIG_SPACE]),
            shown: space(),
            kept: space(),
            ours: space(),
            host: space(),
            extents: Vec::with_capacity(capabilities.len() + 1),
            known: Known::default(),
        };
        let mut claimed = space();
        layout.lay(0, header::HEADER.length, &header::HEADER, &mut claimed);
        for one in &capabilities {
            let (structure, length) = layout.structure(&mut read, *one)?;
            let length = end_of(one.offset, length, &capabilities) - one.offset;
            layout.lay(one.offset, length, structure, &mut claimed);
        }
        for (at, (forward, claimed)) in layout.forward.iter_mut().zip(claimed.iter()).enumerate() {
            // Unclaimed registers: the device's own, or unknown extended ones.
            if !(HEADER..EXTENDED).contains(&at) {
                *forward &= claimed;
            }
        }
        if let Some(power) = layout.known.power.filter(|power| !power.no_soft_reset) {
            // D3hot would cost the BARs that the host programmed.
            let at = usize::from(power.offset) + PM_CONTROL;
            layout.forward[at] &= !0b11;
        }
        layout.keep(read)?;
        Ok(layout)
    }

    /// The layout of a device whose config space is `config`; bytes that are not there are zero.
    #[must_use]
    pub fn new(config: &[u8]) -> Self {
        match Self::read(capabilities::reader(config)) {
            Ok(layout) => layout,
            Err(never) => match never {},
        }
    }

    /// Keeps what the host had set wherever only some bits of a byte may change.
    fn keep<E>(&mut self, mut read: impl FnMut(u16) -> Result<u32, E>) -> Result<(), E> {
        for at in (0..CONFIG_SPACE).step_by(4) {
            let needed = (at..at + 4).any(|at| {
                let (forward, kept) = (self.forward[at], self.kept[at]);
                kept != 0 || forward != 0 && forward != 0xff
            });
            if needed {
                let value = read(u16::try_from(at).unwrap_or(0))?;
                bytes::put(&mut self.host[..], at, &value.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Which rows a capability has, and its length. A second one of a kind that has rules of its
    /// own, or one that cannot be, may only be read.
    fn structure<E>(
        &mut self,
        read: &mut impl FnMut(u16) -> Result<u32, E>,
        one: Capability,
    ) -> Result<(&'static Structure, u16), E> {
        let at = one.offset;
        let id = match one.id {
            CapabilityId::Extended(extended_id::VENDOR) => {
                let structure = super::extended_capability(extended_id::VENDOR);
                return Ok((structure, VendorExtendedCapability::read(read, at)?.length));
            }
            CapabilityId::Extended(id) => {
                let structure = super::extended_capability(id);
                return Ok((structure, structure.length));
            }
            CapabilityId::Standard(id) => id,
        };
        let known = &mut self.known;
        let is_first = match id {
            capability::POWER_MANAGEMENT => {
                first(&mut known.power, PowerCapability::read(read, at)?)
            }
            capability::EXPRESS => first(&mut known.express, ExpressCapability::read(read, at)?),
            capability::ADVANCED_FEATURES => {
                first(&mut known.advanced, AfCapability::read(read, at)?)
            }
            capability::MSI => first(&mut known.msi, MsiCapability::read(read, at)?),
            capability::MSIX => first(&mut known.msix, MsixCapability::read(read, at)?),
            capability::VENDOR => {
                let length = VendorCapability::read(read, at)?.length.into();
                return Ok((super::standard_capability(id), length));
            }
            _ => true,
        };
        let table = match (id, self.known.msi, self.known.express) {
            _ if !is_first => &standard::REPEATED,
            (capability::MSI, Some(msi), _) => standard::msi_form(&msi),
            (capability::EXPRESS, _, Some(express)) => standard::express_form(&express),
            _ => super::standard_capability(id),
        };
        Ok((table, table.length))
    }

    fn lay(
        &mut self,
        offset: u16,
        length: u16,
        structure: &'static Structure,
        claimed: &mut [u8; CONFIG_SPACE],
    ) {
        self.extents.push((offset, length, structure));
        for at in 0..length {
            let place = usize::from(offset) + usize::from(at);
            for field in structure.fields {
                let mask = field.mask(at, length);
                claimed[place] |= mask;
                match field.treatment {
                    Treatment::Forwarded => {}
                    Treatment::Ours => {
                        self.ours[place] |= mask;
                        self.forward[place] &= !mask;
                    }
                    Treatment::ReadOnly | Treatment::Virtual => self.forward[place] &= !mask,
                }
                match field.shown {
                    Shown::Device => {}
                    Shown::Guest => {
                        self.shown[place] |= mask;
                        self.kept[place] |= mask;
                    }
                    Shown::Model | Shown::Zero => self.shown[place] |= mask,
                }
            }
        }
    }

    /// What of a write reaches the device: aligned accesses of 4, 2 and 1 bytes, COMMAND byte by
    /// byte (P6.1). Bits that may not be changed are sent as the host had them, and as 0 where they
    /// would start an action. Only the first [`MAX_WRITE`] bytes are taken.
    ///
    /// The result of a result is itself, so a process that is handed accesses can check them again.
    #[must_use]
    pub fn split(&self, offset: u32, data: &[u8]) -> Forwards {
        let range = bytes::inside(offset, data.len().min(MAX_WRITE));
        let mut sent = [None; MAX_WRITE];
        for ((at, value), sent) in range.clone().zip(data).zip(&mut sent) {
            *sent = self.byte(at, *value);
        }
        let mut forwards = Forwards::default();
        let mut number = 0;
        while number < range.len() {
            let at = range.start + number;
            let fits = |width: &usize| {
                at % width == 0
                    && number + width <= range.len()
                    && sent[number..number + width].iter().all(Option::is_some)
                    && (*width == 1 || !(COMMAND..COMMAND + 2).contains(&at))
            };
            let width = [4, 2, 1].into_iter().find(fits);
            if let Some(width) = width {
                let piece = [0, 1, 2, 3].map(|of| sent.get(number + of).copied().flatten());
                forwards.push(at, &piece.map(Option::unwrap_or_default)[..width]);
            }
            number += width.unwrap_or(1);
        }
        forwards
    }

    /// A byte as it is sent, if any bit of it may be.
    fn byte(&self, at: usize, value: u8) -> Option<u8> {
        let forward = self.forward[at];
        if forward == 0 {
            return None;
        }
        if Some(at) == self.power_state() && PowerState::from_bits(value).is_none() {
            return None;
        }
        let host = self.host[at] & !self.ours[at];
        let mut sent = value & forward | host & !forward;
        if Some(at) == self.read_request() {
            // Within what the host set.
            const SIZE: u8 = 0b111 << 4;
            sent = sent & !SIZE | (sent & SIZE).min(host_size(self.host[at]));
        }
        Some(sent)
    }

    /// The maximum read request size that a guest stays within: bits 14:12 of DevCtl, 0 (128 bytes) to
    /// 7, as they were when the layout was made. `None` without a PCI Express capability.
    #[must_use]
    pub fn max_read_request(&self) -> Option<u8> {
        self.read_request().map(|at| host_size(self.host[at]) >> 4)
    }

    /// Sets it to what the host had set, where a guest may have lowered it before the layout was made.
    /// Above 7 there is none, and nothing changes.
    pub fn set_max_read_request(&mut self, size: u8) {
        if let Some(at) = self.read_request().filter(|_| size <= 0b111) {
            self.host[at] = self.host[at] & !(0b111 << 4) | size << 4;
        }
    }

    /// The MSI-X capability that holds: the first one, if it makes sense.
    #[must_use]
    pub fn msix(&self) -> Option<MsixCapability> {
        self.known.msix
    }

    /// Whether a write to these bytes is all done with what reaches the device.
    pub(crate) fn is_plain(&self, range: Range<usize>) -> bool {
        let mut bytes = self.shown[range.clone()].iter().zip(&self.ours[range]);
        bytes.all(|(shown, ours)| shown | ours == 0)
    }

    /// Offset in config space of the byte with the power state, in bits 1:0.
    #[must_use]
    pub fn power_state(&self) -> Option<usize> {
        self.known.power.map(|power| usize::from(power.offset) + PM_CONTROL)
    }

    /// Offset of the byte with the maximum read request size and the function-level reset.
    fn read_request(&self) -> Option<usize> {
        self.known.express.map(|express| usize::from(express.offset) + DEVICE_CONTROL + 1)
    }

    /// Whether a write asks for a function-level reset that the device is capable of. What reaches
    /// the device never starts one.
    #[must_use]
    pub fn asks_for_reset(&self, offset: u32, data: &[u8]) -> bool {
        let offset = bytes::inside(offset, data.len()).start;
        let has = |at: usize, bit: u8| {
            bytes::hits(at..at + 1, offset, data).any(|(_, value)| value & bit != 0)
        };
        let express = self.known.express.filter(|express| express.function_level_reset);
        let advanced = self.known.advanced.filter(|advanced| advanced.function_level_reset);
        express.and(self.read_request()).is_some_and(|at| has(at, 1 << 7))
            || advanced.is_some_and(|one| has(usize::from(one.offset) + AF_CONTROL, 1))
    }

    /// Whether each of `length` bytes at `offset` has a bit that a guest may write through to the
    /// device. Never for bytes outside of config space.
    #[must_use]
    pub fn permits(&self, offset: u32, length: usize) -> bool {
        let range = bytes::inside(offset, length);
        range.len() == length && length > 0 && self.forward[range].iter().all(|mask| *mask != 0)
    }

    /// The bits of the byte at `offset` that a guest may write through to the device.
    #[must_use]
    pub fn forwarded_bits(&self, offset: u16) -> u8 {
        self.forward.get(usize::from(offset)).copied().unwrap_or(0)
    }

    /// The row that holds for bit `bit` (0..=7) of the byte at `offset`: the strictest, where
    /// structures overlap. `None` past config space.
    #[must_use]
    pub fn row(&self, offset: u16, bit: u8) -> Option<(&'static Structure, &'static Field)> {
        if usize::from(offset) >= CONFIG_SPACE {
            return None;
        }
        let rows = self.extents.iter().filter_map(|(start, length, structure)| {
            let at = offset.checked_sub(*start)?;
            Some((*structure, structure.field(at, bit, *length)?))
        });
        let strictest = rows.max_by_key(|(_, field)| field.treatment);
        let unclaimed =
            if usize::from(offset) < EXTENDED { &UNCLAIMED } else { &UNCLAIMED_EXTENDED };
        strictest.or_else(|| Some((unclaimed, unclaimed.fields.first()?)))
    }

    /// The structures of this device: offset and length in bytes, and rows.
    pub fn structures(&self) -> impl Iterator<Item = (u16, u16, &'static Structure)> + '_ {
        self.extents.iter().copied()
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<(u16, StructureId)> =
            self.extents.iter().map(|(at, _, structure)| (*at, structure.id)).collect();
        f.debug_struct("Layout").field("structures", &all).finish_non_exhaustive()
    }
}

/// The maximum read request size that the host set, in place.
fn host_size(host: u8) -> u8 {
    host & 0b111 << 4
}

/// Keeps the first of its kind; whether this is it.
fn first<T>(slot: &mut Option<T>, found: Option<T>) -> bool {
    let is_first = slot.is_none() && found.is_some();
    if is_first {
        *slot = found;
    }
    is_first
}

/// Where a structure ends: as it says, or where the next begins, and with its part of config space.
fn end_of(offset: u16, length: u16, all: &[Capability]) -> u16 {
    let extended = usize::from(offset) >= EXTENDED;
    let most: u16 = if extended { 0x1000 } else { 0x100 };
    if length != Field::REST {
        return offset.saturating_add(length).min(most);
    }
    let after: Range<u16> = offset + 1..most;
    all.iter().map(|one| one.offset).filter(|at| after.contains(at)).min().unwrap_or(most)
}
