//! What the dext offers, as a confined lister process reads it.

use std::sync::Arc;

use ipc::PciAddress;
use ipc::wire::function::CONFIG_SPACE;
use ipc::wire::listing::{Function, GetConfig, GetFunction, MAX_FUNCTIONS};
use ipc::wire::sandbox::SandboxReport;

use crate::child::{Death, ListerProtocol, Spec};
use crate::error::DeviceError;
use crate::host::HostConfig;
use crate::supervisor::Supervisor;

/// A running lister process.
pub struct Lister {
    supervisor: Supervisor<ListerProtocol>,
    functions: u32,
    sandbox: SandboxReport,
}

impl Lister {
    /// Starts one.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready.
    pub fn start(config: &HostConfig) -> Result<Self, Arc<Death>> {
        Self::from_spec(config.spec(None))
    }

    /// Starts one that reports the function at `address` and no other.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready.
    pub fn start_of(config: &HostConfig, address: PciAddress) -> Result<Self, Arc<Death>> {
        let mut spec = config.spec(None);
        spec.arguments.push(format!("--address={address}").into());
        Self::from_spec(spec)
    }

    fn from_spec(spec: Spec) -> Result<Self, Arc<Death>> {
        // Whoever looks is given its death, and tells it.
        let spec = Spec { expendable: true, ..spec };
        let (supervisor, ready) = Supervisor::start(&spec)?;
        let most = u32::try_from(MAX_FUNCTIONS).unwrap_or(u32::MAX);
        Ok(Self { supervisor, functions: ready.functions.min(most), sandbox: ready.sandbox })
    }

    /// What confines it.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxReport {
        &self.sandbox
    }

    /// Every function that the dext offers, by address.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn functions(&self) -> Result<Vec<Function>, DeviceError> {
        let numbers = 0..self.functions;
        numbers.map(|number| Ok(*self.supervisor.ask(&GetFunction(number))?)).collect()
    }

    /// Config space of function `number` of [`Lister::functions`].
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn config(&self, number: usize) -> Result<Vec<u8>, DeviceError> {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let bytes = self.supervisor.ask(&GetConfig(number))?;
        if bytes.len() != CONFIG_SPACE {
            let message = format!("{} bytes of config space came", bytes.len());
            return Err(DeviceError::io(message));
        }
        Ok(bytes)
    }
}
