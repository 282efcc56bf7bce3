//! Attach and detach (P1): which processes are started in which order, and undone in reverse.

mod config;
mod meter;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::PciAddress;

use crate::companion::{Companion, CompanionConfig};
use crate::connection::{Claimed, Connection};
use crate::container::{Container, DmaMode};
use crate::device::DeviceError;
use crate::proxy::Proxy;
use crate::registry::{DuplicateOwner, Registry};
use crate::slot::{FunctionProtocol, Parts, Slot};
use crate::supervisor::{Death, Supervisor};
pub use config::{HostConfig, WindowRoute};
pub use meter::SpawnMeter;

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

/// Who holds an attached function: the device, companions, or both. Each holds one reference on
/// its published connection (P1.3).
struct Holders {
    proxy: Arc<Proxy>,
    device: bool,
    /// Companions, and whether each came with the device.
    companions: Vec<(Arc<Companion>, bool)>,
}

/// All passthrough of one VMM.
pub struct Host {
    config: HostConfig,
    connections: Mutex<Vec<Arc<Connection>>>,
    published: Registry<Connection>,
    attached: Mutex<BTreeMap<PciAddress, Holders>>,
}

impl Host {
    /// No function is attached yet.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let (connections, attached) = (Mutex::default(), Mutex::default());
        Self { config, connections, published: Registry::default(), attached }
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Holders>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
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
        // The cheap refusal first: nothing is started for a function that is ours already. One that
        // is there for companions of the same guest only is the device from here on.
        if let Some(owner) = self.published.look_up(address) {
            let mut attached = self.attached();
            let shared = attached.get_mut(&address).filter(|holders| {
                !holders.device && Arc::ptr_eq(&holders.proxy.container, container)
            });
            if let Some(holders) = shared {
                holders.device = true;
                return Ok(Arc::clone(&holders.proxy));
            }
            let _ = self.published.release(address, &owner);
            return Err(DuplicateOwner(address).into());
        }
        let connection = self.connection(address)?;
        let proxy = self.attach_through(&connection, address, container, name);
        if proxy.is_err() {
            self.let_go(&connection);
        }
        let proxy = Arc::new(proxy?);
        let holders = Holders { proxy: Arc::clone(&proxy), device: true, companions: Vec::new() };
        self.attached().insert(address, holders);
        Ok(proxy)
    }

    /// Attaches a function and creates its companion with it, unless there is one with the same
    /// guest and host address (P10.1). If that cannot be created the attach is undone.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_with_companion(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        name: Option<String>,
        config: CompanionConfig,
    ) -> Result<(Arc<Proxy>, Arc<Companion>), AttachError> {
        let proxy = self.attach(address, container, name)?;
        match self.add_companion(&proxy, config, true) {
            Ok(companion) => Ok((proxy, companion)),
            Err(error) => {
                self.detach(&proxy);
                Err(error)
            }
        }
    }

    /// Creates a companion by itself (P10.3): for a device that is attached it shares its published
    /// connection; otherwise it has the function claimed on its own, and the device may come later.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn create_companion(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        config: CompanionConfig,
    ) -> Result<Arc<Companion>, AttachError> {
        let there = self.attached().get(&address).map(|holders| Arc::clone(&holders.proxy));
        if let Some(proxy) = there {
            return self.add_companion(&proxy, config, false);
        }
        let proxy = self.attach(address, container, None)?;
        let created = self.add_companion(&proxy, config, false);
        // It holds the function, or nobody does.
        self.detach(&proxy);
        created
    }

    fn add_companion(
        &self,
        proxy: &Arc<Proxy>,
        config: CompanionConfig,
        automatic: bool,
    ) -> Result<Arc<Companion>, AttachError> {
        let address = proxy.address();
        let failed = |error| AttachError::Step { address, step: "creating the companion", error };
        let mut attached = self.attached();
        let gone = || failed(DeviceError::NoDevice("it is not attached any more".to_owned()));
        let holders = attached.get_mut(&address).ok_or_else(gone)?;
        let same = |(one, _): &&(Arc<Companion>, bool)| one.config().guest == config.guest;
        if let Some((companion, _)) = holders.companions.iter().find(same) {
            return Ok(Arc::clone(companion));
        }
        if !holders.companions.is_empty() {
            // One ring and one key space for each function.
            let message = "it has a companion at another guest address".to_owned();
            return Err(failed(DeviceError::Busy(message)));
        }
        if proxy.container.mode() != DmaMode::Companion {
            let message = "all guest memory is mapped already (direct mode)".to_owned();
            return Err(failed(DeviceError::NotSupported(message)));
        }
        let companion = Arc::new(Companion::new(config, Arc::clone(proxy)).map_err(failed)?);
        let _reference = self.published.look_up(address);
        holders.companions.push((Arc::clone(&companion), automatic));
        Ok(companion)
    }

    /// Destroys a companion: what was mapped by it is released. The last one who holds the function
    /// detaches it.
    pub fn destroy_companion(&self, companion: &Arc<Companion>) {
        let proxy = Arc::clone(companion.device());
        let address = proxy.address();
        let mut attached = self.attached();
        let Some(holders) = attached.get_mut(&address) else { return };
        let at = holders.companions.iter().position(|(one, _)| Arc::ptr_eq(one, companion));
        let Some(at) = at else { return };
        holders.companions.remove(at);
        if !holders.device && holders.companions.is_empty() {
            attached.remove(&address);
        }
        drop(attached);
        companion.withdraw();
        self.release(&proxy);
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
        let started = Connection::start(
            &self.config.connection_spec(address),
            self.config.recovery,
            self.config.own_connection(),
        );
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

    /// Detaches a function (P1.4): its own companion destroyed (P10.2), interrupts down, device
    /// withdrawn, container left, connection released; the connection process stops with its last
    /// function. Goes through with it whichever of the processes are dead. A companion that was
    /// created by itself keeps the function.
    pub fn detach(&self, proxy: &Proxy) {
        use crate::device::{InterruptSetup, PassthroughDevice as _};
        use ipc::wire::function::InterruptIndex;
        let address = proxy.address();
        let mut attached = self.attached();
        let holders = attached
            .get_mut(&address)
            .filter(|holders| holders.device && std::ptr::eq(Arc::as_ptr(&holders.proxy), proxy));
        let Some(holders) = holders else { return };
        holders.device = false;
        let own = |one: &(Arc<Companion>, bool)| one.1;
        let withdrawn: Vec<_> = holders.companions.extract_if(.., |one| own(one)).collect();
        if holders.companions.is_empty() {
            attached.remove(&address);
        }
        drop(attached);
        for (companion, _) in withdrawn {
            companion.withdraw();
            self.release(proxy);
        }
        if proxy.slot.death().is_none() {
            for index in [InterruptIndex::Intx, InterruptIndex::Msi, InterruptIndex::Msix] {
                if let Err(error) = proxy.set_interrupts(index, InterruptSetup::Disable) {
                    tracing::warn!("Function {address}: taking interrupts down: {error}");
                }
            }
        }
        self.release(proxy);
    }

    /// One who held the function holds it no more; the last one ends it.
    fn release(&self, proxy: &Proxy) {
        let (address, connection) = (proxy.address(), &proxy.connection);
        if !self.published.release(address, connection) {
            return;
        }
        proxy.slot.stop();
        proxy.container.leave(address, connection);
        match connection.detach(address) {
            // What a dead process had is released.
            Ok(_) | Err(DeviceError::Gone(_)) => {}
            Err(error) => tracing::warn!("Function {address}: releasing the claim: {error}"),
        }
        self.let_go(connection);
    }
}
