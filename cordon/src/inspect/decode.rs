//! Config space in words, as people know it from `lspci -vv`.
//!
//! What is where, and what it is called, is known to `cordon_pci`; here are the lines.

use cordon_pci::capabilities::{
    self, Capability, CapabilityId, ExpressCapability, MsiCapability, MsixCapability,
    PowerCapability, VendorCapability,
};
use cordon_pci::decode::{self, Flags, Link};
use cordon_pci::header::Header;
use cordon_pci::registers::{capability, extended};
use serde::Serialize;

/// One decoded part of config space.
#[derive(Serialize)]
pub(crate) struct Entry {
    pub(crate) offset: u16,
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

/// Decodes up to 4096 bytes; those that are not there are zero.
pub(crate) fn decode(config: &[u8]) -> Decoded {
    let header = Header::parse(config);
    let all = capabilities::walk(capabilities::reader(config));
    let each = all.map(|Ok(found)| Entry {
        offset: found.offset,
        name: name(found.id),
        details: details(config, found),
    });
    Decoded {
        command: flags(header.command.into(), decode::COMMAND),
        status: flags(header.status.into(), decode::STATUS),
        revision: header.revision,
        multi_function: header.header_type & 0x80 != 0,
        subsystem: format!("{:04x}:{:04x}", header.subsystem_vendor, header.subsystem),
        interrupt_pin: header.interrupt_pin,
        capabilities: each.collect(),
    }
}

/// Flags as "Name+ Other-".
fn flags(value: u32, names: &Flags) -> String {
    let sign = |bit: u32| if value >> bit & 1 != 0 { '+' } else { '-' };
    let all: Vec<String> =
        names.iter().map(|(bit, name)| format!("{name}{}", sign(*bit))).collect();
    all.join(" ")
}

fn name(id: CapabilityId) -> String {
    match (decode::capability_name(id), id) {
        (Some(name), _) => name.to_owned(),
        (None, CapabilityId::Standard(id)) => format!("Capability {id:#04x}"),
        (None, CapabilityId::Extended(id)) => format!("Extended capability {id:#06x}"),
    }
}

/// What a capability says; nothing of one that does not fit where it is.
fn details(config: &[u8], found: Capability) -> Vec<String> {
    let (read, at) = (capabilities::reader(config), found.offset);
    let said = match found.id {
        CapabilityId::Standard(capability::POWER_MANAGEMENT) => {
            let Ok(power) = PowerCapability::read(read, at);
            power.map(|power| vec![format!("version {}, state D{}", power.version, power.state)])
        }
        CapabilityId::Standard(capability::MSI) => {
            let Ok(msi) = MsiCapability::read(read, at);
            msi.map(|msi| message_signalled(&msi, control(config, at)))
        }
        CapabilityId::Standard(capability::VENDOR) => {
            let Ok(vendor) = VendorCapability::read(read, at);
            Some(vec![format!("{} bytes", vendor.length)])
        }
        CapabilityId::Standard(capability::EXPRESS) => {
            let Ok(express) = ExpressCapability::read(read, at);
            express.map(|express| self::express(&express, Link::parse(config, at)))
        }
        CapabilityId::Standard(capability::MSIX) => {
            let Ok(msix) = MsixCapability::read(read, at);
            msix.map(|msix| extended_messages(&msix, control(config, at)))
        }
        CapabilityId::Standard(_) => None,
        CapabilityId::Extended(id) => {
            let mut said = vec![format!("version {}", found.version)];
            if id == extended::SERIAL_NUMBER {
                said.push(format!("{:016x}", decode::serial_number(config, at)));
            }
            Some(said)
        }
    };
    said.unwrap_or_default()
}

/// The control register of MSI or MSI-X, as the device shows it.
fn control(config: &[u8], at: u16) -> u32 {
    let Ok(word) = capabilities::reader(config)(at);
    word >> 16
}

fn message_signalled(msi: &MsiCapability, control: u32) -> Vec<String> {
    let enabled = 1 << (control >> 4 & 0b111);
    vec![flags(control, decode::MSI_CONTROL), format!("vectors {enabled} of {}", msi.vectors)]
}

fn extended_messages(msix: &MsixCapability, control: u32) -> Vec<String> {
    let place = |bar, offset| format!("BAR {bar} offset {offset:#x}");
    vec![
        flags(control, decode::MSIX_CONTROL),
        format!("{} vectors", msix.vectors),
        format!("table: {}", place(msix.table_bar, msix.table_offset)),
        format!("pending bits: {}", place(msix.pba_bar, msix.pba_offset)),
    ]
}

fn express(express: &ExpressCapability, link: Link) -> Vec<String> {
    let reset = if express.function_level_reset { '+' } else { '-' };
    let Link { width, generation, max_width, max_generation } = link;
    vec![
        format!("version {}, {}", express.version, decode::port_name(express.port)),
        format!("MaxPayload {} bytes", express.max_payload),
        format!("FLReset{reset}"),
        format!("link: x{width} gen{generation} of x{max_width} gen{max_generation}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PM, MSI, PCI Express, MSI-X and a vendor's own; a serial number and one that is not known.
    fn config() -> Vec<u8> {
        let mut config = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| {
            config[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0x00, &[0xd0, 0xc0, 0x02, 0x00, 0x06, 0x04, 0x10, 0x00, 0x01]);
        put(0x0e, &[0x80]);
        put(0x2c, &[0xd0, 0xc0, 0x03, 0x00]);
        put(0x34, &[0x40]);
        put(0x3d, &[0x01]);
        put(0x40, &[0x01, 0x50, 0x03, 0x00, 0x0b, 0x00]);
        put(0x50, &[0x05, 0x70, 0xab, 0x00]);
        put(0x70, &[0x10, 0xb0, 0x02, 0x00, 0x02, 0x00, 0x00, 0x10]);
        put(0x7c, &[0x43, 0x00, 0x00, 0x00, 0x00, 0x00, 0x22, 0x10]);
        put(0xb0, &[0x11, 0xc0, 0x1f, 0x80, 0x00, 0x80, 0x00, 0x00, 0x02, 0xc0, 0x00, 0x00]);
        put(0xc0, &[0x09, 0xd0, 0x14]);
        put(0xd0, &[0xee, 0x00]);
        put(0x100, &[0x03, 0x00, 0x01, 0x20, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        put(0x200, &[0xee, 0x0e, 0x02, 0x00]);
        config
    }

    #[test]
    fn everything_is_in_words() {
        let decoded = decode(&config());
        assert_eq!(decoded.command, "I/O- Mem+ BusMaster+ ParErr- SERR- DisINTx+");
        assert!(decoded.status.contains("Cap+") && decoded.multi_function);
        assert_eq!((decoded.revision, decoded.interrupt_pin), (1, 1));
        assert_eq!(decoded.subsystem, "c0d0:0003");
        let lines: Vec<String> = decoded
            .capabilities
            .iter()
            .map(|one| format!("{:#x} {}: {}", one.offset, one.name, one.details.join("; ")))
            .collect();
        assert_eq!(
            lines,
            [
                "0x40 Power Management: version 3, state D3",
                "0x50 MSI: Enable+ 64bit+ Maskable-; vectors 4 of 32",
                "0x70 Express: version 2, Endpoint; MaxPayload 512 bytes; FLReset+; \
                 link: x2 gen2 of x4 gen3",
                "0xb0 MSI-X: Enable+ Masked-; 32 vectors; table: BAR 0 offset 0x8000; \
                 pending bits: BAR 2 offset 0xc000",
                "0xc0 Vendor Specific: 20 bytes",
                "0xd0 Capability 0xee: ",
                "0x100 Device Serial Number: version 1; 0123456789abcdef",
                "0x200 Extended capability 0x0eee: version 2",
            ]
        );
    }

    #[test]
    fn a_list_that_loops_ends() {
        let mut config = config();
        config[0x51] = 0x40;
        config[0x100..0x104].copy_from_slice(&0x1001_0003u32.to_le_bytes());
        let names: Vec<_> = decode(&config).capabilities.into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["Power Management", "MSI", "Device Serial Number"]);
    }

    #[test]
    fn all_ones_and_nothing_at_all_are_no_trouble() {
        assert!(decode(&[0xff; 4096]).capabilities.is_empty());
        assert!(decode(&[]).capabilities.is_empty());
    }
}
