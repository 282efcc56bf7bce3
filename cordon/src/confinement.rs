//! What confines `cordon serve` itself, as it says when it starts, and whenever its control socket is
//! asked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The confinement of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Confinement {
    /// The server's process id.
    pub process: u32,
    /// That of its spawner, which starts its device processes; none where it starts them itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawner: Option<u32>,
    /// Every layer of the policy, in the order of application.
    pub layers: Vec<Layer>,
    /// System calls that the process may still make; 0 where no list says.
    pub syscalls: u32,
}

/// One layer of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Layer {
    /// Its name for people: "user namespace".
    pub name: String,
    /// Whether it holds: "enforced", "partial" or "MISSING".
    pub state: String,
    /// What there is to say of it, or what helps.
    pub detail: String,
}

impl Confinement {
    /// Names of the layers in this state.
    fn in_state(&self, state: &str) -> Vec<&str> {
        let layers = self.layers.iter().filter(|layer| layer.state == state);
        layers.map(|layer| layer.name.as_str()).collect()
    }
}

impl fmt::Display for Confinement {
    /// One line: how many layers hold, and which do not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, spawner, layers, syscalls } = self;
        write!(f, "process {process}")?;
        if let Some(spawner) = spawner {
            write!(f, ", spawner {spawner}")?;
        }
        write!(f, ": {} of {} layers enforced", self.in_state("enforced").len(), layers.len())?;
        if *syscalls > 0 {
            write!(f, ", {syscalls} system calls allowed")?;
        }
        for state in ["partial", "MISSING"] {
            let names = self.in_state(state);
            if !names.is_empty() {
                write!(f, "; {state}: {}", names.join(", "))?;
            }
        }
        Ok(())
    }
}
