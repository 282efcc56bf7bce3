//! Config spaces of devices, and by hand, from the specification and P6.4, what becomes of each of their bytes.
//! Nothing here is computed by the crate under test.

use std::ops::Range;

/// A byte that is answered from our side: which bits, which of these a guest can change, and what they are
/// before it does.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) at: u16,
    pub(crate) shown: u8,
    pub(crate) writable: u8,
    pub(crate) initial: u8,
}

/// A device and what is expected of it.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) config: Vec<u8>,
    pub(crate) bars: [Option<(u64, u8)>; 6],
    /// Bits of the device that a guest's write changes; no other byte below 0x40 or above 0xff, and every
    /// bit of the rest.
    pub(crate) writable: Vec<(Range<u16>, u8)>,
    pub(crate) cells: Vec<Cell>,
    /// Bits that are always sent as 0, by byte.
    pub(crate) sent_as_zero: Vec<(u16, u8)>,
    /// Bits that start a reset.
    pub(crate) resets: Vec<(u16, u8)>,
    /// The byte with the power state, and whether the function keeps its state in D3hot.
    pub(crate) power: Option<(u16, bool)>,
    /// The byte with the maximum read request size, bits 6:4.
    pub(crate) read_request: Option<u16>,
}

fn cell(at: u16, shown: u8, writable: u8, initial: u8) -> Cell {
    Cell { at, shown, writable, initial }
}

/// Whole bytes from `at` on, as pairs of what can be changed and what it is.
fn cells(at: u16, bytes: &[(u8, u8)]) -> Vec<Cell> {
    (at..).zip(bytes).map(|(at, (writable, initial))| cell(at, 0xff, *writable, *initial)).collect()
}

const ALL: (u8, u8) = (0xff, 0);
const NONE: (u8, u8) = (0, 0);

/// The header of an ordinary function: a 64-bit BAR of 16 KiB in 0 and 1, and the first capability.
fn header(config: &mut [u8], first: u8) {
    config[..0x10].copy_from_slice(&[
        0x86, 0x80, 0x34, 0x12, 0x06, 0x05, 0x10, 0x20, 0x03, 0x02, 0x08, 0x01, 0x10, 0x20, 0x80,
        0x80,
    ]);
    config[0x10..0x14].copy_from_slice(&[0x04, 0x00, 0x50, 0xe0]);
    config[0x2c..0x30].copy_from_slice(&[1, 2, 3, 4]);
    config[0x30..0x34].copy_from_slice(&[1, 0, 0xc0, 0xfe]);
    config[0x34] = first;
    config[0x3c..0x40].copy_from_slice(&[11, 2, 3, 4]);
}

/// COMMAND (without I/O space), STATUS's interrupt bit, one 64-bit BAR of 16 KiB, the ROM, line and pin.
fn header_cells() -> Vec<Cell> {
    let mut all = cells(4, &[(0x46, 0), (0x05, 0)]);
    all.push(cell(6, 1 << 3, 0, 0));
    all.push(cell(0x0e, 0x80, 0, 0));
    all.extend(cells(0x10, &[(0x00, 4), (0xc0, 0), ALL, ALL, ALL, ALL, ALL, ALL]));
    all.extend(cells(0x18, &[NONE; 16]));
    all.extend(cells(0x30, &[NONE; 4]));
    all.extend(cells(0x3c, &[ALL, (0, 2)]));
    all
}

fn header_writable() -> Vec<(Range<u16>, u8)> {
    vec![(4..6, 0xff), (0x0c..0x0e, 0xff)]
}

/// MSI with 64-bit addresses and masks, of 8 vectors, at `at`.
fn wide_msi(at: u16) -> Vec<Cell> {
    let mut all = cells(at + 2, &[(0x71, 0x86)]);
    all.push(cell(at + 3, 0x01, 0, 0x01));
    all.extend(cells(at + 4, &[(0xfc, 0), ALL, ALL, ALL, ALL, ALL, ALL, ALL]));
    all.extend(cells(at + 12, &[ALL, ALL, NONE, NONE, ALL, NONE, NONE, NONE]));
    all.extend(cells(at + 20, &[NONE; 4]));
    all
}

fn put(config: &mut [u8], at: usize, bytes: &[u8]) {
    config[at..at + bytes.len()].copy_from_slice(bytes);
}

const ONE_BAR: [Option<(u64, u8)>; 6] = [Some((0x4000, 0b0100)), None, None, None, None, None];

/// An NVMe controller as they are sold: power management that keeps its state, MSI, PCI Express 2 with
/// function-level reset, MSI-X, and extended capabilities.
fn controller() -> Sample {
    let mut config = vec![0x00; 4096];
    header(&mut config, 0x40);
    put(&mut config, 0x40, &[0x01, 0x50, 0x03, 0xfe, 0x08, 0x81, 0x00, 0x00]);
    put(&mut config, 0x50, &[0x05, 0x70, 0x86, 0x01]);
    // DevCtl 0x2950: no snoop, 512 bytes read request, extended tags, 512 bytes payload, relaxed ordering.
    put(
        &mut config,
        0x70,
        &[0x10, 0xb0, 0x02, 0x00, 0x02, 0x80, 0x00, 0x10, 0x50, 0x29, 0x0f, 0x00],
    );
    put(&mut config, 0x98, &[0x06, 0x04, 0x00, 0x00]);
    put(&mut config, 0xb0, &[0x11, 0x00, 0x1f, 0x80, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0]);
    put(&mut config, 0x100, &[0x01, 0x00, 0x02, 0x15]);
    put(&mut config, 0x150, &[0x03, 0x00, 0x01, 0x20]);
    put(&mut config, 0x200, &[0x0b, 0x00, 0x01, 0x30, 0x01, 0x00, 0x80, 0x01]);
    put(&mut config, 0x300, &[0x1e, 0x00, 0x01, 0x00]);
    let mut writable = header_writable();
    writable.extend([(0x40..0x44, 0), (0x44..0x45, 0x03), (0x45..0x48, 0), (0x50..0x68, 0)]);
    writable.extend([(0x70..0x78, 0), (0x78..0x79, 0x10), (0x79..0x7a, 0x78), (0x7a..0x98, 0)]);
    writable.extend([(0x98..0x99, 0x1f), (0x99..0xac, 0), (0xb0..0xbc, 0), (0x208..0x218, 0xff)]);
    let mut cells = header_cells();
    cells.extend([cell(0x42, 0, 0, 0), cell(0x43, 0xfe, 0, 0), cell(0x44, 0x03, 0x03, 0)]);
    cells.push(cell(0x45, 0x81, 0, 0));
    cells.extend(wide_msi(0x50));
    // Of DevCtl: error reporting, payload, phantom functions and extended tags are kept as written.
    cells.extend([cell(0x78, 0xef, 0xef, 0x40), cell(0x79, 0x03, 0x03, 0x01)]);
    cells.extend([cell(0x98, 0xe0, 0xe0, 0x00), cell(0x99, 0xff, 0xff, 0x04)]);
    cells.push(cell(0xb3, 0xc0, 0xc0, 0));
    Sample {
        name: "controller",
        config,
        bars: ONE_BAR,
        writable,
        cells,
        sent_as_zero: vec![(0x79, 0x80)],
        resets: vec![(0x79, 0x80)],
        power: Some((0x44, true)),
        read_request: Some(0x79),
    }
}

/// A card of the first PCI Express: power management that loses its state, plain MSI, vital product data,
/// Advanced Features, a short Express capability, the vendor's own, Serial ATA, and an I/O BAR.
fn old_card() -> Sample {
    let mut config = vec![0x00; 4096];
    header(&mut config, 0xdc);
    put(&mut config, 0x20, &[0x01, 0xe0]);
    put(&mut config, 0xdc, &[0x01, 0x50, 0x02, 0x06, 0x00, 0x00]);
    put(&mut config, 0x50, &[0x05, 0x60, 0x02, 0x00]);
    put(&mut config, 0x60, &[0x03, 0x68, 0x00, 0x80]);
    put(&mut config, 0x68, &[0x13, 0x80, 0x06, 0x03]);
    put(&mut config, 0x80, &[0x10, 0x94, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00]);
    put(&mut config, 0x94, &[0x09, 0xa8, 0x10]);
    put(&mut config, 0xa8, &[0x12, 0x00, 0x10, 0x00, 0x48, 0x00]);
    let mut writable = header_writable();
    // The rest of MSI's 12 bytes is the device's, and so is what follows Advanced Features' 6.
    writable.extend([(0x50..0x5a, 0), (0x60..0x62, 0), (0x62..0x63, 0xff), (0x63..0x64, 0x7f)]);
    writable.extend([(0x64..0x68, 0), (0x68..0x6e, 0), (0x80..0x88, 0), (0x88..0x89, 0x10)]);
    writable.extend([(0x89..0x8a, 0x78), (0x8a..0x94, 0), (0x94..0x97, 0), (0xa8..0xb0, 0)]);
    // Neither power state nor anything else of power management: D3hot would cost the BARs.
    writable.push((0xdc..0xe4, 0));
    let mut cells = header_cells();
    for one in cells.iter_mut().filter(|cell| matches!(cell.at, 4 | 0x20 | 0x21)) {
        // 32 bytes of I/O space in BAR 4; the command register has its bit.
        (one.writable, one.initial) = match one.at {
            4 => (0x47, 0),
            0x20 => (0xe0, 1),
            _ => ALL,
        };
    }
    for one in cells.iter_mut().filter(|cell| matches!(cell.at, 0x22 | 0x23)) {
        one.writable = 0xff;
    }
    cells.extend(cells_of_plain_msi(0x50));
    cells.extend([cell(0x88, 0xef, 0xef, 0), cell(0x89, 0x03, 0x03, 0)]);
    cells.extend([cell(0xdf, 0xfe, 0, 0), cell(0xe0, 0x03, 0x03, 0), cell(0xe1, 0x81, 0, 0)]);
    Sample {
        name: "old card",
        config,
        bars: [Some((0x4000, 0b0100)), None, None, None, Some((32, 1)), None],
        writable,
        cells,
        // Express says that it has no function-level reset: its bit is sent as 0 all the same.
        sent_as_zero: vec![(0x63, 0x80), (0x6c, 0x01), (0x89, 0x80)],
        resets: vec![(0x6c, 0x01)],
        power: Some((0xe0, false)),
        read_request: Some(0x89),
    }
}

/// MSI with 32-bit addresses, no masks, of 2 vectors, at `at`.
fn cells_of_plain_msi(at: u16) -> Vec<Cell> {
    let mut all = cells(at + 2, &[(0x71, 0x02)]);
    all.push(cell(at + 3, 0x01, 0, 0));
    all.extend(cells(at + 4, &[(0xfc, 0), ALL, ALL, ALL, ALL, ALL]));
    all
}

/// A function without a list: all of the first 256 bytes behind the header is its own.
fn plain() -> Sample {
    let mut config = vec![0x00; 4096];
    header(&mut config, 0x40);
    config[6] = 0;
    config[0x40] = 0x05;
    Sample {
        name: "plain",
        config,
        bars: ONE_BAR,
        writable: header_writable(),
        cells: header_cells(),
        sent_as_zero: vec![],
        resets: vec![],
        power: None,
        read_request: None,
    }
}

/// A hostile device: capabilities twice, overlapping, unknown, outdated, a list that loops, and the extended
/// ones that reach furthest.
fn hostile() -> Sample {
    let mut config = vec![0x00; 4096];
    header(&mut config, 0x50);
    put(&mut config, 0x50, &[0x05, 0x58, 0x86, 0x01]);
    // The vendor's own, over the message address.
    put(&mut config, 0x58, &[0x09, 0x80, 0x20]);
    put(&mut config, 0x80, &[0x11, 0x90, 0x03, 0x00, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0]);
    put(&mut config, 0x90, &[0x11, 0xa0, 0x03, 0x00, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0]);
    put(&mut config, 0xa0, &[0x07, 0xb0]);
    put(&mut config, 0xb0, &[0x7e, 0xc0]);
    put(&mut config, 0xc0, &[0x15, 0x50]);
    put(&mut config, 0x100, &[0x10, 0x00, 0x01, 0x18]);
    put(&mut config, 0x180, &[0x0f, 0x00, 0x01, 0x20]);
    put(&mut config, 0x200, &[0x23, 0x00, 0x01, 0x28]);
    put(&mut config, 0x280, &[0x77, 0x00, 0x01, 0x2a]);
    put(&mut config, 0x2a0, &[0x0b, 0x00, 0x01, 0x18, 0x01, 0x00, 0x00, 0x01]);
    let mut writable = header_writable();
    writable.extend([(0x50..0x68, 0), (0x80..0x8c, 0), (0x90..0xa0, 0), (0xa0..0xa8, 0)]);
    writable.extend([(0xb0..0xb2, 0), (0xc0..0xe4, 0), (0x2a8..0x2b0, 0xff)]);
    let mut cells = header_cells();
    cells.extend(wide_msi(0x50));
    cells.push(cell(0x83, 0xc0, 0xc0, 0));
    Sample {
        name: "hostile",
        config,
        bars: ONE_BAR,
        writable,
        cells,
        sent_as_zero: vec![],
        resets: vec![],
        power: None,
        read_request: None,
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Sample> {
    vec![controller(), old_card(), plain(), hostile()]
}
