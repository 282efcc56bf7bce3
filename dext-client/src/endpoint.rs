//! Where a dext is.

use std::path::PathBuf;
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
#[error("'{0}' names no dext: sim:PATH or iokit")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        match text.strip_prefix("sim:") {
            Some(path) if !path.is_empty() => Ok(Self::Simulated(path.into())),
            None if text == "iokit" => Ok(Self::IoKit),
            _ => Err(EndpointError(text.to_owned())),
        }
    }
}
