//! The PCI Express capability, in its two lengths.

use super::field::{Field, Structure, StructureId};
use crate::registers::capability;

const LINK: &str = "The link is shared with the host's port";
const PORT: &str = "No slot and no root port is passed through";
const PATH: &str = "Both ends of the path must agree; the host set it for its own fabric";
const SAYS: &str = "The device's description of itself";

const fn header() -> Field {
    Field::read_only((0, 4), "Id, next and PCI Express capabilities", SAYS)
}

const DEVICE: [Field; 9] = [
    Field::read_only((4, 4), "DevCap", SAYS),
    Field::kept(
        (8, 2),
        "DevCtl: error reporting enables",
        "Error messages go to the host's root port; switching them on or off is the host's",
    )
    .bits(0x000f),
    Field::forwarded((8, 2), "DevCtl: relaxed ordering", "Orders the device's own DMA only")
        .bits(1 << 4),
    Field::kept((8, 2), "DevCtl: max payload size", PATH).bits(0b111 << 5),
    Field::kept((8, 2), "DevCtl: extended tags and phantom functions", PATH).bits(0b11 << 8),
    Field::read_only((8, 2), "DevCtl: aux power", "The slot's power is the host's").bits(1 << 10),
    Field::forwarded((8, 2), "DevCtl: no snoop", "Concerns the guest's own memory only")
        .bits(1 << 11),
    Field::forwarded(
        (8, 2),
        "DevCtl: max read request size",
        "Within what the host set: a larger value becomes the host's",
    )
    .bits(0b111 << 12),
    Field::ours(
        (8, 2),
        "DevCtl: function-level reset",
        "A reset with everything that P8 says: the host restores what it programmed",
    )
    .bits(1 << 15),
];

const DEVICE_STATUS: Field = Field::read_only(
    (0x0a, 2),
    "DevSta",
    "Its error bits are cleared by writing them: they belong to the host",
);

/// All of version 2; version 1 ends before the slot's.
static FIELDS: [Field; 20] = [
    header(),
    DEVICE[0],
    DEVICE[1],
    DEVICE[2],
    DEVICE[3],
    DEVICE[4],
    DEVICE[5],
    DEVICE[6],
    DEVICE[7],
    DEVICE[8],
    DEVICE_STATUS,
    Field::read_only((0x0c, 8), "LnkCap, LnkCtl, LnkSta", LINK),
    Field::read_only((0x14, 8), "SltCap, SltCtl, SltSta", PORT),
    Field::read_only((0x1c, 8), "RootCtl, RootCap, RootSta", PORT),
    Field::read_only((0x24, 4), "DevCap2", SAYS),
    Field::forwarded(
        (0x28, 2),
        "DevCtl2: completion timeout",
        "How long the device waits for its own reads",
    )
    .bits(0x001f),
    Field::kept((0x28, 2), "DevCtl2: ARI, atomics, ordering, LTR, tags, OBFF, prefixes", PATH)
        .bits(0xffe0),
    Field::read_only((0x2a, 2), "DevSta2", "Reserved"),
    Field::read_only((0x2c, 8), "LnkCap2, LnkCtl2, LnkSta2", LINK),
    Field::read_only((0x34, 8), "SltCap2, SltCtl2, SltSta2", PORT),
];

/// Fields of version 1.
const SHORT_FIELDS: usize = 12;

/// Version 1: no second set of registers.
pub(super) static SHORT: Structure = Structure {
    id: StructureId::Standard(capability::EXPRESS),
    name: "Express (version 1)",
    length: 20,
    fields: FIELDS.split_at(SHORT_FIELDS).0,
};

/// Version 2.
pub(super) static LONG: Structure = Structure {
    id: StructureId::Standard(capability::EXPRESS),
    name: "Express",
    length: 60,
    fields: &FIELDS,
};
