//! What was really enforced, as it travels up in the ready message.

use serde::{Deserialize, Serialize};

/// One layer of confinement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which: "user namespace", "seccomp", …
    pub name: String,
    /// Whether it holds.
    pub state: LayerState,
}

/// Whether a layer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    /// In force, with what there is to say of it.
    Enforced(String),
    /// In force as far as this kernel knows it; says what is lacking.
    Partial(String),
    /// Not in force; says why.
    Missing(String),
}

/// The confinement of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Every layer of the policy, in the order of application.
    pub layers: Vec<Layer>,
    /// System calls that the process may still make.
    pub syscalls: u32,
}
