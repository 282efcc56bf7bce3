//! Attach and detach (P1): which processes are started in which order, and undone in reverse.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipc::{Deadline, PciAddress};

use crate::connection::{Claimed, Connection};
use crate::container::Container;
use crate::device::DeviceError;
use crate::faults::Faults;
use crate::proxy::{FunctionProtocol, Proxy};
use crate::recovery::Recovery;
use crate::registry::{DuplicateOwner, Registry};
use crate::slot::{Parts, Slot};
use crate::supervisor::{Deadlines, Death, Spec, Supervisor};

/// How processes are started.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The `device-proc` program.
    pub device_proc: PathBuf,
    /// Where the dext is: `sim:PATH` or `iokit`.
    pub dext: String,
    /// Refuse to start a process without a layer of its sandbox.
    pub strict: bool,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Whether and how a dead process is replaced.
    pub recovery: Recovery,
    /// What is to go wrong, for tests of whoever must survive it.
    pub faults: Option<Arc<Faults>>,
}

impl HostConfig {
    pub(crate) fn spec(&self, address: Option<PciAddress>) -> Spec {
        let mode = if self.strict { "strict" } else { "relaxed" };
        let mut arguments = vec![format!("--dext={}", self.dext), format!("--sandbox={mode}")];
        arguments.extend(address.map(|address| format!("--address={address}")));
        let roles = address.is_some();
        arguments.extend((roles && self.faults.is_some()).then(|| "--misbehave".to_owned()));
        Spec {
            program: self.device_proc.clone(),
            arguments,
            strict: self.strict,
            subject: address.map_or_else(|| "the dext".to_owned(), |address| address.to_string()),
            deadlines: self.deadlines,
            expendable: false,
            faults: self.faults.clone(),
        }
    }
}

/// Why a function was not attached. Everything that had been done was undone.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// This VMM has it already (P1.2).
    #[error(transparent)]
    Duplicate(#[from] DuplicateOwner),
    /// A process did not start.
    #[error("Cannot attach {address}: {death}")]
    Start {
        /// The function.
        address: PciAddress,
        /// What happened to the process.
        death: Arc<Death>,
    },
    /// A step failed.
    #[error("Cannot attach {address}: {step} failed: {error}")]
    Step {
        /// The function.
        address: PciAddress,
        /// Which step.
        step: &'static str,
        /// Why.
        error: DeviceError,
    },
}

/// All passthrough of one VMM.
pub struct Host {
    config: HostConfig,
    connections: Mutex<Vec<Arc<Connection>>>,
    published: Registry<Connection>,
}

impl Host {
    /// No function is attached yet.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self { config, connections: Mutex::default(), published: Registry::default() }
    }

    /// Published connections by function (P1.2, P1.3), for a companion to share.
    #[must_use]
    pub fn published(&self) -> &Registry<Connection> {
        &self.published
    }

    /// Attaches a function (P1.1): connection process, claim, publication, container, function
    /// process with interrupts and notification. A failing step undoes the ones before it.
    /// `name` is what the VMM calls the device (P1.6).
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        name: Option<String>,
    ) -> Result<Arc<Proxy>, AttachError> {
        // The cheap refusal first: nothing is started for a function that is ours already.
        if let Some(owner) = self.published.look_up(address) {
            let _ = self.published.release(address, &owner);
            return Err(DuplicateOwner(address).into());
        }
        let connection = self.connection(address)?;
        let proxy = self.attach_through(&connection, address, container, name);
        if proxy.is_err() {
            self.let_go(&connection);
        }
        proxy.map(Arc::new)
    }

    fn attach_through(
        &self,
        connection: &Arc<Connection>,
        address: PciAddress,
        container: &Arc<Container>,
        name: Option<String>,
    ) -> Result<Proxy, AttachError> {
        let failed = |step| move |error| AttachError::Step { address, step, error };
        let claimed = connection.attach(address).map_err(failed("claiming"))?;
        let published = self.published.publish(address, Arc::clone(connection));
        let attached = published.map_err(AttachError::from).and_then(|()| {
            let attached = self.join(connection, address, container, claimed, name);
            if attached.is_err() {
                let _ = self.published.release(address, connection);
            }
            attached
        });
        if attached.is_err()
            && let Err(error) = connection.detach(address)
        {
            tracing::warn!("Function {address}: undoing the claim: {error}");
        }
        attached
    }

    fn join(
        &self,
        connection: &Arc<Connection>,
        address: PciAddress,
        container: &Arc<Container>,
        claimed: Claimed,
        name: Option<String>,
    ) -> Result<Proxy, AttachError> {
        container.join(address, connection).map_err(|error| AttachError::Step {
            address,
            step: "mapping guest memory",
            error,
        })?;
        let spec = self.config.spec(Some(address));
        let started = Supervisor::<FunctionProtocol>::start(&spec);
        let (supervisor, ready) = match started {
            Ok(started) => started,
            Err(death) => {
                container.leave(address, connection);
                return Err(AttachError::Start { address, death });
            }
        };
        if ready.identity != claimed.identity {
            container.leave(address, connection);
            let error = DeviceError::NoDevice(format!(
                "the function process found {:?}, the connection process {:?}",
                ready.identity, claimed.identity
            ));
            return Err(AttachError::Step { address, step: "comparing identities", error });
        }
        let name = name.unwrap_or_else(|| format!("apple-0000:{address}"));
        let parts = Parts {
            address,
            spec,
            recovery: self.config.recovery,
            connection: Arc::clone(connection),
            container: Arc::clone(container),
            claimed,
            child: supervisor,
            ready,
        };
        match Slot::new(parts) {
            Ok(slot) => {
                let container = Arc::clone(container);
                Ok(Proxy::new(slot, Arc::clone(connection), container, name))
            }
            Err(error) => {
                container.leave(address, connection);
                let error = DeviceError::NoSpace(error.to_string());
                Err(AttachError::Step { address, step: "watching the process", error })
            }
        }
    }

    /// The connection process of the function's device with a place for the function: one that
    /// runs, or a new one.
    fn connection(&self, address: PciAddress) -> Result<Arc<Connection>, AttachError> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connections.iter().find(|one| one.reserve(address)) {
            return Ok(Arc::clone(connection));
        }
        let started = Connection::start(&self.config.spec(Some(address)), self.config.recovery);
        let connection = started.map_err(|death| AttachError::Start { address, death })?;
        if !connection.reserve(address) {
            let error = DeviceError::NoDevice(format!("the dext has no function {address}"));
            return Err(AttachError::Step { address, step: "opening", error });
        }
        let connection = Arc::new(connection);
        connections.push(Arc::clone(&connection));
        Ok(connection)
    }

    /// Stops a connection process that nobody uses any more.
    fn let_go(&self, connection: &Arc<Connection>) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_idle() {
            connections.retain(|one| !Arc::ptr_eq(one, connection));
            drop(connections);
            connection.stop();
        }
    }

    /// Detaches a function (P1.4): interrupts down, device withdrawn, container left, connection
    /// released; the connection process stops with its last function. Goes through with it
    /// whichever of the processes are dead.
    pub fn detach(&self, proxy: &Proxy) {
        use crate::device::{InterruptSetup, PassthroughDevice as _};
        use ipc::wire::function::InterruptIndex;
        let address = proxy.address();
        if proxy.slot.death().is_none() {
            for index in [InterruptIndex::Intx, InterruptIndex::Msi, InterruptIndex::Msix] {
                if let Err(error) = proxy.set_interrupts(index, InterruptSetup::Disable) {
                    tracing::warn!("Function {address}: taking interrupts down: {error}");
                }
            }
        }
        proxy.slot.stop();
        let connection = &proxy.connection;
        proxy.container.leave(address, connection);
        if self.published.release(address, connection) {
            match connection.detach(address) {
                // What a dead process had is released.
                Ok(_) | Err(DeviceError::Gone(_)) => {}
                Err(error) => tracing::warn!("Function {address}: releasing the claim: {error}"),
            }
            self.let_go(connection);
        }
    }
}

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
        let started = Connection::start(&spec, Recovery::OFF);
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
        let patience = Deadline::after(self.spec.deadlines.start);
        loop {
            let before = Instant::now();
            match Supervisor::<FunctionProtocol>::start(&self.spec) {
                Ok((process, _)) => {
                    let taken = before.elapsed();
                    process.stop();
                    return Ok(taken);
                }
                // The dext may still be cleaning up after the one before.
                Err(_) if !patience.passed() => std::thread::sleep(Duration::from_millis(1)),
                Err(death) => return Err(AttachError::Start { address: self.address, death }),
            }
        }
    }

    /// Gives the function back.
    ///
    /// # Errors
    /// [`AttachError::Step`].
    pub fn stop(self) -> Result<(), AttachError> {
        let released = self.connection.detach(self.address);
        self.connection.stop();
        let address = self.address;
        let failed = |error| AttachError::Step { address, step: "releasing the claim", error };
        released.map(drop).map_err(failed)
    }
}
