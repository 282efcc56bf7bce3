//! What a command line says of a passed-through function, and what a VM that has one may not have besides.
//!
//! Nothing here needs crosvm: Cordon's own tests compile this file too.

use std::fmt;
use std::str::FromStr;

use cordon_vmm::PciAddress;
use serde::{Deserialize, Serialize};

/// The value of `--cordon-device`: `BB:DD.F[,guest=BB:DD.F][,companion[=BB:DD.F]]`. In crosvm's configuration it is
/// that text too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceOption {
    /// Where the function is on the host.
    pub host: PciAddress,
    /// Where the guest sees it; crosvm chooses without it.
    pub guest: Option<PciAddress>,
    /// Whether its guest maps memory for it by a companion, which is necessary where the platform chooses bus
    /// addresses. Without one all guest memory is mapped at its guest addresses.
    pub companion: Option<CompanionOption>,
}

/// What is said of a companion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompanionOption {
    /// Where the guest sees it; crosvm chooses without it.
    pub guest: Option<PciAddress>,
}

/// A value of `--cordon-device` that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not an address.
    #[error("{what}: {text:?} is not an address like 01:00.0")]
    Address {
        /// Of what.
        what: &'static str,
        /// What was there instead.
        text: String,
    },
    /// A place in the guest beneath a root bridge of its own.
    #[error("{0}: the guest's bus has no segments")]
    Segment(PciAddress),
    /// Not a key.
    #[error("Unknown key {0:?}: there are guest and companion")]
    Key(String),
    /// One key twice.
    #[error("{0} is said twice")]
    Twice(&'static str),
}

impl FromStr for DeviceOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut parts = text.split(',');
        let host = address("function of the host", parts.next().unwrap_or_default())?;
        let mut option = Self { host, guest: None, companion: None };
        for part in parts {
            match part.split_once('=') {
                Some(("guest", text)) => {
                    let guest = in_guest("guest", text)?;
                    once("guest", option.guest.replace(guest).is_some())?;
                }
                Some(("companion", text)) => {
                    let guest = Some(in_guest("companion", text)?);
                    let before = option.companion.replace(CompanionOption { guest });
                    once("companion", before.is_some())?;
                }
                None if part == "companion" => {
                    let before = option.companion.replace(CompanionOption::default());
                    once("companion", before.is_some())?;
                }
                Some((key, _)) => return Err(OptionError::Key(key.to_owned())),
                None => return Err(OptionError::Key(part.to_owned())),
            }
        }
        Ok(option)
    }
}

impl fmt::Display for DeviceOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        if let Some(guest) = self.guest {
            write!(f, ",guest={guest}")?;
        }
        match &self.companion {
            None => Ok(()),
            Some(CompanionOption { guest: None }) => write!(f, ",companion"),
            Some(CompanionOption { guest: Some(guest) }) => write!(f, ",companion={guest}"),
        }
    }
}

impl TryFrom<String> for DeviceOption {
    type Error = OptionError;

    fn try_from(text: String) -> Result<Self, OptionError> {
        text.parse()
    }
}

impl From<DeviceOption> for String {
    fn from(option: DeviceOption) -> Self {
        option.to_string()
    }
}

fn address(what: &'static str, text: &str) -> Result<PciAddress, OptionError> {
    text.parse().map_err(|_| OptionError::Address { what, text: text.to_owned() })
}

fn in_guest(what: &'static str, text: &str) -> Result<PciAddress, OptionError> {
    let address = address(what, text)?;
    if address.segment() == 0 { Ok(address) } else { Err(OptionError::Segment(address)) }
}

fn once(key: &'static str, before: bool) -> Result<(), OptionError> {
    if before { Err(OptionError::Twice(key)) } else { Ok(()) }
}

/// What a VM has of crosvm's that does not go together with a passed-through function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFeatures {
    /// A balloon.
    pub balloon: bool,
    /// vmm-swap.
    pub swap: bool,
    /// A pmem device.
    pub pmem: bool,
    /// The VM is restored from a snapshot.
    pub restore: bool,
}

/// Why a VM cannot have a passed-through function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Pages that the balloon frees may be registered with a device, which would write to pages that the guest
    /// has no more, or read others.
    #[error(
        "--cordon-device with a balloon: a device may still reach memory that the balloon gives back. Add --no-balloon"
    )]
    Balloon,
    /// Pages that are swapped out are replaced; a device would reach those before.
    #[error(
        "--cordon-device with --swap: a device reaches memory by other ways than the page faults that swapping lives on. Leave --swap away"
    )]
    Swap,
    /// The memory of a pmem device is not among the VM's memory, so that no device reaches it, and the guest cannot
    /// know that.
    #[error(
        "--cordon-device with --pmem: a device cannot reach the memory of a pmem device. Use --block"
    )]
    Pmem,
    /// The state of a device cannot be saved, so a snapshot holds none.
    #[error(
        "--cordon-device with --restore: the state of a device is in no snapshot. Boot the guest instead"
    )]
    Restore,
}

impl VmFeatures {
    /// Whether passed-through functions may be among them.
    ///
    /// # Errors
    /// The first thing that they do not go together with.
    pub fn check(self) -> Result<(), Refused> {
        let refusals = [
            (self.balloon, Refused::Balloon),
            (self.swap, Refused::Swap),
            (self.pmem, Refused::Pmem),
            (self.restore, Refused::Restore),
        ];
        match refusals.into_iter().find(|(is_there, _)| *is_there) {
            Some((_, refused)) => Err(refused),
            None => Ok(()),
        }
    }
}
