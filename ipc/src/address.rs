//! The address of a PCI function, `BB:DD.F` or `SSSS:BB:DD.F`, as people write it and as it travels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI function: segment 0..=65535, bus 0..=255, device 0..=31, function 0..=7.
///
/// The fields are private, so an address out of range cannot exist, not even one that a hostile
/// peer sent: decoding goes through [`PciAddress::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u8, u8, u8)", into = "(u16, u8, u8, u8)")]
pub struct PciAddress {
    segment: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// A string or a triple that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `BB:DD.F` or `SSSS:BB:DD.F`.
    #[error(
        "'{0}' is not a PCI address of the form BB:DD.F or SSSS:BB:DD.F \
         (hexadecimal, for example 01:00.0)"
    )]
    Malformed(String),
    /// The device number does not fit in five bits.
    #[error("PCI device number {0:#x} is above 1f")]
    Device(u8),
    /// The function number does not fit in three bits.
    #[error("PCI function number {0} is above 7")]
    Function(u8),
}

impl PciAddress {
    /// An address in segment 0 from its parts.
    ///
    /// # Errors
    /// [`AddressError`] when device is above 31 or function above 7.
    pub fn new(bus: u8, device: u8, function: u8) -> Result<Self, AddressError> {
        if device > 31 {
            return Err(AddressError::Device(device));
        }
        if function > 7 {
            return Err(AddressError::Function(function));
        }
        Ok(Self { segment: 0, bus, device, function })
    }

    /// The same address in another segment: hosts with several root bridges number each by itself.
    #[must_use]
    pub fn in_segment(self, segment: u16) -> Self {
        Self { segment, ..self }
    }

    /// Segment number.
    #[must_use]
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// Bus number.
    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0..=31.
    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0..=7.
    #[must_use]
    pub fn function(self) -> u8 {
        self.function
    }

    /// Whether both are functions of one physical device, and so share a connection process.
    #[must_use]
    pub fn same_device(self, other: Self) -> bool {
        (self.segment, self.bus, self.device) == (other.segment, other.bus, other.device)
    }
}

impl fmt::Display for PciAddress {
    /// Without the segment where that is 0, as on most hosts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "{:02x}:{:02x}.{:x}", self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || AddressError::Malformed(text.chars().take(32).collect());
        let hex = |part: &str, most: usize| {
            let digits = !part.is_empty() && part.len() <= most;
            let plain = part.bytes().all(|b| b.is_ascii_hexdigit());
            if digits && plain { u16::from_str_radix(part, 16).ok() } else { None }
        };
        let byte = |part: &str| hex(part, 2).and_then(|value| u8::try_from(value).ok());
        let (first, rest) = text.split_once(':').ok_or_else(malformed)?;
        let (segment, bus, rest) = match rest.split_once(':') {
            Some((bus, rest)) => (hex(first, 4).ok_or_else(malformed)?, bus, rest),
            None => (0, first, rest),
        };
        let (device, function) = rest.split_once('.').ok_or_else(malformed)?;
        match (byte(bus), byte(device), byte(function)) {
            (Some(bus), Some(device), Some(function)) => {
                Self::new(bus, device, function).map(|one| one.in_segment(segment))
            }
            _ => Err(malformed()),
        }
    }
}

impl TryFrom<(u16, u8, u8, u8)> for PciAddress {
    type Error = AddressError;

    fn try_from(parts: (u16, u8, u8, u8)) -> Result<Self, Self::Error> {
        let (segment, bus, device, function) = parts;
        Self::new(bus, device, function).map(|one| one.in_segment(segment))
    }
}

impl From<PciAddress> for (u16, u8, u8, u8) {
    fn from(address: PciAddress) -> Self {
        (address.segment, address.bus, address.device, address.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_are_written() {
        for text in ["00:00.0", "01:00.1", "ff:1f.7", "0001:02:03.4", "ffff:ff:1f.7"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_are_named() {
        for text in [
            "",
            "1",
            "01:00",
            "01.00:0",
            "0g:00.0",
            "01:00.0.0",
            "001:00.0",
            "+1:00.0",
            "00001:01:00.0",
            ":01:00.0",
            "0:0:0:0.0",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert_eq!(error, AddressError::Malformed(text.to_owned()), "{text}");
        }
        let long: PciAddress = "0000:01:00.0".parse().unwrap();
        assert_eq!(long.to_string(), "01:00.0");
        assert_eq!("01:20.0".parse::<PciAddress>(), Err(AddressError::Device(0x20)));
        assert_eq!("01:00.8".parse::<PciAddress>(), Err(AddressError::Function(8)));
    }

    #[test]
    fn a_peer_cannot_make_an_address_out_of_range() {
        let bytes = crate::codec::encode(&(0u16, 1u8, 32u8, 0u8), 16).unwrap();
        assert!(crate::codec::decode::<PciAddress>(&bytes).is_err());
    }
}
