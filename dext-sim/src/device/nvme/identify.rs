//! The data of Identify and Get Log Page.

use super::MDTS;

fn text(page: &mut [u8], at: usize, length: usize, text: &str) {
    page[at..at + length].fill(b' ');
    page[at..at + text.len()].copy_from_slice(text.as_bytes());
}

/// CNS 1: the controller. Controllers with one name would be paths to one subsystem, so each has
/// its own.
pub(super) fn controller(serial: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[0..2].copy_from_slice(&0xc0d0u16.to_le_bytes());
    page[2..4].copy_from_slice(&0xc0d0u16.to_le_bytes());
    text(&mut page, 4, 20, &format!("CORDON{serial:012x}"));
    text(&mut page, 24, 40, "Cordon simulated NVMe");
    text(&mut page, 64, 8, "1.0");
    page[77] = MDTS;
    page[78] = 1;
    page[80..84].copy_from_slice(&0x0001_0400u32.to_le_bytes());
    // Abort limit, event limit, firmware slots, log pages.
    (page[258], page[259], page[260], page[262]) = (3, 3, 0x03, 3);
    page[266..268].copy_from_slice(&343u16.to_le_bytes());
    page[268..270].copy_from_slice(&353u16.to_le_bytes());
    // Queue entries of 64 and 16 bytes; one namespace.
    (page[512], page[513]) = (0x66, 0x44);
    page[516..520].copy_from_slice(&1u32.to_le_bytes());
    // Write Zeroes; a volatile cache that Flush empties.
    page[520] = 1 << 3;
    page[525] = 1;
    let name = format!("nqn.2026-01.example.cordon:{serial:x}");
    page[768..768 + name.len()].copy_from_slice(name.as_bytes());
    page
}

/// CNS 0: the namespace.
pub(super) fn namespace(blocks: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    for at in [0, 8, 16] {
        page[at..at + 8].copy_from_slice(&blocks.to_le_bytes());
    }
    // One format: 512 bytes.
    page[130] = 9;
    page
}

/// CNS 2: namespaces above `after`.
pub(super) fn namespaces(after: u32) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[0] = u8::from(after < 1);
    page
}

/// CNS 3: the namespace's identifiers: one UUID.
pub(super) fn descriptors(serial: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    (page[0], page[1]) = (3, 16);
    page[4..12].copy_from_slice(b"cordonNS");
    page[12..20].copy_from_slice(&serial.to_be_bytes());
    page
}

/// Log page 2: health. Everything zero but the temperature, 300 K.
pub(super) fn log(page: u32, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length.max(512)];
    match page {
        1 | 3 => {}
        2 => {
            bytes[1..3].copy_from_slice(&300u16.to_le_bytes());
            (bytes[3], bytes[4]) = (100, 10);
        }
        _ => return None,
    }
    bytes.truncate(length);
    Some(bytes)
}
