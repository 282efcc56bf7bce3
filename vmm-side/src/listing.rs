//! What the dext offers, as a confined lister process reads it.

use std::sync::Arc;

use ipc::wire::handshake::Role;
use ipc::wire::listing::{Function, MAX_FUNCTIONS, Ready, Reply, Request};
use ipc::wire::sandbox::SandboxReport;

use crate::connection::unexpected;
use crate::device::DeviceError;
use crate::host::HostConfig;
use crate::supervisor::{Death, Protocol, Supervisor};

/// What is said to a lister process.
#[derive(Debug)]
pub struct ListerProtocol;

impl Protocol for ListerProtocol {
    type Request = Request;
    type Reply = Reply;
    type Ready = Ready;
    const ROLE: Role = Role::Lister;
    const COMMAND: &'static str = "lister";

    fn shutdown() -> Request {
        Request::Shutdown
    }
}

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
        let (supervisor, ready) = Supervisor::<ListerProtocol>::start(&config.spec(None))?;
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
        (0..self.functions)
            .map(|number| match self.supervisor.ask(Request::Function(number))? {
                Reply::Function(function) => Ok(*function),
                other => Err(unexpected(&other)),
            })
            .collect()
    }

    /// Config space of function `number` of [`Lister::functions`].
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn config(&self, number: usize) -> Result<Vec<u8>, DeviceError> {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        match self.supervisor.ask(Request::Config(number))? {
            Reply::Config(bytes) if bytes.len() == ipc::wire::function::CONFIG_SPACE => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
}
