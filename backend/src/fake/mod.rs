//! A backend of memory in this process, for the tests of whoever uses the traits.
//!
//! A [`Fake`] is the host: its functions keep what is stored in them, fire interrupts, reach the
//! memory that they were given, and fail, stall or die as a test says. A [`FakeProcess`] is the
//! backend as one process sees it: what it holds goes with it when it is killed, as it would with a
//! real one, even if what stands for it is a thread that cannot be.
//!
//! Only one holder claims a function, and only one has its notified interrupts; what needs a claim
//! is refused without one.

mod description;
mod group;
mod handle;
mod interrupts;
mod state;

use std::io;
use std::sync::Arc;

use ipc::{Access, PciAddress, Window};

pub use description::{
    ASSIGNED_BASE, FakeFunction, FakeInterrupts, MSIX_CAPABILITY, MSIX_PENDING, MSIX_TABLE,
    POWER_CAPABILITY,
};

use self::group::FakeGroup;
use self::handle::Handle;
use self::state::{FakeShared, FunctionState, Holder};
use crate::error::{BackendError, ErrorKind};
use crate::group::{BusRange, OpenGroup};
use crate::{Backend, BackendKind, Listed, ServedFunction, Source, VectorSet};

/// The code of what is refused without a claim.
pub const NOT_CLAIMED: u32 = 1;
/// The code of what a test has fail.
pub const ON_PURPOSE: u32 = 2;

/// What a handle is asked, for [`Fake::fail`] and [`Fake::stall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names of the traits' methods")]
pub enum Operation {
    Open,
    Bars,
    ConfigRead,
    ConfigWrite,
    IsClaimed,
    OpenBar,
    BarRead,
    BarWrite,
    SetUpInterrupts,
    Drain,
    Arm,
    SetMask,
    Connect,
    MaskIntx,
    Reset,
    Claim,
    BarMemory,
    RegisterDma,
    UnregisterDma,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "Open",
            Self::Bars => "Bars",
            Self::ConfigRead => "ConfigRead",
            Self::ConfigWrite => "ConfigWrite",
            Self::IsClaimed => "IsClaimed",
            Self::OpenBar => "OpenBar",
            Self::BarRead => "BarRead",
            Self::BarWrite => "BarWrite",
            Self::SetUpInterrupts => "SetUpInterrupts",
            Self::Drain => "Drain",
            Self::Arm => "Arm",
            Self::SetMask => "SetMask",
            Self::Connect => "Connect",
            Self::MaskIntx => "MaskIntx",
            Self::Reset => "Reset",
            Self::Claim => "Claim",
            Self::BarMemory => "BarMemory",
            Self::RegisterDma => "RegisterDma",
            Self::UnregisterDma => "UnregisterDma",
        }
    }
}

/// The host.
#[derive(Clone)]
pub struct Fake(Arc<FakeShared>);

impl Fake {
    /// A host with these functions. Those of one bus:device are one group.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn new(functions: impl IntoIterator<Item = FakeFunction>) -> io::Result<Self> {
        FakeShared::new(functions.into_iter().collect()).map(Self)
    }

    /// The backend as a new process sees it.
    #[must_use]
    pub fn process(&self) -> FakeProcess {
        let number = self.0.state().number();
        FakeProcess { shared: Arc::clone(&self.0), number }
    }

    /// Looks at a function, or changes it.
    fn with<T>(&self, address: PciAddress, look: impl FnOnce(&mut FunctionState) -> T) -> T {
        let mut state = self.0.state();
        let function = state.functions.get_mut(&address);
        look(function.unwrap_or_else(|| panic!("the test made no function {address}")))
    }

    /// The device fires these vectors; with INTx, any of them is its line.
    pub fn fire(&self, address: PciAddress, vectors: impl IntoIterator<Item = u16>) {
        let vectors: VectorSet = vectors.into_iter().collect();
        self.with(address, |function| function.fire(vectors));
    }

    /// The memory of a BAR as the device sees it; `None` if it has none.
    #[must_use]
    pub fn bar(&self, address: PciAddress, bar: usize) -> Option<Arc<Window>> {
        self.with(address, |function| {
            let bar = function.bars.get(bar)?.as_ref();
            bar.map(|bar| Arc::clone(&bar.window))
        })
    }

    /// Config space as it is.
    #[must_use]
    pub fn config(&self, address: PciAddress) -> Vec<u8> {
        self.with(address, |function| function.config.clone())
    }

    /// The device reads memory; `false` if it was given none there.
    #[must_use]
    pub fn dma_read(&self, address: PciAddress, bus: u64, into: &mut [u8]) -> bool {
        self.reach(address, bus, into.len(), false, |window, at| window.copy_out(at, into).is_ok())
    }

    /// The device writes memory; `false` if it was given none there that it may write.
    #[must_use]
    pub fn dma_write(&self, address: PciAddress, bus: u64, from: &[u8]) -> bool {
        self.reach(address, bus, from.len(), true, |window, at| window.copy_in(at, from).is_ok())
    }

    fn reach(
        &self,
        address: PciAddress,
        bus: u64,
        length: usize,
        write: bool,
        access: impl FnOnce(&Window, u64) -> bool,
    ) -> bool {
        /// A multiple of every page size.
        const PAGE: u64 = 64 * 1024;
        self.with(address, |function| {
            let Some((region, at)) = function.reach(bus, length as u64) else { return false };
            if write && !region.writable {
                return false;
            }
            let (page, into) = (at / PAGE * PAGE, at % PAGE);
            let whole = usize::try_from(into).unwrap_or(usize::MAX).saturating_add(length);
            let window = region.memory.map(page, whole, Access::ReadWrite);
            window.is_ok_and(|window| access(&window, into))
        })
    }

    /// What is registered for DMA: keys, and where the device reaches them.
    #[must_use]
    pub fn registered(&self, address: PciAddress) -> Vec<(u64, BusRange)> {
        self.with(address, |function| {
            function.dma.iter().map(|(key, region)| (*key, region.at)).collect()
        })
    }

    /// Whether a process holds the claim.
    #[must_use]
    pub fn is_claimed(&self, address: PciAddress) -> bool {
        self.with(address, |function| function.claim.is_some())
    }

    /// Wants it back, of whoever may go on with it when its process has died.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn ask_for(&self, address: PciAddress) -> io::Result<()> {
        self.with(address, |function| function.request.signaller()).map(|event| event.signal())
    }

    /// How often it was reset.
    #[must_use]
    pub fn resets(&self, address: PciAddress) -> u32 {
        self.with(address, |function| function.resets)
    }

    /// How often a function was asked something.
    #[must_use]
    pub fn calls(&self, address: PciAddress, operation: Operation) -> u64 {
        self.0.state().calls.get(&(address, operation)).copied().unwrap_or_default()
    }

    /// From here on the function fails at `operation`, until [`Fake::recover`].
    pub fn fail(&self, address: PciAddress, operation: Operation, kind: ErrorKind) {
        self.0.state().failing.insert((address, operation), (0, kind));
    }

    /// [`Fake::fail`], after so many calls more of it that do not.
    pub fn fail_after(
        &self,
        address: PciAddress,
        operation: Operation,
        good: u64,
        kind: ErrorKind,
    ) {
        let (mut state, call) = (self.0.state(), (address, operation));
        let calls = state.calls.get(&call).copied().unwrap_or_default();
        state.failing.insert(call, (calls + good, kind));
    }

    /// The function fails at `operation` no more.
    pub fn recover(&self, address: PciAddress, operation: Operation) {
        self.0.state().failing.remove(&(address, operation));
    }

    /// From here on whoever asks for `operation` waits, until [`Fake::resume`], or until its process is
    /// killed or the fake dies.
    pub fn stall(&self, operation: Operation) {
        self.0.state().stalled.insert(operation);
    }

    /// How many calls of `operation` wait.
    #[must_use]
    pub fn waiting(&self, operation: Operation) -> usize {
        self.0.state().waiting.get(&operation).copied().unwrap_or_default()
    }

    /// Lets those go on that wait in `operation`.
    pub fn resume(&self, operation: Operation) {
        self.0.state().stalled.remove(&operation);
        self.0.changed.notify_all();
    }

    /// The backend dies: what is open is lost for good, and nothing can be opened.
    pub fn die(&self) {
        self.0.state().die();
        self.0.changed.notify_all();
    }

    /// The backend is there again, with functions as they were made.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn revive(&self) -> io::Result<()> {
        self.0.state().revive()
    }
}

/// The backend as one process sees it.
#[derive(Clone)]
pub struct FakeProcess {
    shared: Arc<FakeShared>,
    number: u64,
}

impl FakeProcess {
    /// The process is killed: what it holds is released at once, or left to a successor where it
    /// survives; its calls, also one that is stalled, fail from here on.
    pub fn kill(&self) {
        self.shared.state().kill(self.number);
        self.shared.changed.notify_all();
    }

    /// The process is stopped where it is: its calls wait until it is killed, and what it drops is
    /// not released before.
    pub fn suspend(&self) {
        self.shared.state().suspended.insert(self.number);
    }

    /// Whether it is suspended and not killed.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        let state = self.shared.state();
        state.suspended.contains(&self.number) && !state.dead.contains(&self.number)
    }

    /// Whether it was killed.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.shared.state().dead.contains(&self.number)
    }

    /// Waits for as long as the process is suspended and not killed.
    pub fn wait_while_suspended(&self) {
        drop(self.shared.while_suspended(self.number));
    }

    fn open(&self, address: PciAddress) -> Result<Handle, BackendError> {
        let failed = |kind, text: String| {
            BackendError::new(kind, format!("Function {address}"), Operation::Open.name(), text)
        };
        let mut state = self.shared.state();
        if state.dead.contains(&self.number) {
            return Err(failed(ErrorKind::Lost, "the process was killed".to_owned()));
        }
        if state.is_dead() {
            let kind = ErrorKind::Unreachable;
            return Err(BackendError::new(kind, "fake backend", "Open", "it is dead"));
        }
        if let Some((_, kind)) = state.failing.get(&(address, Operation::Open)) {
            return Err(failed(*kind, "on purpose".to_owned()).with_code(Some(ON_PURPOSE)));
        }
        let holder = Holder { process: self.number, handle: state.number() };
        let no_such = || failed(ErrorKind::NoSuchDevice, format!("there is no function {address}"));
        let function = state.functions.get(&address).ok_or_else(no_such)?;
        Handle::new(&self.shared, &state, function, holder)
            .map_err(|error| failed(ErrorKind::NoSpace, error.to_string()))
    }

    /// Addresses of the functions that are there.
    fn addresses(&self) -> Vec<PciAddress> {
        self.shared.state().functions.keys().copied().collect()
    }
}

impl Backend for FakeProcess {
    /// As VFIO, where each of its functions is handed on.
    fn kind(&self) -> BackendKind {
        let state = self.shared.state();
        let mut all = state.functions.values();
        let is_vfio = !state.functions.is_empty() && all.all(|function| function.made.handed);
        if is_vfio { BackendKind::Vfio } else { BackendKind::Calls }
    }

    fn list(&self, limit: usize) -> Result<Vec<Listed>, BackendError> {
        let open = |address| {
            let function = Box::new(self.open(address)?);
            Ok(Listed { function, root_bridge: None, peers: Vec::new() })
        };
        self.addresses().into_iter().take(limit).map(open).collect()
    }

    fn open_function(
        &self,
        address: PciAddress,
        source: Source,
    ) -> Result<Box<dyn ServedFunction>, BackendError> {
        let handle = self.open(address)?;
        if handle.is_opened_by(&source) {
            return Ok(Box::new(handle));
        }
        Err(wrong_source(address))
    }

    fn open_group(&self, address: PciAddress, source: Source) -> Result<OpenGroup, BackendError> {
        let mut addresses = self.addresses();
        addresses.retain(|found| found.same_device(address));
        if !addresses.contains(&address) {
            // Opening it says that it is not there.
            addresses = vec![address];
        }
        let opened: Result<Vec<Handle>, _> =
            addresses.into_iter().map(|address| self.open(address)).collect();
        let opened = opened?;
        let right = match &source {
            Source::Own | Source::OwnAt(_) => {
                opened.iter().for_each(Handle::begin_anew);
                true
            }
            Source::Handed(_) | Source::HandedGroup(_) | Source::HandedDevices(_) => false,
            Source::Adopted(left) => opened.iter().all(|handle| handle.adopt(&left.group)),
        };
        if !right {
            return Err(wrong_source(address));
        }
        let survives = opened.iter().any(Handle::survives);
        let tokens = opened.iter().map(Handle::token).collect();
        let functions = opened.into_iter().map(|one| Box::new(one) as _).collect();
        Ok(OpenGroup { group: Box::new(FakeGroup { address, survives, tokens }), functions })
    }
}

fn wrong_source(address: PciAddress) -> BackendError {
    let why = "it is not opened like this";
    BackendError::new(ErrorKind::Unsupported, format!("Function {address}"), "Open", why)
}

#[cfg(test)]
mod tests;
