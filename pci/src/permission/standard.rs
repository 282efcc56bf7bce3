//! Standard capabilities.

use super::express;
use super::field::{Field, Structure, StructureId};
use crate::capabilities::{ExpressCapability, MsiCapability};
use crate::registers::capability as id;

const HEAD: &str = "The list is the device's description of itself";
const SAYS: &str = "The device's description of itself";
const PLATFORM: &str = "Concerns the host's bus or slot, not the function";
const MESSAGE: &str = "Kept by the model; what the hardware needs is set up by the host (P9)";

const fn head() -> Field {
    Field::read_only((0, 2), "Id and next", HEAD)
}

const fn capability(
    id: u8,
    name: &'static str,
    length: u16,
    fields: &'static [Field],
) -> Structure {
    Structure { id: StructureId::Standard(id), name, length, fields }
}

/// A capability that a guest may only read.
const fn read_only(id: u8, name: &'static str, length: u16) -> Structure {
    const ROWS: [Field; 2] = [head(), Field::read_only((2, Field::REST), "Registers", PLATFORM)];
    capability(id, name, length, &ROWS)
}

/// A capability that is not in the table.
pub(super) static UNKNOWN: Structure = Structure {
    id: StructureId::UnknownStandard,
    name: "Unknown capability",
    length: Field::REST,
    fields: &[
        head(),
        Field::forwarded(
            (2, Field::REST),
            "Registers",
            "Drivers rely on capabilities that the specification does not list (P6.4)",
        ),
    ],
};

/// A second capability of a kind that has rules of its own, or one that does not fit.
pub(super) static REPEATED: Structure = Structure {
    id: StructureId::UnknownStandard,
    name: "Repeated or malformed capability",
    length: Field::REST,
    fields: &[
        head(),
        Field::read_only(
            (2, Field::REST),
            "Registers",
            "No device has one; the rules of its kind are applied to the first only",
        ),
    ],
};

const POWER: Structure = capability(
    id::POWER_MANAGEMENT,
    "Power Management",
    8,
    &[
        head(),
        Field::hidden((2, 2), "PMC: D1 and D2 support", "Only D0 and D3hot are passed through")
            .bits(0b11 << 9),
        Field::hidden((2, 2), "PMC: PME support", "Waking the platform is the host's")
            .bits(0b1_1111 << 11),
        Field::read_only((2, 2), "PMC", SAYS).bits(0x01ff),
        Field::shadowed(
            (4, 2),
            "PMCSR: power state",
            "D0 and D3hot, with windows withdrawn in D3hot; D1 and D2 are dropped. A function that would lose its state in D3hot stays in D0 and is reset instead",
        )
        .bits(0b11),
        Field::read_only((4, 2), "PMCSR: no soft reset, data select and scale", SAYS)
            .bits(0x7efc),
        Field::hidden((4, 2), "PMCSR: PME enable and status", "Waking the platform is the host's")
            .bits(0x8100),
        Field::read_only((6, 2), "Bridge extensions and data", SAYS),
    ],
);

const VPD: Structure = capability(
    id::VPD,
    "Vital Product Data",
    8,
    &[
        head(),
        Field::forwarded((2, 2), "VPD address", "Selects what is read").bits(0x7fff),
        Field::ours(
            (2, 2),
            "VPD flag",
            "Always sent as 0, a read: a write would change the device's memory for good, past the guest's life",
        )
        .bits(0x8000),
        Field::read_only((4, 4), "VPD data", "Written only on the way to a VPD write"),
    ],
);

const fn msi_control() -> Field {
    Field::modelled((2, 2), "Control: enable, vectors, widths", MESSAGE).bits(0x01ff)
}

const fn msi_reserved() -> Field {
    Field::read_only((2, 2), "Control: extended message data", "Messages of 16 bits only")
        .bits(0xfe00)
}

const fn msi(name: &'static str, length: u16, fields: &'static [Field]) -> Structure {
    capability(id::MSI, name, length, fields)
}

/// MSI by whether it has a 64-bit address and masks; the longest first.
pub(super) static MSI: [Structure; 4] = [
    msi(
        "MSI",
        24,
        &[
            head(),
            msi_control(),
            msi_reserved(),
            Field::modelled((4, 8), "Message address", MESSAGE),
            Field::modelled((12, 4), "Message data", MESSAGE),
            Field::modelled((16, 8), "Mask and pending bits", MESSAGE),
        ],
    ),
    msi(
        "MSI (32-bit, masks)",
        20,
        &[
            head(),
            msi_control(),
            msi_reserved(),
            Field::modelled((4, 4), "Message address", MESSAGE),
            Field::modelled((8, 4), "Message data", MESSAGE),
            Field::modelled((12, 8), "Mask and pending bits", MESSAGE),
        ],
    ),
    msi(
        "MSI (64-bit)",
        14,
        &[
            head(),
            msi_control(),
            msi_reserved(),
            Field::modelled((4, 8), "Message address", MESSAGE),
            Field::modelled((12, 2), "Message data", MESSAGE),
        ],
    ),
    msi(
        "MSI (32-bit)",
        10,
        &[
            head(),
            msi_control(),
            msi_reserved(),
            Field::modelled((4, 4), "Message address", MESSAGE),
            Field::modelled((8, 2), "Message data", MESSAGE),
        ],
    ),
];

const MSIX: Structure = capability(
    id::MSIX,
    "MSI-X",
    12,
    &[
        head(),
        Field::read_only((2, 2), "Control: table size", SAYS).bits(0x3fff),
        Field::modelled((2, 2), "Control: enable and function mask", MESSAGE).bits(0xc000),
        Field::read_only((4, 8), "Place of table and pending-bit array", SAYS),
    ],
);

const VENDOR: Structure = capability(
    id::VENDOR,
    "Vendor Specific",
    Field::REST,
    &[
        head(),
        Field::read_only((2, 1), "Length", SAYS),
        Field::forwarded((3, Field::REST), "Registers", "The device's driver knows them (P6.3)"),
    ],
);

const SATA: Structure = capability(
    id::SATA,
    "Serial ATA",
    16,
    &[
        head(),
        Field::read_only((2, 6), "Revision and place", SAYS),
        Field::forwarded((8, 8), "Index and data", "Another way to the registers in the BAR"),
    ],
);

const ADVANCED: Structure = capability(
    id::ADVANCED_FEATURES,
    "Advanced Features",
    6,
    &[
        head(),
        Field::read_only((2, 2), "Length and features", SAYS),
        Field::ours(
            (4, 1),
            "Function-level reset",
            "A reset with everything that P8 says: the host restores what it programmed",
        )
        .bits(1),
        Field::read_only((4, 1), "Control", "Reserved").bits(0xfe),
        Field::read_only((5, 1), "Status", SAYS),
    ],
);

static OTHERS: [Structure; 15] = [
    read_only(0x02, "AGP", 12),
    read_only(0x04, "Slot Identification", 4),
    read_only(0x06, "CompactPCI Hot Swap", 4),
    read_only(0x07, "PCI-X", 8),
    read_only(0x08, "HyperTransport", Field::REST),
    read_only(0x0a, "Debug Port", 4),
    read_only(0x0b, "CompactPCI Resource Control", 4),
    read_only(0x0c, "Hot-Plug", 4),
    read_only(0x0d, "Bridge Subsystem Ids", 8),
    read_only(0x0e, "AGP 8x", 12),
    read_only(0x0f, "Secure Device", 16),
    read_only(0x14, "Enhanced Allocation", Field::REST),
    read_only(0x15, "Flattening Portal Bridge", 36),
    read_only(0x00, "Null", 4),
    SATA,
];

static KNOWN: [Structure; 5] = [POWER, VPD, VENDOR, MSIX, ADVANCED];

/// The rows of this MSI capability.
pub(super) fn msi_form(msi: &MsiCapability) -> &'static Structure {
    match (msi.has_masks, msi.is_64bit) {
        (true, true) => &MSI[0],
        (true, false) => &MSI[1],
        (false, true) => &MSI[2],
        (false, false) => &MSI[3],
    }
}

/// The rows of this PCI Express capability.
pub(super) fn express_form(express: &ExpressCapability) -> &'static Structure {
    if express.version < 2 { &express::SHORT } else { &express::LONG }
}

/// All that have rows of their own.
pub(super) fn all() -> impl Iterator<Item = &'static Structure> {
    KNOWN.iter().chain(&MSI).chain([&express::LONG, &express::SHORT]).chain(&OTHERS)
}
