//! A simulated device and a [`Host`] over it, for VMMs that link `cordon-vmm`: the test stands in for the VMM, or hands
//! [`Rig::config`] to it.

use std::ffi::OsString;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cordon_vmm::faults::{Fault, FaultPlan, FaultReport, Faults, Target};
use cordon_vmm::{
    Container, DmaMode, Function, Host, HostConfig, PciAddress, Presence, Recovery, Window,
};

use crate::simulator::{Dart, Held, Simulator};
use crate::{DextFault, Error, Programs, guest, wait};

/// How long anything that a rig waits for may take: a device that is away comes back within 30 s or not at all.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(40);
/// How long the dext may take to clean up after clients that are gone.
const SETTLING: Duration = Duration::from_secs(5);
/// Bytes of guest memory, unless [`RigBuilder::memory`] says otherwise.
const MEMORY: u64 = 4 << 20;

/// What a rig is made of.
#[derive(Clone, Debug)]
#[must_use]
pub struct RigBuilder {
    pub(crate) programs: Programs,
    devices: Vec<OsString>,
    dart: Dart,
    dext_faults: Vec<DextFault>,
    pub(crate) plan: FaultPlan,
    pub(crate) recovery: Recovery,
    pub(crate) strict: bool,
    memory: u64,
}

impl RigBuilder {
    /// Another device, as `dext-sim --device` takes it: `01:00.0=nvme,size=64M,queues=4`, `01:00.1=probe`.
    pub fn device(mut self, device: impl Into<OsString>) -> Self {
        self.devices.push(device.into());
        self
    }

    /// A fault of a device process: see [`function`](crate::function) and [`connection`](crate::connection).
    pub fn fault(mut self, fault: Fault) -> Self {
        self.plan.faults.push(fault);
        self
    }

    /// A fault of the dext.
    pub fn dext_fault(mut self, fault: DextFault) -> Self {
        self.dext_faults.push(fault);
        self
    }

    /// Who chooses bus addresses: [`Dart::Identity`] unless this says otherwise.
    pub fn dart(mut self, dart: Dart) -> Self {
        self.dart = dart;
        self
    }

    /// How dead processes are replaced: as in production unless this says otherwise.
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// Start processes also where a layer of their sandbox is missing, as in a container that allows no namespaces.
    pub fn relaxed(mut self) -> Self {
        self.strict = false;
        self
    }

    /// Bytes of guest memory, in whole pages: 4 MiB unless this says otherwise.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Where the programs are: [`Programs::found`] unless this says otherwise.
    pub fn programs(mut self, programs: Programs) -> Self {
        self.programs = programs;
        self
    }

    /// The simulator alone, with the devices and faults of this rig.
    ///
    /// # Errors
    /// [`Error::NoProgram`], [`Error::Run`], [`Error::NotReady`].
    pub fn simulator(&self) -> Result<Simulator, Error> {
        let option = |name: &str, value: &OsString| {
            let mut option = OsString::from(name);
            option.push(value);
            option
        };
        let devices = self.devices.iter().map(|device| option("--device=", device));
        let faults = self.dext_faults.iter().map(|fault| format!("--fault={fault}").into());
        let arguments = devices.chain(faults).chain([self.dart.argument().into()]).collect();
        Simulator::start(self.programs.find("dext-sim")?, arguments)
    }

    /// Starts the simulator and makes a [`Host`] over it. Nothing is attached yet.
    ///
    /// # Errors
    /// Those of [`RigBuilder::simulator`]; [`Error::Fault`] for one that makes no sense; [`Error::System`] without
    /// memory.
    pub fn start(self) -> Result<Rig, Error> {
        let faults = Faults::new(self.plan.clone())?;
        let device_proc = self.programs.find("device-proc")?;
        let simulator = self.simulator()?;
        let config = HostConfig::new(device_proc, simulator.endpoint())
            .with_strict(self.strict)
            .with_recovery(self.recovery)
            .with_faults(Some(Arc::clone(&faults)));
        let mode = match self.dart {
            Dart::Identity => DmaMode::Direct,
            Dart::Strict => DmaMode::Companion,
        };
        let (container, ram) = guest::memory(mode, self.memory)?;
        let host = Host::new(config.clone());
        let attached = Mutex::default();
        Ok(Rig { attached, host, container, ram, config, faults, simulator })
    }

    /// Starts the simulator and a `cordon serve` that serves each of these functions, for a VMM that speaks vfio-user.
    ///
    /// # Errors
    /// Those of [`RigBuilder::simulator`]; [`Error::Fault`] for one that makes no sense; [`Error::NotReady`] when it
    /// does not get ready within 40 s.
    pub fn serve(self, functions: &[&str]) -> Result<crate::Served, Error> {
        crate::Served::start(&self, functions)
    }
}

/// A simulated device, and a [`Host`] with a container of guest memory over it. What is attached is detached with it.
pub struct Rig {
    attached: Mutex<Vec<Arc<Function>>>,
    host: Host,
    container: Arc<Container>,
    ram: Window,
    config: HostConfig,
    faults: Arc<Faults>,
    simulator: Simulator,
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig").field("simulator", &self.simulator).finish_non_exhaustive()
    }
}

/// A fault that struck, and that the device survived.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survived {
    /// Which.
    pub fault: Fault,
    /// Process id of whom it struck.
    pub process: u32,
    /// Process id of who serves instead; the same when the fault leaves the process alive.
    pub successor: u32,
    /// Of a function process that was replaced: how long that took, from noticing its death to serving again.
    pub took: Option<Duration>,
}

impl fmt::Display for Survived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, process, successor, took } = self;
        write!(f, "{fault}: struck process {process}")?;
        if successor != process {
            write!(f, ", which process {successor} replaced")?;
        }
        match took {
            Some(took) => write!(f, " in {took:.1?}"),
            None => Ok(()),
        }
    }
}

impl Rig {
    /// A rig of no device yet.
    pub fn builder() -> RigBuilder {
        RigBuilder {
            programs: Programs::found(),
            devices: Vec::new(),
            dart: Dart::Identity,
            dext_faults: Vec::new(),
            plan: FaultPlan::default(),
            recovery: Recovery::default(),
            strict: true,
            memory: MEMORY,
        }
    }

    /// A rig with this device, as `dext-sim --device` takes it.
    pub fn with_device(device: impl Into<OsString>) -> RigBuilder {
        Self::builder().device(device)
    }

    /// Attaches a function to the rig's container, as a VMM does.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Attach`].
    pub fn attach(&self, function: &str) -> Result<Arc<Function>, Error> {
        let address: PciAddress =
            function.parse().map_err(|_| Error::Address(function.to_owned()))?;
        let function = self.host.attach(address, &self.container, None)?;
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&function));
        Ok(function)
    }

    /// How the VMM under test starts processes over this device, with this rig's faults: for a [`Host`] of its own.
    #[must_use]
    pub fn config(&self) -> HostConfig {
        self.config.clone()
    }

    /// The rig's own host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The container of the functions that [`Rig::attach`] attaches: guest memory at [`guest::RAM_BASE`].
    #[must_use]
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// That guest memory, as the VMM sees it.
    #[must_use]
    pub fn ram(&self) -> &Window {
        &self.ram
    }

    /// The dext.
    #[must_use]
    pub fn simulator(&self) -> &Simulator {
        &self.simulator
    }

    /// The dext, to be killed and started again.
    pub fn simulator_mut(&mut self) -> &mut Simulator {
        &mut self.simulator
    }

    /// Arms another fault; its requests are counted from now.
    ///
    /// # Errors
    /// [`Error::Fault`] for one that makes no sense.
    pub fn strike(&self, fault: Fault) -> Result<(), Error> {
        Ok(self.faults.add(fault)?)
    }

    /// Every fault, and at which process it fired if it did.
    #[must_use]
    pub fn report(&self) -> Vec<FaultReport> {
        self.faults.report()
    }

    /// Waits until every fault of this rig that may strike `function` has, and until the function is served after it:
    /// by another function process, or after its return by another connection process. In the order in which the
    /// faults were given.
    ///
    /// # Errors
    /// [`Error::Overdue`] after 40 s, naming the fault; [`Error::GivenUp`] when the function is served no more.
    pub fn survived(&self, function: &Function) -> Result<Vec<Survived>, Error> {
        let own = |fault: &Fault| fault.device.is_none_or(|device| device == function.address());
        let count = self.report().len();
        let mut survived = Vec::new();
        for at in 0..count {
            // Nothing is ever taken out, so that a fault's place is its name.
            let fault = self.report().swap_remove(at).fault;
            if !own(&fault) {
                continue;
            }
            let found = wait::until_some(TIMEOUT, || {
                if let Some(death) = function.death() {
                    return Some(Err(Error::GivenUp(death)));
                }
                survival(&self.report()[at], function).map(Ok)
            });
            let overdue = || {
                let report = self.report().swap_remove(at);
                let what = match report.fired {
                    None => format!("'{fault}' did not strike: {} such requests came", report.seen),
                    Some(pid) => format!("'{fault}' struck process {pid}, which was not replaced"),
                };
                Error::Overdue { what, time: TIMEOUT }
            };
            survived.push(found.unwrap_or_else(|| Err(overdue()))?);
        }
        Ok(survived)
    }

    /// Detaches what [`Rig::attach`] attached, and looks whether the dext still has anything of any client, also of a
    /// VMM that was given [`Rig::config`].
    ///
    /// # Errors
    /// [`Error::Left`] when it does after 5 s.
    pub fn finish(self) -> Result<(), Error> {
        self.detach();
        let left: Vec<Held> = self.simulator.settled(SETTLING)?;
        if left.is_empty() { Ok(()) } else { Err(Error::Left(left)) }
    }

    fn detach(&self) {
        let attached =
            std::mem::take(&mut *self.attached.lock().unwrap_or_else(PoisonError::into_inner));
        for function in attached {
            self.host.detach(&function);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Before the dext ends, whose end would be a surprise removal.
        self.detach();
    }
}

/// What became of a fault that fired, once the function is served again.
fn survival(report: &FaultReport, function: &Function) -> Option<Survived> {
    let process = report.fired?;
    let successor = match report.fault.process {
        Target::Function => function.pid(),
        Target::Connection => function.connection().pid(),
    };
    let there = matches!(function.presence(), Presence::Present);
    let survived = |took| Survived { fault: report.fault.clone(), process, successor, took };
    if !report.fault.what.is_deadly() {
        return there.then(|| survived(None));
    }
    let after = match report.fault.process {
        Target::Function => function.replacements() + function.returns() + function.upgrades() > 0,
        Target::Connection => function.returns() > 0,
    };
    let took = match report.fault.process {
        Target::Function => function.recoveries().last().copied(),
        Target::Connection => None,
    };
    (there && after && successor != process).then(|| survived(took))
}
