//! What the bits of config space are called, for programs that show it to people.

use crate::bytes;
use crate::capabilities::{CapabilityId, PortType};
use crate::permission::{self, StructureId};

/// Names of bits: bit number and name.
pub type Flags = [(u32, &'static str)];

/// COMMAND, with the names that lspci has made known.
pub const COMMAND: &Flags =
    &[(0, "I/O"), (1, "Mem"), (2, "BusMaster"), (6, "ParErr"), (8, "SERR"), (10, "DisINTx")];

/// STATUS.
pub const STATUS: &Flags = &[
    (3, "INTx"),
    (4, "Cap"),
    (8, "ParErr"),
    (11, ">TAbort"),
    (12, "<TAbort"),
    (13, "<MAbort"),
    (14, ">SERR"),
    (15, "<PERR"),
];

/// Control register of MSI.
pub const MSI_CONTROL: &Flags = &[(0, "Enable"), (7, "64bit"), (8, "Maskable")];

/// Control register of MSI-X.
pub const MSIX_CONTROL: &Flags = &[(15, "Enable"), (14, "Masked")];

/// The name of a capability; `None` for one that is not known.
#[must_use]
pub fn capability_name(id: CapabilityId) -> Option<&'static str> {
    let structure = match id {
        CapabilityId::Standard(id) => permission::standard_capability(id),
        CapabilityId::Extended(id) => permission::extended_capability(id),
    };
    let known =
        !matches!(structure.id, StructureId::UnknownStandard | StructureId::UnknownExtended);
    known.then_some(structure.name)
}

/// The name of a kind of port.
#[must_use]
pub fn port_name(port: PortType) -> &'static str {
    match port {
        PortType::Endpoint => "Endpoint",
        PortType::LegacyEndpoint => "Legacy Endpoint",
        PortType::IntegratedEndpoint => "Root Complex Integrated Endpoint",
        PortType::Other(_) => "other port",
    }
}

/// A link of PCI Express: what it is, and what it could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Lanes in use, 0..=63.
    pub width: u8,
    /// Generation in use, 0..=15.
    pub generation: u8,
    /// Lanes that there are.
    pub max_width: u8,
    /// Latest generation that the device speaks.
    pub max_generation: u8,
}

impl Link {
    /// The link of the PCI Express capability at `offset`.
    #[must_use]
    pub fn parse(config: &[u8], offset: u16) -> Self {
        let offset = usize::from(offset);
        let [able, is] = [0x0c, 0x12].map(|at| bytes::half(config, offset + at));
        let field = |value: u16, shift: u32, mask: u16| (value >> shift & mask).to_le_bytes()[0];
        Self {
            width: field(is, 4, 0x3f),
            generation: field(is, 0, 0xf),
            max_width: field(able, 4, 0x3f),
            max_generation: field(able, 0, 0xf),
        }
    }
}

/// The number of the device serial number capability at `offset`.
#[must_use]
pub fn serial_number(config: &[u8], offset: u16) -> u64 {
    let offset = usize::from(offset);
    u64::from(bytes::word(config, offset + 8)) << 32 | u64::from(bytes::word(config, offset + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_table() {
        use CapabilityId::{Extended, Standard};
        for (id, name) in [
            (Standard(0x01), Some("Power Management")),
            (Standard(0x05), Some("MSI")),
            (Standard(0x09), Some("Vendor Specific")),
            (Standard(0x10), Some("Express")),
            (Standard(0x11), Some("MSI-X")),
            (Standard(0xee), None),
            (Extended(0x01), Some("Advanced Error Reporting")),
            (Extended(0x0b), Some("Vendor Specific Extended")),
            (Extended(0x1e), Some("L1 PM Substates")),
            (Extended(0xeee), None),
        ] {
            assert_eq!(capability_name(id), name, "{id:?}");
        }
        assert_eq!(port_name(PortType::Endpoint), "Endpoint");
    }

    #[test]
    fn links_and_serial_numbers_are_read() {
        let mut config = vec![0; 0x200];
        config[0x7c..0x7e].copy_from_slice(&0x0043u16.to_le_bytes());
        config[0x82..0x84].copy_from_slice(&0x1022u16.to_le_bytes());
        let link = Link { width: 2, generation: 2, max_width: 4, max_generation: 3 };
        assert_eq!(Link::parse(&config, 0x70), link);
        config[0x104..0x10c].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(serial_number(&config, 0x100), 0x0807_0605_0403_0201);
        assert_eq!(serial_number(&[], u16::MAX), 0);
    }
}
