//! Attach and detach (P1): which processes are started in which order, and undone in reverse.

mod attachments;
mod config;
mod kept;
mod meter;
mod upgrade;
mod vfio_group;

use std::sync::Arc;
use std::time::Duration;

use cordon_pci::Bar;
use ipc::wire::common::{BarInfo, Identity, MsixInfo};
use ipc::{Deadline, PciAddress};
use parking_lot::{Condvar, Mutex, RwLock};

use self::attachments::{Attachments, Entry};
use crate::child::Death;
use crate::companion::{Companion, CompanionConfig};
use crate::connection::{Claimed, Connection, NotReserved};
use crate::container::{Container, DmaMode};
use crate::device::pci_bar;
use crate::error::{DeviceError, ErrorKind};
use crate::function::{Function, Parts};
use crate::listing::Lister;
use crate::recovery::Backoff;
pub use attachments::DuplicateOwner;
pub use config::{HostConfig, WindowRoute};
pub use meter::SpawnMeter;
pub use upgrade::HostUpgradeError;
pub use vfio_group::{VfioGroup, VfioGroupError};

/// How long detaching may take in all, whatever state its processes are in.
const DETACH: Duration = Duration::from_secs(1);

/// How long a process is waited for that is being started for another device, and may be the one that has a
/// group which is open already.
const GROUP: Duration = Duration::from_secs(2);

/// Why a function was not attached. Everything that had been done was undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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

/// What a function is, learned without attaching it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// Where it is on the host, and its ids.
    pub identity: Identity,
    /// BARs as the dext describes them.
    pub bars: [Option<BarInfo>; 6],
    /// MSI vectors it is capable of, 0 without the capability.
    pub msi_vectors: u16,
    /// MSI-X capability.
    pub msix: Option<MsixInfo>,
    /// Its 4096 bytes of config space, as the dext shows them.
    pub config: Vec<u8>,
    /// Whether somebody holds the claim.
    pub claimed: bool,
}

impl Description {
    /// Its BARs as a model of config space takes them.
    #[must_use]
    pub fn pci_bars(&self) -> [Option<Bar>; 6] {
        self.bars.map(|bar| bar.map(pci_bar))
    }
}

type AllAttachments = Attachments<Function, Companion, Arc<Connection>>;

/// All passthrough of one VMM. Dropping it detaches nothing by itself: a function lives for as long as
/// somebody has its [`Function`].
pub struct Host {
    config: RwLock<Arc<HostConfig>>,
    /// Held by whoever attaches, and alone by whoever has the program replaced.
    program: RwLock<()>,
    attachments: Mutex<AllAttachments>,
    /// Signalled when an attach comes further.
    changed: Condvar,
}

impl Host {
    /// No function is attached yet.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
            program: RwLock::default(),
            attachments: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn config(&self) -> Arc<HostConfig> {
        Arc::clone(&self.config.read())
    }

    /// The `device-proc` that functions are served by: the one of [`Host::new`], or of the last
    /// [`Host::upgrade`].
    #[must_use]
    pub fn device_proc(&self) -> std::path::PathBuf {
        self.config().device_proc.clone()
    }

    /// What the function at `address` is: its identity, BARs and config space. A confined process looks
    /// and ends; no thread and no process is left behind, so a VMM that forks may do this first and
    /// attach later.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn describe(&self, address: PciAddress) -> Result<Description, AttachError> {
        let lister = Lister::start(&self.config());
        let lister = lister.map_err(|death| AttachError::Start { address, death })?;
        let failed = |error| AttachError::Step { address, step: "describing", error };
        let functions = lister.functions().map_err(failed)?;
        let at = functions.iter().position(|one| one.identity.address == address);
        let none = || self.has_none(address);
        let at = at.ok_or_else(|| failed(none()))?;
        let config = lister.config(at).map_err(failed)?;
        let found = &functions[at];
        Ok(Description {
            identity: found.identity,
            bars: found.bars,
            msi_vectors: found.msi_vectors,
            msix: found.msix,
            config,
            claimed: found.claimed,
        })
    }

    fn has_none(&self, address: PciAddress) -> DeviceError {
        DeviceError::no_device(format!("{} has no function {address}", self.config().source()))
    }

    /// Whose process `pid` is, for VMMs that reap children: "function process of 01:00.0", if it is one
    /// of ours: the last 4096 that were started are remembered. Our own threads reap them.
    #[must_use]
    pub fn process_name(&self, pid: u32) -> Option<String> {
        self.config().children.name(pid)
    }

    /// Attaches a function (P1.1): connection process, claim, publication, container, function
    /// process with interrupts and notification. A failing step undoes the ones before it.
    /// One that an instance of this VMM left which is dead ([`kept`](crate::kept)) is attached as it is, if
    /// `container` has the guest memory that it reaches; otherwise it is refused, and still there.
    /// `name` is what the VMM calls the device (P1.6).
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        name: Option<String>,
    ) -> Result<Arc<Function>, AttachError> {
        let _program = self.program.read();
        {
            // The cheap refusal first: nothing is started for a function that is ours already. One
            // that is there for companions of the same guest only is the device from here on.
            let mut attachments = self.attachments.lock();
            if let Some(holders) = attachments.holders(address)
                && !holders.device
                && Arc::ptr_eq(holders.function.container(), container)
            {
                holders.device = true;
                return Ok(Arc::clone(&holders.function));
            }
            attachments.begin(address)?;
        }
        let attached = self.attach_anew(address, container, name);
        let mut attachments = self.attachments.lock();
        match &attached {
            Ok(function) => attachments.publish(address, Arc::clone(function)),
            Err(_) => attachments.abandon(address),
        }
        drop(attachments);
        self.changed.notify_all();
        attached
    }

    fn attach_anew(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        name: Option<String>,
    ) -> Result<Arc<Function>, AttachError> {
        let connection = self.connection(address, container)?;
        let attached = self.attach_through(&connection, address, container, name);
        if attached.is_err() {
            connection.unreserve(address);
            let_go(&connection);
        }
        attached.map(Arc::new)
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
    ) -> Result<(Arc<Function>, Arc<Companion>), AttachError> {
        let function = self.attach(address, container, name)?;
        match self.add_companion(&function, config, true) {
            Ok(companion) => Ok((function, companion)),
            Err(error) => {
                self.detach(&function);
                Err(error)
            }
        }
    }

    /// Creates a companion by itself (P10.3): for a device that is attached it shares its connection;
    /// otherwise it has the function claimed on its own, and the device may come later.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn create_companion(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        config: CompanionConfig,
    ) -> Result<Arc<Companion>, AttachError> {
        let there = {
            let mut attachments = self.attachments.lock();
            attachments.holders(address).map(|holders| Arc::clone(&holders.function))
        };
        if let Some(function) = there {
            return self.add_companion(&function, config, false);
        }
        let function = self.attach(address, container, None)?;
        let created = self.add_companion(&function, config, false);
        // It holds the function, or nobody does.
        self.detach(&function);
        created
    }

    fn add_companion(
        &self,
        function: &Arc<Function>,
        config: CompanionConfig,
        automatic: bool,
    ) -> Result<Arc<Companion>, AttachError> {
        let address = function.address();
        let failed = |error| AttachError::Step { address, step: "creating the companion", error };
        if let Some(there) = self.companion_there(function, &config).map_err(failed)? {
            return Ok(there);
        }
        if function.container().mode() != DmaMode::Companion {
            let message = "all guest memory is mapped already (direct mode)";
            return Err(failed(DeviceError::not_supported(message)));
        }
        let companion = Companion::new(config, Arc::clone(function)).map_err(failed)?;
        let companion = Arc::new(companion);
        // Somebody else may have been quicker, or have detached it: asked again, with the lock held.
        let mut attachments = self.attachments.lock();
        let error = match attachments.holders(address) {
            Some(holders) if holders.companions.is_empty() => {
                holders.companions.push((Arc::clone(&companion), automatic));
                return Ok(companion);
            }
            Some(_) => DeviceError::busy("another companion of it was created at the same time"),
            None => DeviceError::no_device("it is not attached any more"),
        };
        drop(attachments);
        if error.kind() == ErrorKind::NoDevice {
            companion.withdraw();
        }
        Err(failed(error))
    }

    /// The companion that is there already, with the same guest address.
    fn companion_there(
        &self,
        function: &Function,
        config: &CompanionConfig,
    ) -> Result<Option<Arc<Companion>>, DeviceError> {
        let mut attachments = self.attachments.lock();
        let holders = attachments.holders(function.address());
        let gone = || DeviceError::no_device("it is not attached any more");
        let holders = holders.ok_or_else(gone)?;
        let same = |(one, _): &&(Arc<Companion>, bool)| one.config().guest == config.guest;
        if let Some((companion, _)) = holders.companions.iter().find(same) {
            return Ok(Some(Arc::clone(companion)));
        }
        if holders.companions.is_empty() {
            return Ok(None);
        }
        // One ring and one key space for each function.
        Err(DeviceError::busy("it has a companion at another guest address"))
    }

    /// Destroys a companion: what was mapped by it is released. The last one who holds the function
    /// detaches it.
    pub fn destroy_companion(&self, companion: &Arc<Companion>) {
        let function = Arc::clone(companion.device());
        let released = self.attachments.lock().release_companion(function.address(), companion);
        let Some(last) = released else { return };
        companion.withdraw();
        if last {
            end(&function, Deadline::after(DETACH));
        }
    }

    fn attach_through(
        &self,
        connection: &Arc<Connection>,
        address: PciAddress,
        container: &Arc<Container>,
        name: Option<String>,
    ) -> Result<Function, AttachError> {
        let claimed = self.claim(connection, address)?;
        let kept = claimed.kept;
        let attached = self.join(connection, (address, kept), container, claimed, name);
        if attached.is_err()
            && !(kept && self.leave_as_it_is(connection, address))
            && let Err(error) = connection.detach(address, Deadline::after(DETACH))
        {
            tracing::warn!("Function {address}: undoing the claim: {error}");
        }
        attached
    }

    /// Claims a function. The dext may still clean up after somebody who held it and is gone: waited
    /// for with back-off, as a replacement does.
    fn claim(&self, connection: &Connection, address: PciAddress) -> Result<Claimed, AttachError> {
        let deadline = Deadline::after(self.config().recovery.timeout);
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
        loop {
            let error = match connection.attach(address) {
                Ok(claimed) => return Ok(claimed),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Busy || deadline.passed() {
                let error = self.who_claims(address, error);
                return Err(AttachError::Step { address, step: "claiming", error });
            }
            std::thread::sleep(backoff.pause());
        }
    }

    /// Says of a claim that somebody else holds whether that is a process, or the dext's cleaning up.
    fn who_claims(&self, address: PciAddress, error: DeviceError) -> DeviceError {
        if error.kind() != ErrorKind::Busy {
            return error;
        }
        let Ok(lister) = Lister::start_of(&self.config(), address) else { return error };
        let functions = lister.functions().unwrap_or_default();
        let found = functions.into_iter().find(|one| one.identity.address == address);
        let ours = |pid: u32| self.process_name(pid).is_some();
        let others: Vec<String> = found
            .iter()
            .flat_map(|one| &one.clients)
            .filter(|client| !ours(client.pid))
            .map(|client| format!("{} (pid {})", crate::text::printable(&client.name), client.pid))
            .collect();
        DeviceError::busy(if others.is_empty() {
            format!(
                "{error}: no process has it open, the dext still cleans up after one that is gone"
            )
        } else {
            format!("{error}: {} has it open", others.join(", "))
        })
    }

    fn join(
        &self,
        connection: &Arc<Connection>,
        (address, kept): (PciAddress, bool),
        container: &Arc<Container>,
        mut claimed: Claimed,
        name: Option<String>,
    ) -> Result<Function, AttachError> {
        let joined = match kept {
            true => container.join_as_it_is(address, connection),
            false => container.join(address, connection),
        };
        joined.map_err(|error| AttachError::Step {
            address,
            step: "mapping guest memory",
            error,
        })?;
        let mut spec = self.config().spec(Some(address));
        if let Some(handed) = &spec.handed {
            handed.set(std::mem::take(&mut claimed.handed));
        }
        if container.mode() == crate::DmaMode::Direct {
            // Only a companion has its process read guest memory.
            spec.arguments.push("--guest-memory=0".into());
        }
        let started = Function::start(Parts {
            address,
            spec,
            recovery: self.config().recovery,
            connection: Arc::clone(connection),
            container: Arc::clone(container),
            claimed,
            kept,
            name: name.unwrap_or_else(|| default_name(address)),
        });
        started.map_err(|death| {
            container.forget(address, connection);
            AttachError::Start { address, death }
        })
    }

    /// A connection process that runs and has a place for the function: one of its device, or of its isolation
    /// group, which has functions of several devices where an IOMMU does not tell them apart. Functions that are
    /// attached at once share it too. Nothing where there is none.
    ///
    /// Those that are being started and `may_have` it are waited for until the deadline.
    fn shared_connection(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
        may_have: impl Fn(PciAddress) -> bool,
        deadline: Deadline,
    ) -> Result<Option<Arc<Connection>>, AttachError> {
        let mut attachments = self.attachments.lock();
        loop {
            let mut starting = false;
            for (other, entry) in attachments.iter() {
                if other == address {
                    continue;
                }
                let connection = match entry {
                    Entry::Attached(holders) => holders.function.connection_handle(),
                    Entry::Attaching(Some(connection)) => connection,
                    Entry::Attaching(None) => {
                        starting |= may_have(other);
                        continue;
                    }
                };
                match connection.reserve(address, container) {
                    Ok(()) => return Ok(Some(Arc::clone(connection))),
                    Err(NotReserved::NotThere) => {}
                    Err(NotReserved::OtherGuest(other)) => {
                        let error = other_guest(other);
                        return Err(AttachError::Step {
                            address,
                            step: "sharing its group",
                            error,
                        });
                    }
                }
            }
            if !starting
                || self.changed.wait_until(&mut attachments, deadline.instant()).timed_out()
            {
                return Ok(None);
            }
        }
    }

    /// The connection process of the function's group with a place for the function: one that
    /// runs, or a new one.
    fn connection(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
    ) -> Result<Arc<Connection>, AttachError> {
        let config = self.config();
        // Of two that look at each other the one with the lower address goes on.
        let same_device = |other: PciAddress| other.same_device(address) && other < address;
        let deadline = Deadline::after(config.deadlines.start);
        let shared = self.shared_connection(address, container, same_device, deadline)?;
        if let Some(shared) = shared {
            return Ok(shared);
        }
        if let Some(taken) = self.take_over(address, container)? {
            return Ok(taken);
        }
        let started = Connection::start(
            &config.connection_spec(address),
            config.recovery,
            config.own_connection(),
        );
        let connection = match started {
            Ok(connection) => connection,
            Err(death) if config.is_vfio() => {
                // Another device's process may have opened its group a moment before.
                let deadline = Deadline::after(GROUP);
                let shared = self.shared_connection(address, container, |_| true, deadline)?;
                return shared.ok_or(AttachError::Start { address, death });
            }
            Err(death) => return Err(AttachError::Start { address, death }),
        };
        if connection.reserve(address, container).is_err() {
            if let Some(death) = connection.lost() {
                return Err(AttachError::Start { address, death });
            }
            let error = self.has_none(address);
            return Err(AttachError::Step { address, step: "opening", error });
        }
        let connection = Arc::new(connection);
        self.attachments.lock().through(address, Arc::clone(&connection));
        self.changed.notify_all();
        Ok(connection)
    }

    /// Detaches a function (P1.4): its own companion destroyed (P10.2), interrupts down, device
    /// withdrawn, container left, connection released; the connection process stops with its last
    /// function. Callers that wait are answered at once. Goes through with it whichever of the
    /// processes are dead or do not answer, within about a second. A companion that was created by
    /// itself keeps the function.
    pub fn detach(&self, function: &Function) {
        let deadline = Deadline::after(DETACH);
        let released = self.attachments.lock().release_device(function.address(), function);
        let Some((companions, last)) = released else { return };
        if !last {
            for companion in companions {
                companion.withdraw();
            }
            quiet(function);
            return;
        }
        end(function, deadline);
    }
}

/// Why a function is not attached of whose group another guest has one.
fn other_guest(other: PciAddress) -> DeviceError {
    DeviceError::busy(format!(
        "function {other} of its IOMMU group is attached to another guest's memory, and what one function of a \
         group is given all of them reach: they are attached with one container, or one after the other"
    ))
}

/// A name for a device without one (P1.6).
fn default_name(address: PciAddress) -> String {
    let plain = address.in_segment(0);
    format!("apple-{:04x}:{plain}", address.segment())
}

/// Takes the interrupts of a device down that goes while a companion keeps its function.
fn quiet(function: &Function) {
    use crate::device::{InterruptSetup, PassthroughDevice as _};
    use ipc::wire::function::InterruptIndex;
    for index in [InterruptIndex::Intx, InterruptIndex::Msi, InterruptIndex::Msix] {
        if let Err(error) = function.set_interrupts(index, InterruptSetup::Disable) {
            tracing::warn!("Function {}: taking interrupts down: {error}", function.address());
        }
    }
}

/// Ends a function that nobody holds any more. Its process takes the interrupts down with it, and its
/// opener, when it is closed, memory, registrations and the claim.
fn end(function: &Function, deadline: Deadline) {
    let (address, connection) = (function.address(), function.connection_handle());
    function.stop();
    function.container().forget(address, connection);
    if let Err(error) = connection.detach(address, deadline) {
        tracing::warn!("Function {address}: releasing the claim: {error}");
    }
    let_go(connection);
}

/// Stops a connection process that nobody uses any more.
fn let_go(connection: &Connection) {
    if connection.close_if_idle() {
        connection.stop();
    }
}
