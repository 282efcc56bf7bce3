//! The type 0 header.

use super::field::{Field, Structure, StructureId};

const IDENTITY: &str = "Hardwired in the device";
const RESERVED: &str = "Reserved";

/// The header.
pub(super) static HEADER: Structure = Structure {
    id: StructureId::Header,
    name: "Header",
    length: 0x40,
    fields: &[
        Field::read_only((0x00, 4), "Vendor and device id", IDENTITY),
        Field::shadowed(
            (0x04, 2),
            "COMMAND",
            "Forwarded byte by byte (P6.1), MEM after windows are withdrawn; shown as the guest left it, since the host's claim sets bits of its own",
        ),
        Field::modelled(
            (0x06, 2),
            "STATUS: interrupt status",
            "The host takes the interrupts as messages: the guest's INTx line exists on our side only",
        )
        .bits(1 << 3),
        Field::read_only(
            (0x06, 2),
            "STATUS",
            "Its error bits are cleared by writing them: they belong to the host (P6.2)",
        )
        .bits(0xfff7),
        Field::read_only((0x08, 4), "Revision and class code", IDENTITY),
        Field::forwarded((0x0c, 1), "Cache line size", "Has no effect in PCI Express"),
        Field::forwarded((0x0d, 1), "Latency timer", "Has no effect in PCI Express"),
        Field::read_only((0x0e, 1), "Header type: layout", IDENTITY).bits(0x7f),
        Field::hidden(
            (0x0e, 1),
            "Header type: multi-function",
            "The guest's slot is the VMM's to fill; the host's is not visible",
        )
        .bits(0x80),
        Field::read_only(
            (0x0f, 1),
            "BIST",
            "A self test takes the device from the bus for up to 2 s without the host knowing",
        ),
        Field::modelled(
            (0x10, 24),
            "BAR registers",
            "The host owns address decoding (P6.2); the guest places BARs in its own address space",
        ),
        Field::read_only((0x28, 4), "CardBus CIS pointer", IDENTITY),
        Field::read_only((0x2c, 4), "Subsystem ids", IDENTITY),
        Field::hidden(
            (0x30, 4),
            "Expansion ROM register",
            "The ROM is not passed through (P3.3), and its enable bit would take over BAR decoders",
        ),
        Field::read_only((0x34, 1), "Capability pointer", IDENTITY),
        Field::read_only((0x35, 7), "Reserved", RESERVED),
        Field::modelled(
            (0x3c, 1),
            "Interrupt line",
            "A note of firmware about its own routing; the host has one of its own in the device",
        ),
        Field::modelled(
            (0x3d, 1),
            "Interrupt pin",
            "The pin that the guest sees is the VMM's choice; hardwired for the guest",
        ),
        Field::read_only((0x3e, 2), "Minimum grant and maximum latency", IDENTITY),
    ],
};
