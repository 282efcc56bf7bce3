//! The fixed fields of a type 0 header: read from a device, or made for one that exists only here.

use crate::bytes;
use crate::registers::{
    CAPABILITY_POINTER, COMMAND, DEVICE, HEADER, HEADER_TYPE, INTERRUPT_PIN, REVISION, STATUS,
    SUBSYSTEM, VENDOR,
};

/// The header in fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// COMMAND.
    pub command: u16,
    /// STATUS.
    pub status: u16,
    /// Revision.
    pub revision: u8,
    /// Class code: base class in bits 23:16, subclass in 15:8, programming interface in 7:0.
    pub class: u32,
    /// Header type: layout in bits 6:0, multi-function in bit 7.
    pub header_type: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Offset of the first capability, 0 without any.
    pub capabilities: u8,
    /// Interrupt pin: 0 none, 1 INTA to 4 INTD.
    pub interrupt_pin: u8,
}

impl Header {
    /// Reads the header; bytes that are not there are zero.
    #[must_use]
    pub fn parse(config: &[u8]) -> Self {
        Self {
            vendor: bytes::half(config, VENDOR),
            device: bytes::half(config, DEVICE),
            command: bytes::half(config, COMMAND),
            status: bytes::half(config, STATUS),
            revision: bytes::byte(config, REVISION),
            class: bytes::word(config, REVISION) >> 8,
            header_type: bytes::byte(config, HEADER_TYPE),
            subsystem_vendor: bytes::half(config, SUBSYSTEM),
            subsystem: bytes::half(config, SUBSYSTEM + 2),
            capabilities: bytes::byte(config, CAPABILITY_POINTER),
            interrupt_pin: bytes::byte(config, INTERRUPT_PIN),
        }
    }

    /// The header's bytes, with BARs, ROM and all other fields 0. Bits of the class code above 23
    /// are dropped.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut config = [0; HEADER];
        let class = (self.class << 8 | u32::from(self.revision)).to_le_bytes();
        for (at, half) in [
            (VENDOR, self.vendor),
            (DEVICE, self.device),
            (COMMAND, self.command),
            (STATUS, self.status),
            (SUBSYSTEM, self.subsystem_vendor),
            (SUBSYSTEM + 2, self.subsystem),
        ] {
            bytes::put(&mut config, at, &half.to_le_bytes());
        }
        bytes::put(&mut config, REVISION, &class);
        config[HEADER_TYPE] = self.header_type;
        config[CAPABILITY_POINTER] = self.capabilities;
        config[INTERRUPT_PIN] = self.interrupt_pin;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_made() {
        let header = Header {
            vendor: 0x1b36,
            device: 0x0015,
            command: 6,
            status: 0x10,
            revision: 1,
            class: 0x08_80_00,
            header_type: 0x80,
            subsystem_vendor: 0x1234,
            subsystem: 0x5678,
            capabilities: 0x40,
            interrupt_pin: 1,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..12], [0x36, 0x1b, 0x15, 0, 6, 0, 0x10, 0, 1, 0, 0x80, 8]);
        assert_eq!(Header::parse(&bytes), header);
        assert_eq!(Header::parse(&[]), Header::default());
    }
}
