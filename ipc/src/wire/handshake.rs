//! The first message on every tube.

use serde::{Deserialize, Serialize};

/// "CRDN", little endian.
pub const MAGIC: u32 = 0x4e44_5243;

/// The protocol version of this build.
pub const VERSION: u16 = 5;

/// The oldest protocol version that this build still speaks.
pub const OLDEST_VERSION: u16 = 5;

/// Who is at one end of a tube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The VMM side.
    Vmm,
    /// A connection process.
    Connection,
    /// A function process.
    Function,
    /// A process that lists what the dext offers.
    Lister,
    /// A client of the simulated dext.
    DextClient,
    /// The simulated dext.
    Dext,
    /// Starts processes for a confined server.
    Spawner,
}

/// What a process says first. The layout of this type never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: u32,
    /// Newest protocol version that the sender speaks.
    pub version: u16,
    /// Oldest protocol version that the sender speaks.
    pub oldest: u16,
    /// Who the sender is.
    pub role: Role,
    /// Optional abilities, one bit each; none is defined in version 4.
    pub features: u64,
    /// Largest message that the sender takes, in bytes.
    pub max_message: u32,
    /// Most descriptors that the sender takes beside one message.
    pub max_handles: u16,
}
