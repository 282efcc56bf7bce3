//! The permission table of P6.4 as data: what becomes of every bit of config space that a guest
//! writes, and why.
//!
//! A [`Structure`] is the header or a capability; a [`Field`] is a row: some bits of it, one
//! [`Treatment`], one reason. Every bit of every structure has exactly one row. What no structure
//! covers has a structure of its own: [`StructureId::Unclaimed`] in the first 256 bytes, and
//! [`StructureId::UnclaimedExtended`] behind.
//!
//! [`Layout`] lays the table over the config space of one device. It is used twice: in the front
//! end, and again in the process that calls the device.

mod express;
mod extended;
mod field;
mod header;
mod layout;
mod standard;

pub use field::{Field, Shown, Structure, StructureId, Treatment};
pub use layout::{Forward, Forwards, Layout, MAX_WRITE};

/// Every structure of the table: the header, the standard capabilities, the extended ones, and what
/// stands for those that are not known. For documents and tests.
pub fn structures() -> impl Iterator<Item = &'static Structure> {
    let header = [&header::HEADER, &field::UNCLAIMED, &field::UNCLAIMED_EXTENDED];
    let unknown = [&standard::UNKNOWN, &extended::UNKNOWN];
    header.into_iter().chain(standard::all()).chain(extended::all()).chain(unknown)
}

/// The structure of standard capability `id`; for MSI and PCI Express the longest of its forms.
#[must_use]
pub fn standard_capability(id: u8) -> &'static Structure {
    let found = standard::all().find(|one| one.id == StructureId::Standard(id));
    found.unwrap_or(&standard::UNKNOWN)
}

/// The structure of extended capability `id`.
#[must_use]
pub fn extended_capability(id: u16) -> &'static Structure {
    let found = extended::all().find(|one| one.id == StructureId::Extended(id));
    found.unwrap_or(&extended::UNKNOWN)
}

#[cfg(test)]
#[path = "tests.rs"]
pub(crate) mod tests;
