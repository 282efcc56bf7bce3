//! The name of a root bridge of the host, beneath which a bus:device.function is unique. On hosts
//! with several of them (each Thunderbolt port of a Mac has one) it is not unique without.

use std::fmt;
use std::str::FromStr;

pub use crate::limits::MAX_ROOT_BRIDGE_NAME as MAX_NAME;
use serde::{Deserialize, Serialize};

/// A name: 1 to 63 visible ASCII characters, none of them a colon.
///
/// The field is private, so a name that breaks a line of text or an endpoint cannot exist, not even
/// one that a peer sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootBridge(String);

/// Text that is no name of a root bridge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no root bridge: 1 to {MAX_NAME} visible characters without a colon", .0.escape_debug())]
pub struct RootBridgeError(String);

impl RootBridge {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RootBridge {
    type Error = RootBridgeError;

    fn try_from(name: String) -> Result<Self, RootBridgeError> {
        let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if plain && (1..=MAX_NAME).contains(&name.len()) {
            return Ok(Self(name));
        }
        Err(RootBridgeError(name.chars().take(MAX_NAME + 1).collect()))
    }
}

impl FromStr for RootBridge {
    type Err = RootBridgeError;

    fn from_str(name: &str) -> Result<Self, RootBridgeError> {
        name.to_owned().try_into()
    }
}

impl From<RootBridge> for String {
    fn from(name: RootBridge) -> Self {
        name.0
    }
}

impl fmt::Display for RootBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_visible_word() {
        for name in ["apciec0", "apciec1@30000000", "x", &"a".repeat(63)] {
            assert_eq!(name.parse::<RootBridge>().unwrap().to_string(), name);
        }
        for name in ["", "a b", "a:b", "a\nb", "ä", &"a".repeat(64)] {
            assert!(name.parse::<RootBridge>().is_err(), "{name}");
            let sent = crate::codec::encode(&name, 128).unwrap();
            assert!(crate::codec::decode::<RootBridge>(&sent).is_err(), "{name}");
        }
    }
}
