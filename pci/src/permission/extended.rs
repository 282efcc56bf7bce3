//! Extended capabilities. All but the vendor's own are read-only: what they control reaches past
//! the function, to the link, the host's ports, its IOMMU or its error handling.

use super::field::{Field, Structure, StructureId};
use crate::registers::extended as id;

const fn head() -> Field {
    Field::read_only((0, 4), "Id, version and next", "The device's description of itself")
}

/// A capability that is not in the table.
pub(super) static UNKNOWN: Structure = Structure {
    id: StructureId::UnknownExtended,
    name: "Unknown extended capability",
    length: Field::REST,
    fields: &[
        head(),
        Field::read_only(
            (4, Field::REST),
            "Registers",
            "Extended capabilities reach past the function; one that is not known may too (P6.4)",
        ),
    ],
};

static VENDOR: Structure = Structure {
    id: StructureId::Extended(id::VENDOR),
    name: "Vendor Specific Extended",
    length: Field::REST,
    fields: &[
        head(),
        Field::read_only((4, 4), "Vendor's id and length", "The device's description of itself"),
        Field::forwarded((8, Field::REST), "Registers", "The device's driver knows them (P6.3)"),
    ],
};

/// Rows of capabilities that a guest may only read.
macro_rules! read_only {
    ($($id:literal $name:literal: $reason:literal,)*) => {
        [$(Structure {
            id: StructureId::Extended($id),
            name: $name,
            length: Field::REST,
            fields: &[head(), Field::read_only((4, Field::REST), "Registers", $reason)],
        }),*]
    };
}

static READ_ONLY: [Structure; 54] = read_only![
    0x00 "Null (extended)": "Has no register",
    0x01 "Advanced Error Reporting": "Masks, severities and status of errors that the host handles",
    0x02 "Virtual Channel": "Traffic classes of the host's fabric",
    0x03 "Device Serial Number": "Has no register that can be written",
    0x04 "Power Budgeting": "The slot's power is the host's",
    0x05 "Root Complex Link Declaration": "The host's root complex",
    0x06 "Root Complex Internal Link Control": "The host's root complex",
    0x07 "Root Complex Event Collector": "The host's error handling",
    0x08 "Multi-Function Virtual Channel": "Shared by all functions of the device",
    0x09 "Virtual Channel (multi-function)": "Traffic classes of the host's fabric",
    0x0a "Root Complex Register Block": "The host's root complex",
    0x0c "Configuration Access Correlation": "The host's access checks",
    0x0d "Access Control Services": "Isolation of the host's fabric rests on it",
    0x0e "Alternative Routing-ID": "Function numbers as the host routes them",
    0x0f "Address Translation Services": "Translated requests bypass the host's IOMMU",
    0x10 "Single Root I/O Virtualization": "Makes functions that the host would have to own",
    0x11 "Multi-Root I/O Virtualization": "Topology of the host",
    0x12 "Multicast": "Writes to other devices of the host's fabric",
    0x13 "Page Request Interface": "Page requests go to the host's IOMMU",
    0x14 "Reserved for AMD": "Not known outside of its vendor",
    0x15 "Resizable BAR": "The host sized and placed the BARs",
    0x16 "Dynamic Power Allocation": "The slot's power is the host's",
    0x17 "TPH Requester": "Steering tags address the host's caches",
    0x18 "Latency Tolerance Reporting": "Power states of the host's fabric",
    0x19 "Secondary PCI Express": "Equalization of the link with the host's port",
    0x1a "Protocol Multiplexing": "Both ends of the link must agree",
    0x1b "Process Address Space ID": "Address spaces of the host's IOMMU",
    0x1c "LN Requester": "Cache lines of the host's memory",
    0x1d "Downstream Port Containment": "Takes the host's link down",
    0x1e "L1 PM Substates": "Both ends of the link must agree",
    0x1f "Precision Time Measurement": "The host's root is the source of the time",
    0x20 "PCI Express over M-PHY": "Both ends of the link must agree",
    0x21 "FRS Queueing": "Messages to the host's root port",
    0x22 "Readiness Time Reporting": "Has no register that can be written",
    0x23 "Designated Vendor Specific": "Says who defined it, not whom it affects: CXL's control the host's link and memory",
    0x24 "VF Resizable BAR": "The host sized and placed the BARs",
    0x25 "Data Link Feature": "Both ends of the link must agree",
    0x26 "Physical Layer 16.0 GT/s": "Equalization of the link with the host's port",
    0x27 "Lane Margining": "Disturbs the link with the host's port",
    0x28 "Hierarchy ID": "Set by messages of the host",
    0x29 "Native PCIe Enclosure Management": "Lights of the host's enclosure",
    0x2a "Physical Layer 32.0 GT/s": "Equalization of the link with the host's port",
    0x2b "Alternate Protocol": "Both ends of the link must agree",
    0x2c "System Firmware Intermediary": "A way to the host's firmware",
    0x2d "Shadow Functions": "Function numbers as the host routes them",
    0x2e "Data Object Exchange": "Speaks with the device's firmware about keys and measurements that outlive the guest",
    0x2f "Device 3": "Both ends of the path must agree; the host set it for its own fabric",
    0x30 "Integrity and Data Encryption": "Keys of the link with the host's port",
    0x31 "Physical Layer 64.0 GT/s": "Equalization of the link with the host's port",
    0x32 "Flit Logging": "Errors of the link with the host's port",
    0x33 "Flit Performance Measurement": "Counts the traffic of the link with the host's port",
    0x34 "Flit Error Injection": "Disturbs the link with the host's port",
    0x35 "Streamlined Virtual Channel": "Traffic classes of the host's fabric",
    0x36 "MMIO Register Block Locator": "Has no register that can be written",
];

/// All that have rows of their own.
pub(super) fn all() -> impl Iterator<Item = &'static Structure> {
    READ_ONLY.iter().chain([&VENDOR])
}
