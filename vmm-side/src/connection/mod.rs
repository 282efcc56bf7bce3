//! The VMM side of a connection process: claims, windows, guest memory and DMA of one physical
//! device. Shared by the functions of that device that are attached.

mod link;
mod own;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ipc::event::Signaller;
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::connection::{BarWindow, Carrier, DmaEntry, DmaStatistics, Ready, Reply, Request};
use ipc::wire::faults::Misbehaviour;
use ipc::wire::handshake::Role;
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, DeviceMemory, Event, PciAddress, SharedMemory, Tube};

use crate::device::{BarMemory, DeviceError};
use crate::memory::GuestRegion;
use crate::recovery::Recovery;
use crate::supervisor::{Cause, Death, Protocol, Spec, Supervisor};

pub(crate) use link::Link;
use link::{Process, Shared, State};

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

    fn misbehave(misbehaviour: Misbehaviour) -> Option<Request> {
        Some(Request::Misbehave(misbehaviour))
    }
}

impl Supervisor<ConnectionProtocol> {
    /// Memory of windows that came through the memory port, under `number`.
    fn memory(&self, number: u32, windows: &[BarWindow]) -> Result<Vec<DeviceMemory>, DeviceError> {
        let sizes: Vec<u64> = windows.iter().map(|window| window.length).collect();
        let deadline = Deadline::after(self.deadlines().call);
        let entries = self.memories().receive(number, &sizes, deadline);
        let entries = entries.map_err(|error| {
            DeviceError::Io(format!("The memory of its windows did not come: {error}"))
        })?;
        Ok(entries.into_iter().map(DeviceMemory::Entry).collect())
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

/// The connection to a physical device: a connection process, replaced when it dies or when its
/// dext did. What it held is lost with it, so those who hold functions through it watch the link
/// and claim them anew.
pub struct Connection {
    shared: Arc<Shared>,
    stop: Signaller,
    thread: Mutex<Option<JoinHandle<()>>>,
    died: Event,
}

impl Connection {
    /// Starts a connection process for the device of `spec`. `own` names the dext if the VMM is to
    /// map windows by a connection of its own.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready.
    pub fn start(spec: &Spec, recovery: Recovery, own: Option<String>) -> Result<Self, Arc<Death>> {
        let (process, ready) = Process::start(spec)?;
        let nobody =
            Arc::new(Death { cause: Cause::Stopped, ..Death::of_connection(&spec.subject) });
        let broken = |error: std::io::Error| {
            let cause = Cause::StartFailed(format!("cannot be watched: {error}"));
            Arc::new(Death { cause, ..(*nobody).clone() })
        };
        let (died, stopped) = (Event::new().map_err(broken)?, Event::new().map_err(broken)?);
        let stop = stopped.signaller().map_err(broken)?;
        let shared = Arc::new(Shared {
            spec: spec.clone(),
            recovery,
            own,
            state: Mutex::new(State::new(process, ready, Link::Up(0, Arc::clone(&nobody)))),
            died: died.signaller().map_err(broken)?,
        });
        let name = format!("link {}", spec.subject);
        let watcher = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name).spawn(move || watcher.watch(&stopped));
        let thread = Mutex::new(Some(thread.map_err(broken)?));
        Ok(Self { shared, stop, thread, died })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Whether there is a process.
    pub(crate) fn link(&self) -> Link {
        self.state().link.clone()
    }

    /// Signals `watcher` whenever the [`Link`] changes, on behalf of a function; the generation
    /// that it is claimed through.
    pub(crate) fn watch(&self, address: PciAddress, watcher: Signaller) -> u64 {
        let mut state = self.state();
        state.watchers.push((address.function(), watcher));
        state.generation
    }

    /// The function is not attached any more.
    pub(crate) fn unwatch(&self, address: PciAddress) {
        self.state().watchers.retain(|(function, _)| *function != address.function());
    }

    /// Process id of the one that serves now.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.state().process.pid()
    }

    /// What confines the process.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.state().sandbox.clone()
    }

    /// Readable once it is dead for good.
    #[must_use]
    pub fn died(&self) -> &Event {
        &self.died
    }

    /// Its death, once it is dead for good.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        let state = self.state();
        match &state.link {
            Link::Gone(death) => Some(Arc::clone(death)),
            // Nobody will replace it: dead as soon as the process is.
            Link::Up(..) if !self.shared.recovery.is_on() => state.process.death(),
            Link::Up(..) | Link::Away(_) => None,
        }
    }

    /// Whether `address` can be attached through this process; takes the place if so.
    pub(crate) fn reserve(&self, address: PciAddress) -> bool {
        let mut state = self.state();
        let up = matches!(state.link, Link::Up(..)) && state.process.death().is_none();
        let ours = state.functions.iter().any(|identity| identity.address == address);
        up && ours && state.free.remove(&address.function())
    }

    /// The process that serves now.
    fn process(&self) -> Result<Arc<Process>, DeviceError> {
        let state = self.state();
        match &state.link {
            Link::Up(..) => Ok(Arc::clone(&state.process)),
            Link::Away(death) | Link::Gone(death) => Err(DeviceError::Gone(Arc::clone(death))),
        }
    }

    fn done(&self, request: Request, handles: Vec<OwnedFd>) -> Result<(), DeviceError> {
        match self.process()?.call(request, handles)?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, request: Request) -> Result<Reply, DeviceError> {
        Ok(self.process()?.ask(request)?)
    }

    /// Claims a function, one that was reserved or one that comes back, and takes its windows.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn attach(&self, address: PciAddress) -> Result<Claimed, DeviceError> {
        let request = Request::Attach { function: address.function() };
        let process = self.process()?;
        let attached = process.call(request, Vec::new()).inspect_err(|_| {
            // Refused before it was claimed: it can be tried again.
            let mut state = self.state();
            if !state.attached.contains(&address.function()) {
                state.free.insert(address.function());
            }
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
        let by_descriptor = attached.carrier == Carrier::Descriptors;
        let count = if by_descriptor { attached.windows.len() } else { 0 };
        handles.expect(count).map_err(|error| DeviceError::Io(error.to_string()))?;
        let memories = match (attached.carrier, &self.shared.own) {
            (Carrier::Port, _) => process.memory(address.function().into(), &attached.windows)?,
            (Carrier::Own, Some(dext)) => own::memory(dext, address, &attached.windows)?,
            (Carrier::Own, None) => {
                let message = "It describes windows that it was to hand on".to_owned();
                return Err(DeviceError::Io(message));
            }
            (Carrier::Descriptors, _) => {
                let taken: Result<Vec<_>, _> = handles.map(SharedMemory::from_peer).collect();
                let taken = taken.map_err(|error| DeviceError::Io(error.to_string()))?;
                taken.into_iter().map(DeviceMemory::from).collect()
            }
        };
        let mut windows = Vec::new();
        for (window, memory) in attached.windows.iter().zip(memories) {
            let checked = check_window(window, &attached.bars, memory);
            windows.push(checked.map_err(|why| {
                DeviceError::Io(format!("Function {address}: window of BAR {}: {why}", window.bar))
            })?);
        }
        self.state().attached.insert(address.function());
        Ok(Claimed { identity: attached.identity, bars: attached.bars, windows })
    }

    /// Closes a function's opener: the dext releases what is left of it. `true` when no function
    /// is attached any more.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn detach(&self, address: PciAddress) -> Result<bool, DeviceError> {
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

    /// Resets a function that comes back (P8).
    pub(crate) fn reset(&self, address: PciAddress) -> Result<(), DeviceError> {
        self.done(Request::Reset { function: address.function() }, Vec::new())
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

    /// Registers a range for a function, on behalf of the VMM; its bus address.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn map_dma(&self, address: PciAddress, entry: DmaEntry) -> Result<u64, DeviceError> {
        match self.ask(Request::MapDma { function: address.function(), entry })? {
            Reply::Mapped { bus_address, .. } => Ok(bus_address),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes such a registration.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn unmap_dma(&self, address: PciAddress, key: u64) -> Result<(), DeviceError> {
        self.done(Request::UnmapDma { function: address.function(), key }, Vec::new())
    }

    /// Serves a function's companion over `tube`, whose other end is its function process's.
    pub(crate) fn serve_companion(
        &self,
        address: PciAddress,
        tube: Tube,
    ) -> Result<(), DeviceError> {
        self.done(Request::Companion { function: address.function() }, vec![tube.into()])
    }

    /// Removes everything that a function's companion registered. What a dead process had
    /// registered is gone with it.
    pub(crate) fn release_dma(&self, address: PciAddress) -> Result<(), DeviceError> {
        match self.done(Request::ReleaseDma { function: address.function() }, Vec::new()) {
            Err(DeviceError::Gone(_)) => Ok(()),
            released => released,
        }
    }

    /// Registrations of a function, now and at most.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn statistics(&self, address: PciAddress) -> Result<DmaStatistics, DeviceError> {
        match self.ask(Request::Statistics { function: address.function() })? {
            Reply::Statistics(statistics) => Ok(statistics),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the process, which is the one way to take everything from it; it counts as its death.
    pub(crate) fn end_process(&self) {
        let process = Arc::clone(&self.state().process);
        process.stop();
    }

    /// Stops the process in order; it is not replaced.
    pub fn stop(&self) -> Arc<Death> {
        self.stop.signal();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of {} panicked", self.shared.spec.subject);
        }
        let process = Arc::clone(&self.state().process);
        let death = process.stop();
        self.shared.change(|state| state.link = Link::Gone(Arc::clone(&death)));
        self.shared.died.signal();
        death
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Checks what a distrusted process says of a window against the BARs and the memory.
fn check_window(
    window: &BarWindow,
    bars: &[Option<BarInfo>; 6],
    memory: DeviceMemory,
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
