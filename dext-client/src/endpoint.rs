//! Where a dext is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the dext is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A simulated dext that listens at this path.
    Simulated(PathBuf),
    /// The real one.
    IoKit,
}

/// A string that names no dext.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' names no dext: sim:PATH or iokit", Path::new(.0).display())]
pub struct EndpointError(OsString);

impl TryFrom<&OsStr> for Endpoint {
    type Error = EndpointError;

    /// The path may be any, not only one that is text.
    fn try_from(text: &OsStr) -> Result<Self, EndpointError> {
        match text.as_bytes().strip_prefix(b"sim:") {
            Some(path) if !path.is_empty() => Ok(Self::Simulated(OsStr::from_bytes(path).into())),
            None if text == "iokit" => Ok(Self::IoKit),
            _ => Err(EndpointError(text.to_owned())),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        OsStr::new(text).try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_a_place() {
        let path = OsStr::from_bytes(b"sim:/tmp/\xff\xfe");
        let place = Endpoint::Simulated(OsStr::from_bytes(b"/tmp/\xff\xfe").into());
        assert_eq!(Endpoint::try_from(path), Ok(place));
        assert_eq!("iokit".parse(), Ok(Endpoint::IoKit));
        for nothing in ["", "sim:", "iokit ", "usb:7"] {
            assert!(nothing.parse::<Endpoint>().is_err(), "{nothing}");
        }
    }
}
