//! What a recovery is compared with.

use std::time::{Duration, Instant};

use ipc::{Deadline, PciAddress};

use super::{AttachError, HostConfig};
use crate::child::{FunctionProtocol, Spec};
use crate::connection::Connection;
use crate::recovery::Recovery;
use crate::supervisor::Supervisor;

/// Measures what a bare function process takes from spawn to ready, on a free function: what a
/// recovery is compared with.
pub struct SpawnMeter {
    spec: Spec,
    connection: Connection,
    address: PciAddress,
}

impl SpawnMeter {
    /// Claims the function, which a function process needs.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn start(config: &HostConfig, address: PciAddress) -> Result<Self, AttachError> {
        let mut spec = config.spec(Some(address));
        spec.faults = None;
        spec.expendable = true;
        let started = Connection::start(&spec, Recovery::OFF, None);
        let connection = started.map_err(|death| AttachError::Start { address, death })?;
        connection.attach(address).map_err(|error| AttachError::Step {
            address,
            step: "claiming",
            error,
        })?;
        Ok(Self { spec, connection, address })
    }

    /// Once.
    ///
    /// # Errors
    /// [`AttachError::Start`].
    pub fn measure(&self) -> Result<Duration, AttachError> {
        let deadline = Deadline::after(self.spec.deadlines.start);
        loop {
            let before = Instant::now();
            match Supervisor::<FunctionProtocol>::start(&self.spec) {
                Ok((process, _)) => {
                    let taken = before.elapsed();
                    process.stop();
                    return Ok(taken);
                }
                // The dext may still be cleaning up after the one before.
                Err(_) if !deadline.passed() => std::thread::sleep(Duration::from_millis(1)),
                Err(death) => return Err(AttachError::Start { address: self.address, death }),
            }
        }
    }

    /// Gives the function back.
    ///
    /// # Errors
    /// [`AttachError::Step`].
    pub fn stop(self) -> Result<(), AttachError> {
        let released =
            self.connection.detach(self.address, Deadline::after(self.spec.deadlines.call));
        self.connection.stop();
        let address = self.address;
        let failed = |error| AttachError::Step { address, step: "releasing the claim", error };
        released.map(drop).map_err(failed)
    }
}
