//! Config space in words, as people know it from `lspci -vv`.

use serde::Serialize;

/// One decoded part of config space.
#[derive(Serialize)]
pub(crate) struct Entry {
    pub(crate) offset: usize,
    pub(crate) name: String,
    pub(crate) details: Vec<String>,
}

/// The header in words.
#[derive(Serialize)]
pub(crate) struct Decoded {
    pub(crate) command: String,
    pub(crate) status: String,
    pub(crate) revision: u8,
    pub(crate) multi_function: bool,
    pub(crate) subsystem: String,
    pub(crate) interrupt_pin: u8,
    pub(crate) capabilities: Vec<Entry>,
}

/// A view of config space; reads past the end are zero.
struct Space<'c>(&'c [u8]);

impl Space<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) | u32::from(self.half(at + 2)) << 16
    }
}

/// Flags as "Name+ Other-".
fn flags(value: u32, names: &[(u32, &str)]) -> String {
    let sign = |bit: u32| if value >> bit & 1 != 0 { '+' } else { '-' };
    let all: Vec<String> =
        names.iter().map(|(bit, name)| format!("{name}{}", sign(*bit))).collect();
    all.join(" ")
}

/// Decodes 4096 bytes.
pub(crate) fn decode(bytes: &[u8]) -> Decoded {
    let space = Space(bytes);
    let command =
        [(0, "I/O"), (1, "Mem"), (2, "BusMaster"), (6, "ParErr"), (8, "SERR"), (10, "DisINTx")];
    let status = [
        (3, "INTx"),
        (4, "Cap"),
        (8, "ParErr"),
        (11, ">TAbort"),
        (12, "<TAbort"),
        (13, "<MAbort"),
        (14, ">SERR"),
        (15, "<PERR"),
    ];
    let mut capabilities = Vec::new();
    if space.half(0x06) & 0x10 != 0 {
        walk(&space, &mut capabilities);
    }
    walk_extended(&space, &mut capabilities);
    Decoded {
        command: flags(space.half(0x04).into(), &command),
        status: flags(space.half(0x06).into(), &status),
        revision: space.byte(0x08),
        multi_function: space.byte(0x0e) & 0x80 != 0,
        subsystem: format!("{:04x}:{:04x}", space.half(0x2c), space.half(0x2e)),
        interrupt_pin: space.byte(0x3d),
        capabilities,
    }
}

/// The list is the device's: at most as many entries as fit.
fn walk(space: &Space<'_>, capabilities: &mut Vec<Entry>) {
    let mut at = usize::from(space.byte(0x34) & 0xfc);
    for _ in 0..48 {
        if at < 0x40 {
            return;
        }
        let (name, details) = capability(space, at);
        capabilities.push(Entry { offset: at, name, details });
        at = usize::from(space.byte(at + 1) & 0xfc);
    }
}

fn capability(space: &Space<'_>, at: usize) -> (String, Vec<String>) {
    match space.byte(at) {
        0x01 => (
            "Power Management".to_owned(),
            vec![format!(
                "version {}, state D{}",
                space.half(at + 2) & 0x7,
                space.half(at + 4) & 0x3
            )],
        ),
        0x05 => ("MSI".to_owned(), msi(space, at)),
        0x09 => ("Vendor Specific".to_owned(), vec![format!("{} bytes", space.byte(at + 2))]),
        0x10 => ("Express".to_owned(), express(space, at)),
        0x11 => ("MSI-X".to_owned(), msix(space, at)),
        other => (format!("Capability {other:#04x}"), Vec::new()),
    }
}

fn msi(space: &Space<'_>, at: usize) -> Vec<String> {
    let control = space.half(at + 2);
    let (capable, enabled) = (1 << ((control >> 1) & 7), 1 << ((control >> 4) & 7));
    vec![
        flags(control.into(), &[(0, "Enable"), (7, "64bit"), (8, "Maskable")]),
        format!("vectors {enabled} of {capable}"),
    ]
}

fn msix(space: &Space<'_>, at: usize) -> Vec<String> {
    let control = space.half(at + 2);
    let place = |at| format!("BAR {} offset {:#x}", space.word(at) & 7, space.word(at) & !7);
    vec![
        flags(control.into(), &[(15, "Enable"), (14, "Masked")]),
        format!("{} vectors", (control & 0x7ff) + 1),
        format!("table: {}", place(at + 4)),
        format!("pending bits: {}", place(at + 8)),
    ]
}

fn express(space: &Space<'_>, at: usize) -> Vec<String> {
    let kind = match (space.half(at + 2) >> 4) & 0xf {
        0 => "Endpoint",
        1 => "Legacy Endpoint",
        9 => "Root Complex Integrated Endpoint",
        _ => "other port",
    };
    let capabilities = space.word(at + 4);
    let link = space.word(at + 0x0c);
    let status = space.half(at + 0x12);
    vec![
        format!("version {}, {kind}", space.half(at + 2) & 0xf),
        format!("MaxPayload {} bytes", 128 << (capabilities & 7)),
        flags(capabilities, &[(28, "FLReset")]),
        format!(
            "link: x{} gen{} of x{} gen{}",
            (status >> 4) & 0x3f,
            status & 0xf,
            (link >> 4) & 0x3f,
            link & 0xf
        ),
    ]
}

fn walk_extended(space: &Space<'_>, capabilities: &mut Vec<Entry>) {
    let mut at = 0x100;
    for _ in 0..64 {
        let header = space.word(at);
        if at < 0x100 || header == 0 || header == u32::MAX {
            return;
        }
        let (id, version) = (header & 0xffff, (header >> 16) & 0xf);
        let name = match id {
            0x01 => "Advanced Error Reporting".to_owned(),
            0x03 => "Device Serial Number".to_owned(),
            0x0b => "Vendor Specific Extended".to_owned(),
            0x0d => "Access Control Services".to_owned(),
            0x0e => "Alternative Routing-ID".to_owned(),
            0x10 => "Single Root I/O Virtualization".to_owned(),
            0x15 => "Resizable BAR".to_owned(),
            0x18 => "Latency Tolerance Reporting".to_owned(),
            0x19 => "Secondary PCI Express".to_owned(),
            0x1e => "L1 PM Substates".to_owned(),
            other => format!("Extended capability {other:#06x}"),
        };
        let mut details = vec![format!("version {version}")];
        if id == 0x03 {
            details.push(format!("{:08x}{:08x}", space.word(at + 8), space.word(at + 4)));
        }
        capabilities.push(Entry { offset: at, name, details });
        at = usize::try_from(header >> 20).unwrap_or(0) & 0xffc;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_loops_ends() {
        let mut bytes = vec![0; 4096];
        bytes[0x06] = 0x10;
        bytes[0x34] = 0x40;
        (bytes[0x40], bytes[0x41]) = (0x01, 0x40);
        bytes[0x100..0x104].copy_from_slice(&0x1000_0001u32.to_le_bytes());
        let decoded = decode(&bytes);
        assert!(decoded.capabilities.len() <= 48 + 64);
    }

    #[test]
    fn all_ones_and_nothing_at_all_are_no_trouble() {
        decode(&[0xff; 4096]);
        decode(&[]);
    }
}
