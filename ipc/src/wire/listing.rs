//! What a lister process reports: what the dext offers.

use serde::{Deserialize, Serialize};

use super::call::conversation;
use super::common::{BarInfo, Identity, MsixInfo, Ping, Shutdown};
use super::dext::Client;
use super::faults::Misbehave;
use super::sandbox::SandboxReport;
pub use crate::limits::MAX_FUNCTIONS;
use crate::root_bridge::RootBridge;

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// What it is and where.
    pub identity: Identity,
    /// The root bridge above it, where the host names one.
    pub root_bridge: Option<RootBridge>,
    /// Its BARs; `None` for an unused one and for the upper half of a 64-bit one.
    pub bars: [Option<BarInfo>; 6],
    /// MSI vectors it is capable of, 0 without the capability.
    pub msi_vectors: u16,
    /// Its MSI-X capability.
    pub msix: Option<MsixInfo>,
    /// Whether some connection holds the claim.
    pub claimed: bool,
    /// Who has connections open, the lister left out.
    pub clients: Vec<Client>,
}

/// Sent once everything is open and the lister is confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// How many functions can be asked for.
    pub functions: u32,
    /// What confines the lister.
    pub sandbox: SandboxReport,
}

/// Asks for a function by number, `0..functions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetFunction(pub u32);

/// Asks for the 4096 bytes of a function's config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetConfig(pub u32);

conversation! {
    /// What the VMM side asks a lister process for.
    pub enum Request {
        /// One function.
        GetFunction -> Box<Function>;
        /// Its config space.
        GetConfig -> Vec<u8>;
        /// A sign of life.
        Ping -> ();
        /// Exit in order.
        Shutdown -> ();
        /// Do wrong at the next request: a lister never does.
        Misbehave -> ();
    }
}
