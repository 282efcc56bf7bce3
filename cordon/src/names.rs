//! Names of vendors, devices and classes, from the list of the PCI ID project (the `pci-ids` crate).

use pci_ids::{Class, Device, FromId as _, Subclass, Vendor};
use serde::Serialize;

/// A device's numbers in hexadecimal, and their names.
#[derive(Serialize)]
pub(crate) struct Ids {
    pub(crate) vendor: String,
    pub(crate) device: String,
    pub(crate) vendor_name: Option<&'static str>,
    pub(crate) device_name: Option<&'static str>,
    pub(crate) class: String,
    pub(crate) class_name: &'static str,
}

impl Ids {
    /// Of these numbers; `class` has 24 bits.
    pub(crate) fn of(vendor: u16, device: u16, class: u32) -> Self {
        Self {
            vendor: format!("{vendor:04x}"),
            device: format!("{device:04x}"),
            vendor_name: self::vendor(vendor),
            device_name: self::device(vendor, device),
            class: format!("{class:06x}"),
            class_name: self::class(class),
        }
    }
}

/// The vendor's name.
fn vendor(vendor: u16) -> Option<&'static str> {
    Vendor::from_id(vendor).map(Vendor::name)
}

/// The device's name.
fn device(vendor: u16, device: u16) -> Option<&'static str> {
    Device::from_vid_pid(vendor, device).map(Device::name)
}

/// What a class code of 24 bits means: the subclass where that has a name, otherwise the base class.
pub(crate) fn class(class: u32) -> &'static str {
    let [_, base, sub, _] = class.to_be_bytes();
    let name = Subclass::from_cid_sid(base, sub).map(Subclass::name);
    name.or_else(|| Class::from_id(base).map(Class::name)).unwrap_or("Unknown class")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_list() {
        assert_eq!(class(0x01_08_02), "Non-Volatile memory controller");
        // A subclass without a name is told by its base class.
        assert_eq!(class(0x01_7f_00), "Mass storage controller");
        assert_eq!(class(0x77_00_00), "Unknown class");
        assert_eq!(vendor(0x8086), Some("Intel Corporation"));
        assert!(device(0x8086, 0x1237).unwrap().starts_with("440FX"));
        assert_eq!((device(0x8086, 0xfffe), vendor(0xc0d0)), (None, None));
    }
}
