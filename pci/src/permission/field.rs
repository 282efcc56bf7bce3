//! Rows of the table.

/// What becomes of a guest's write to a field (P6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// It reaches the device.
    Forwarded,
    /// It is dropped; reads show the device.
    ReadOnly,
    /// It is kept on our side, where reads are answered too.
    Virtual,
    /// It is turned into an action of ours; the device is always sent 0.
    Ours,
}

/// Where a read of a field is answered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The device.
    Device,
    /// What the guest wrote last; before that, what the host had set.
    Guest,
    /// A model: COMMAND, BARs, power state, MSI, MSI-X, INTx.
    Model,
    /// It is always 0.
    Zero,
}

/// A row: bits of a structure, what becomes of a write to them, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As in the specification of PCI.
    pub name: &'static str,
    /// Offset of its first byte in the structure.
    pub offset: u16,
    /// Number of bytes; [`Field::REST`] for all up to the end of the structure.
    pub length: u16,
    /// The bits of these bytes, as one little-endian number; all ones for fields above 4 bytes.
    pub bits: u32,
    /// What becomes of a write.
    pub treatment: Treatment,
    /// Where a read is answered from.
    pub shown: Shown,
    /// Why it is so.
    pub reason: &'static str,
}

impl Field {
    /// The length of a field that goes to the end of its structure.
    pub const REST: u16 = u16::MAX;

    const fn new(
        place: (u16, u16),
        name: &'static str,
        treatment: Treatment,
        shown: Shown,
        reason: &'static str,
    ) -> Self {
        let (offset, length) = place;
        Self { name, offset, length, bits: u32::MAX, treatment, shown, reason }
    }

    /// Forwarded; reads show the device.
    pub(super) const fn forwarded(
        place: (u16, u16),
        name: &'static str,
        reason: &'static str,
    ) -> Self {
        Self::new(place, name, Treatment::Forwarded, Shown::Device, reason)
    }

    /// Forwarded, and kept by a model, which reads show.
    pub(super) const fn shadowed(
        place: (u16, u16),
        name: &'static str,
        reason: &'static str,
    ) -> Self {
        Self::new(place, name, Treatment::Forwarded, Shown::Model, reason)
    }

    /// Read-only.
    pub(super) const fn read_only(
        place: (u16, u16),
        name: &'static str,
        reason: &'static str,
    ) -> Self {
        Self::new(place, name, Treatment::ReadOnly, Shown::Device, reason)
    }

    /// Kept by a model.
    pub(super) const fn modelled(
        place: (u16, u16),
        name: &'static str,
        reason: &'static str,
    ) -> Self {
        Self::new(place, name, Treatment::Virtual, Shown::Model, reason)
    }

    /// Kept as written, without any effect.
    pub(super) const fn kept(place: (u16, u16), name: &'static str, reason: &'static str) -> Self {
        Self::new(place, name, Treatment::Virtual, Shown::Guest, reason)
    }

    /// Always 0 for the guest.
    pub(super) const fn hidden(
        place: (u16, u16),
        name: &'static str,
        reason: &'static str,
    ) -> Self {
        Self::new(place, name, Treatment::Virtual, Shown::Zero, reason)
    }

    /// Turned into an action.
    pub(super) const fn ours(place: (u16, u16), name: &'static str, reason: &'static str) -> Self {
        Self::new(place, name, Treatment::Ours, Shown::Device, reason)
    }

    /// Only these bits of it.
    pub(super) const fn bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// The bits of the byte at `at` of a structure of `length` bytes that are this row's.
    #[must_use]
    pub fn mask(&self, at: u16, length: u16) -> u8 {
        let end = if self.length == Self::REST {
            length
        } else {
            self.offset.saturating_add(self.length)
        };
        if at < self.offset || at >= end.min(length) {
            return 0;
        }
        match self.bits {
            u32::MAX => 0xff,
            bits => bits.to_le_bytes().get(usize::from(at - self.offset)).copied().unwrap_or(0),
        }
    }
}

/// Which structure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StructureId {
    /// The type 0 header.
    Header,
    /// A standard capability.
    Standard(u8),
    /// An extended capability.
    Extended(u16),
    /// A standard capability without a row of its own.
    UnknownStandard,
    /// An extended capability without a row of its own.
    UnknownExtended,
    /// What no capability covers, in the first 256 bytes.
    Unclaimed,
    /// What no capability covers, in the extended config space.
    UnclaimedExtended,
}

/// The header or a capability, and its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Which one.
    pub id: StructureId,
    /// As in the specification of PCI.
    pub name: &'static str,
    /// Number of bytes; [`Field::REST`] where the device says so, or the next structure begins.
    pub length: u16,
    /// Its rows. Every bit has exactly one.
    pub fields: &'static [Field],
}

/// What no structure covers in the first 256 bytes.
pub(super) static UNCLAIMED: Structure = Structure {
    id: StructureId::Unclaimed,
    name: "Device specific",
    length: Field::REST,
    fields: &[Field::forwarded(
        (0, Field::REST),
        "Device-specific registers",
        "Drivers use registers outside of any capability; what they do is the device's (P6.3)",
    )],
};

/// What no structure covers in the extended config space.
pub(super) static UNCLAIMED_EXTENDED: Structure = Structure {
    id: StructureId::UnclaimedExtended,
    name: "Unclaimed extended config space",
    length: Field::REST,
    fields: &[Field::read_only(
        (0, Field::REST),
        "Unclaimed bytes",
        "A capability that the walk did not reach could be here",
    )],
};

impl Structure {
    /// The row of bit `bit` (0..=7) of the byte at `at`, in a structure of `length` bytes.
    #[must_use]
    pub fn field(&self, at: u16, bit: u8, length: u16) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.mask(at, length) >> (bit & 7) & 1 != 0)
    }
}
