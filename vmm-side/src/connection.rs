//! The VMM side of a connection process: claims, windows, guest memory and DMA of one physical
//! device. Shared by the functions of that device that are attached.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::connection::{DmaEntry, DmaOutcome, DmaStatistics, Ready, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::wire::sandbox::SandboxReport;
use ipc::{PciAddress, SharedMemory};

use crate::device::{BarMemory, DeviceError};
use crate::memory::GuestRegion;
use crate::supervisor::{CallError, Death, Protocol, Spec, Supervisor};

/// What is said to a connection process.
#[derive(Debug)]
pub struct ConnectionProtocol;

impl Protocol for ConnectionProtocol {
    type Request = Request;
    type Reply = Reply;
    type Ready = Ready;
    const ROLE: Role = Role::Connection;
    const COMMAND: &'static str = "connection";

    fn shutdown() -> Request {
        Request::Shutdown
    }
}

/// What a claim brought.
#[derive(Debug)]
pub struct Claimed {
    /// What was claimed.
    pub identity: Identity,
    /// Its BARs.
    pub bars: [Option<BarInfo>; 6],
    /// The parts of them that a guest may have.
    pub windows: Vec<BarMemory>,
}

/// A connection process.
pub struct Connection {
    supervisor: Supervisor<ConnectionProtocol>,
    functions: Vec<Identity>,
    sandbox: SandboxReport,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Functions that can be attached: each once in the life of the process, since a closed dext
    /// connection cannot be opened again from inside.
    free: BTreeSet<u8>,
    attached: BTreeSet<u8>,
}

impl Connection {
    /// Starts a connection process for the device of `address`.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready.
    pub fn start(spec: &Spec) -> Result<Self, Arc<Death>> {
        let (supervisor, ready) = Supervisor::<ConnectionProtocol>::start(spec)?;
        let free = ready.functions.iter().map(|identity| identity.address.function()).collect();
        Ok(Self {
            supervisor,
            functions: ready.functions,
            sandbox: ready.sandbox,
            state: Mutex::new(State { free, ..State::default() }),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.supervisor.pid()
    }

    /// What confines the process.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxReport {
        &self.sandbox
    }

    /// Readable once it is dead.
    #[must_use]
    pub fn died(&self) -> &ipc::Event {
        self.supervisor.died()
    }

    /// Its death, once it is dead.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        self.supervisor.death()
    }

    /// Whether `address` can be attached through this process; takes the place if so.
    pub(crate) fn reserve(&self, address: PciAddress) -> bool {
        let ours = self.functions.iter().any(|identity| identity.address == address);
        ours && self.death().is_none() && self.state().free.remove(&address.function())
    }

    fn call(&self, request: Request, handles: Vec<OwnedFd>) -> Result<Reply, DeviceError> {
        Ok(self.supervisor.call(request, handles)?.0)
    }

    fn done(&self, request: Request, handles: Vec<OwnedFd>) -> Result<(), DeviceError> {
        match self.call(request, handles)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Claims a function that was reserved and takes its windows.
    pub(crate) fn attach(&self, address: PciAddress) -> Result<Claimed, DeviceError> {
        let request = Request::Attach { function: address.function() };
        let attached = self.supervisor.call(request, Vec::new()).inspect_err(|_| {
            // Refused before it was claimed: it can be tried again.
            self.state().free.insert(address.function());
        });
        let (reply, handles) = attached?;
        let Reply::Attached(attached) = reply else {
            return Err(unexpected(&reply));
        };
        if attached.identity.address != address {
            let found = attached.identity.address;
            return Err(DeviceError::Io(format!("Asked for {address}, {found} was claimed")));
        }
        for warning in &attached.warnings {
            tracing::warn!("{}", crate::text::printable(warning));
        }
        let counts = handles.expect(attached.windows.len());
        counts.map_err(|error| DeviceError::Io(error.to_string()))?;
        let mut windows = Vec::new();
        for (window, handle) in attached.windows.iter().zip(handles) {
            let checked = check_window(window, &attached.bars, handle);
            windows.push(checked.map_err(|why| {
                DeviceError::Io(format!("Function {address}: window of BAR {}: {why}", window.bar))
            })?);
        }
        self.state().attached.insert(address.function());
        Ok(Claimed { identity: attached.identity, bars: attached.bars, windows })
    }

    /// Closes a function's opener: the dext releases what is left of it. `true` when no function
    /// is attached any more.
    pub(crate) fn detach(&self, address: PciAddress) -> Result<bool, DeviceError> {
        let none_left = {
            let mut state = self.state();
            state.attached.remove(&address.function());
            state.attached.is_empty()
        };
        self.done(Request::Detach { function: address.function() }, Vec::new())?;
        Ok(none_left)
    }

    /// Whether no function is attached.
    pub(crate) fn is_idle(&self) -> bool {
        self.state().attached.is_empty()
    }

    /// Gives a function a region of guest memory.
    pub(crate) fn add_memory(
        &self,
        address: PciAddress,
        region: &GuestRegion,
    ) -> Result<(), DeviceError> {
        let handle = region.memory.try_clone();
        let handle = handle.map_err(|error| DeviceError::NoSpace(error.to_string()))?.into_fd();
        let request = Request::AddMemory {
            function: address.function(),
            base: region.iova,
            size: region.size,
            offset: region.offset,
            writable: region.writable,
        };
        self.done(request, vec![handle])
    }

    /// Takes a region away from a function.
    pub(crate) fn remove_memory(&self, address: PciAddress, base: u64) -> Result<(), DeviceError> {
        self.done(Request::RemoveMemory { function: address.function(), base }, Vec::new())
    }

    /// Registers ranges for a function.
    ///
    /// # Errors
    /// [`DeviceError`] for the batch as a whole; each entry has its own outcome.
    pub fn map_dma(
        &self,
        address: PciAddress,
        entries: Vec<DmaEntry>,
    ) -> Result<Vec<DmaOutcome>, DeviceError> {
        let count = entries.len();
        self.dma(Request::MapDma { function: address.function(), entries }, count)
    }

    /// Removes registrations of a function.
    ///
    /// # Errors
    /// As [`Connection::map_dma`].
    pub fn unmap_dma(
        &self,
        address: PciAddress,
        keys: Vec<u64>,
    ) -> Result<Vec<DmaOutcome>, DeviceError> {
        let count = keys.len();
        self.dma(Request::UnmapDma { function: address.function(), keys }, count)
    }

    fn dma(&self, request: Request, count: usize) -> Result<Vec<DmaOutcome>, DeviceError> {
        match self.supervisor.ask(request)? {
            Reply::Dma(outcomes) if outcomes.len() == count => Ok(outcomes),
            other => Err(unexpected(&other)),
        }
    }

    /// Registrations of a function, now and at most.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn statistics(&self, address: PciAddress) -> Result<DmaStatistics, DeviceError> {
        match self.supervisor.ask(Request::Statistics { function: address.function() })? {
            Reply::Statistics(statistics) => Ok(statistics),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the process in order.
    pub fn stop(&self) -> Arc<Death> {
        self.supervisor.stop()
    }
}

/// Checks what a distrusted process says of a window against the BARs and the memory.
fn check_window(
    window: &ipc::wire::connection::BarWindow,
    bars: &[Option<BarInfo>; 6],
    handle: OwnedFd,
) -> Result<BarMemory, String> {
    const GRANULE: u64 = 16 * 1024;
    let bar = bars.get(usize::from(window.bar)).copied().flatten();
    let size = bar.ok_or("there is no such BAR")?.size;
    let aligned = [window.offset, window.length, window.memory_offset]
        .iter()
        .all(|value| value.is_multiple_of(GRANULE));
    if !aligned || window.length == 0 {
        return Err("it is not made of whole pages of 16 KiB".to_owned());
    }
    if window.offset.checked_add(window.length).is_none_or(|end| end > size) {
        return Err(format!("it does not lie in the BAR of {size:#x} bytes"));
    }
    let memory = SharedMemory::from_peer(handle).map_err(|error| error.to_string())?;
    if window.memory_offset.checked_add(window.length).is_none_or(|end| end > memory.size()) {
        return Err("its memory does not hold it".to_owned());
    }
    Ok(BarMemory {
        bar: window.bar,
        offset: window.offset,
        length: window.length,
        memory,
        memory_offset: window.memory_offset,
    })
}

/// A reply that does not belong to its request.
pub(crate) fn unexpected(reply: &impl std::fmt::Debug) -> DeviceError {
    let text: String = format!("{reply:?}").chars().take(60).collect();
    DeviceError::Io(format!("The process answered something else: {text}"))
}

/// Why one entry of a batch failed.
pub(crate) fn outcome(outcome: DmaOutcome) -> Result<Option<u64>, DeviceError> {
    match outcome {
        DmaOutcome::Mapped { bus_address, .. } => Ok(Some(bus_address)),
        DmaOutcome::Unmapped => Ok(None),
        DmaOutcome::Failed(failure) => Err(CallError::Refused(failure).into()),
    }
}
