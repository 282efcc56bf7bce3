//! Where a dext is, or what else gives functions in its place.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipc::RootBridge;

/// Where functions come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A simulated dext that listens at this path.
    Simulated(PathBuf),
    /// The real one.
    IoKit,
    /// No dext: Linux's VFIO.
    Vfio,
    /// What one of these offers beneath one root bridge of the host, where addresses are unique.
    Beneath(RootBridge, Box<Endpoint>),
}

/// A string that names no dext.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{}' names no dext: sim:PATH or iokit, or beneath one root bridge sim@NAME:PATH or iokit@NAME; vfio \
     is Linux's VFIO",
    Path::new(.0).display()
)]
pub struct EndpointError(OsString);

impl TryFrom<&OsStr> for Endpoint {
    type Error = EndpointError;

    /// The path may be any, not only one that is text.
    fn try_from(text: &OsStr) -> Result<Self, EndpointError> {
        let none = || EndpointError(text.to_owned());
        let bytes = text.as_bytes();
        let (place, path) = match bytes.iter().position(|byte| *byte == b':') {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None => (bytes, None),
        };
        let place = std::str::from_utf8(place).map_err(|_| none())?;
        let (kind, root) = match place.split_once('@') {
            Some((kind, root)) => (kind, Some(root.parse::<RootBridge>().map_err(|_| none())?)),
            None => (place, None),
        };
        let endpoint = match (kind, path) {
            ("sim", Some(path)) if !path.is_empty() => {
                Self::Simulated(OsStr::from_bytes(path).into())
            }
            ("iokit", None) => Self::IoKit,
            ("vfio", None) if root.is_none() => Self::Vfio,
            _ => return Err(none()),
        };
        Ok(match root {
            Some(root) => Self::Beneath(root, Box::new(endpoint)),
            None => endpoint,
        })
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
        assert_eq!("vfio".parse(), Ok(Endpoint::Vfio));
        let beneath = |root: &str, place| Endpoint::Beneath(root.parse().unwrap(), Box::new(place));
        let root = "apciec1@30000000";
        assert_eq!("iokit@apciec1@30000000".parse(), Ok(beneath(root, Endpoint::IoKit)));
        let place = Endpoint::Simulated("/tmp/a@b:c".into());
        assert_eq!("sim:/tmp/a@b:c".parse(), Ok(place.clone()));
        assert_eq!("sim@r:/tmp/a@b:c".parse(), Ok(beneath("r", place)));
        let nothing = [
            "",
            "sim:",
            "iokit ",
            "usb:7",
            "iokit@",
            "iokit@a b",
            "iokit@x:/y",
            "sim@x",
            "@x",
            "vfio:/x",
            "vfio@x",
        ];
        for nothing in nothing {
            assert!(nothing.parse::<Endpoint>().is_err(), "{nothing}");
        }
    }
}
