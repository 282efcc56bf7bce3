//! What a command line or a file names: a function, or every function of a device.

use std::fmt;
use std::str::FromStr;

use ipc::PciAddress;
use ipc::address::AddressError;

/// One or all functions of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `BB:DD.F`
    Function(PciAddress),
    /// `BB:DD`: every function that the dext offers of it. The address is that of its function 0.
    Device(PciAddress),
}

impl Target {
    /// Which of `offered` it names, in the order of their addresses.
    ///
    /// # Errors
    /// When it is a device of which none is offered. Whether a single function is offered is not looked
    /// for: attaching it says that.
    pub(crate) fn functions(self, offered: &[PciAddress]) -> Result<Vec<PciAddress>, String> {
        let device = match self {
            Self::Function(address) => return Ok(vec![address]),
            Self::Device(device) => device,
        };
        let mut of_it: Vec<PciAddress> =
            offered.iter().copied().filter(|one| one.same_device(device)).collect();
        of_it.sort_unstable();
        of_it.dedup();
        if of_it.is_empty() {
            return Err(format!("the dext offers no function of {self}"));
        }
        Ok(of_it)
    }
}

/// What stands before the address of a function of Linux's VFIO's.
const VFIO: &str = "vfio:";

/// A target as it is named: with `vfio:` before it, it says that it is of Linux's VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// What it names.
    pub(crate) target: Target,
    /// Whether it says so.
    pub(crate) is_vfio: bool,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_vfio { VFIO } else { "" }, self.target)
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let of_vfio = text.strip_prefix(VFIO);
        let target = of_vfio.unwrap_or(text).parse()?;
        Ok(Self { target, is_vfio: of_vfio.is_some() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => address.fmt(f),
            Self::Device(device) => {
                let text = device.to_string();
                f.write_str(text.rsplit_once('.').map_or(&text, |(device, _)| device))
            }
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('.') {
            return text
                .parse()
                .map(Self::Function)
                .map_err(|error: AddressError| error.to_string());
        }
        match format!("{text}.0").parse() {
            Ok(address) => Ok(Self::Device(address)),
            Err(AddressError::Malformed(_)) => Err(format!(
                "'{}' is neither a function, BB:DD.F, nor a device, BB:DD (hexadecimal, for example \
                 01:00.0 or 01:00)",
                text.chars().take(32).collect::<String>()
            )),
            Err(other) => Err(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn a_function_and_a_device_are_told_apart_and_written_as_they_are_read() {
        for (text, wanted) in [
            ("01:00.1", Target::Function(address("01:00.1"))),
            ("01:00", Target::Device(address("01:00.0"))),
            ("0002:01:1f", Target::Device(address("0002:01:1f.0"))),
        ] {
            assert_eq!(text.parse(), Ok(wanted));
            assert_eq!(wanted.to_string(), text);
        }
        for (text, says) in [
            ("banana", "'banana' is neither a function, BB:DD.F, nor a device"),
            ("01", "'01' is neither"),
            ("01:20", "device number 0x20"),
            ("01:20.0", "device number 0x20"),
            ("01:00.", "'01:00.' is not a PCI address of the form BB:DD.F"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_target_may_say_that_it_is_of_vfio() {
        for (text, is_vfio) in
            [("vfio:0001:01:00.0", true), ("01:00.0", false), ("vfio:01:00", true)]
        {
            let named: Named = text.parse().unwrap();
            assert_eq!((named.is_vfio, named.to_string()), (is_vfio, text.to_owned()));
        }
        let long: Named = "vfio:0000:01:00.0".parse().unwrap();
        assert_eq!(long.target, Target::Function(address("01:00.0")));
        for text in ["vfio:", "vfio:banana", "sim:01:00.0", "vfio:vfio:01:00.0"] {
            assert!(text.parse::<Named>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_is_its_functions_that_are_offered_and_no_others() {
        let offered = ["01:00.2", "02:00.0", "01:00.0", "01:01.0", "0001:01:00.1"].map(address);
        let device: Target = "01:00".parse().unwrap();
        assert_eq!(device.functions(&offered).unwrap(), ["01:00.0", "01:00.2"].map(address));
        let none: Target = "03:00".parse().unwrap();
        assert_eq!(none.functions(&offered).unwrap_err(), "the dext offers no function of 03:00");
        // One that is named is not looked for.
        let one: Target = "03:00.0".parse().unwrap();
        assert_eq!(one.functions(&offered).unwrap(), [address("03:00.0")]);
    }
}
