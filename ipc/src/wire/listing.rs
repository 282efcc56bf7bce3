//! What a lister process reports: what the dext offers.

use serde::{Deserialize, Serialize};

use super::common::{BarInfo, Identity, MsixInfo};
use super::dext::Client;
use super::sandbox::SandboxReport;

/// Most functions that one report names: a bus full of multi-function devices.
pub const MAX_FUNCTIONS: usize = 256;

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// What it is and where.
    pub identity: Identity,
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

/// What can be asked of a lister.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Function number `0..functions`.
    Function(u32),
    /// The 4096 bytes of its config space.
    Config(u32),
    /// Exit.
    Shutdown,
}

/// What a lister answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Function`].
    Function(Box<Function>),
    /// To [`Request::Config`].
    Config(Vec<u8>),
    /// To [`Request::Shutdown`].
    Done,
}
