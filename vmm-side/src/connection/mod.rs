//! The VMM side of a connection process: claims, windows, guest memory and DMA of one physical
//! device. Shared by the functions of that device that are attached.

mod keep;
mod own;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use ipc::event::Signaller;
use ipc::wire::call::Call;
use ipc::wire::common::{BarInfo, Identity, Ping};
use ipc::wire::connection::{
    AbandonBatch, AddMemory, Attach, Attached, Carrier, Companion, Detach, DmaEntry, DmaStatistics,
    GetStatistics, MapDma, Ready, ReleaseDma, RemoveMemory, Request, Reset, UnmapDma,
};
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, DeviceMemory, Event, Handles, PciAddress, SharedMemory, Tube};
use parking_lot::Mutex;

use crate::child::{Cause, Child, ConnectionProtocol, Death, Spec};
use crate::device::BarMemory;
use crate::error::{DeviceError, ErrorKind};
use crate::keeper::KeeperThread;
use crate::memory::GuestRegion;
use crate::recovery::Recovery;
use crate::window_check;

type Process = Child<ConnectionProtocol>;

/// Whether there is a connection process.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// The one of this generation serves; how the one before it died, if there was one.
    Up(u64, Arc<Death>),
    /// It died and is being replaced.
    Away(Arc<Death>),
    /// It died for good.
    Gone(Arc<Death>),
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

struct ConnectionState {
    link: Link,
    process: Arc<Process>,
    functions: Vec<Identity>,
    sandbox: SandboxReport,
    /// Functions that can be attached: each once in the life of a process, since a closed dext
    /// connection cannot be opened again from inside.
    free: BTreeSet<u8>,
    /// Functions whose place was taken to attach them.
    reserved: BTreeSet<u8>,
    /// Nobody takes a place any more: it is about to be stopped.
    closed: bool,
    attached: BTreeSet<u8>,
    watchers: Vec<(u8, Signaller)>,
    generation: u64,
}

impl ConnectionState {
    fn new(process: Arc<Process>, ready: Ready, link: Link) -> Self {
        let free = ready.functions.iter().map(|identity| identity.address.function()).collect();
        let (attached, reserved, watchers) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let Ready { functions, sandbox } = ready;
        Self {
            link,
            process,
            functions,
            sandbox,
            free,
            reserved,
            closed: false,
            attached,
            watchers,
            generation: 0,
        }
    }
}

struct ConnectionShared {
    spec: Spec,
    recovery: Recovery,
    /// The dext, if the VMM maps windows by a connection of its own.
    own: Option<OsString>,
    state: Mutex<ConnectionState>,
    died: Signaller,
}

impl ConnectionShared {
    /// Changes the state and tells everybody who holds a function through it.
    fn change(&self, change: impl FnOnce(&mut ConnectionState)) {
        let mut state = self.state.lock();
        change(&mut state);
        state.watchers.iter().for_each(|(_, watcher)| watcher.signal());
    }
}

/// The connection to a physical device: a connection process, replaced when it dies or when its
/// dext did. What it held is lost with it, so those who hold functions through it watch the link
/// and claim them anew.
pub struct Connection {
    shared: Arc<ConnectionShared>,
    thread: KeeperThread,
    died: Event,
}

impl Connection {
    /// Starts a connection process for the device of `spec`. `own` names the dext if the VMM is to
    /// map windows by a connection of its own.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready.
    pub fn start(
        spec: &Spec,
        recovery: Recovery,
        own: Option<OsString>,
    ) -> Result<Self, Arc<Death>> {
        let failed = |why: &str| {
            let cause = Cause::StartFailed(why.to_owned());
            Arc::new(Death::of_connection(&spec.subject, cause))
        };
        let no_room = |error: std::io::Error| {
            Arc::new(Death::of_connection(&spec.subject, Cause::no_room(error)))
        };
        let died = Event::new().map_err(no_room)?;
        let tell_death = died.signaller().map_err(no_room)?;
        let (sender, started) = sync_channel(1);
        let name = format!("connection {}", spec.subject);
        let own_spec = spec.clone();
        let thread = KeeperThread::spawn(name, move |parts| {
            keep::run(own_spec, recovery, own, tell_death, parts, &sender);
        });
        let thread = thread.map_err(no_room)?;
        let started = started.recv().unwrap_or_else(|_| Err(failed("its keeper ended")));
        Ok(Self { shared: started?, thread, died })
    }

    /// Whether there is a process.
    pub(crate) fn link(&self) -> Link {
        self.shared.state.lock().link.clone()
    }

    /// Signals `watcher` whenever the [`Link`] changes, on behalf of a function; the generation
    /// that it is claimed through.
    pub(crate) fn watch(&self, address: PciAddress, watcher: Signaller) -> u64 {
        let mut state = self.shared.state.lock();
        state.watchers.push((address.function(), watcher));
        state.generation
    }

    /// The function is not attached any more.
    pub(crate) fn unwatch(&self, address: PciAddress) {
        let mut state = self.shared.state.lock();
        state.watchers.retain(|(function, _)| *function != address.function());
    }

    /// Process id of the one that serves now.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.state.lock().process.pid()
    }

    /// What confines the process.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.shared.state.lock().sandbox.clone()
    }

    /// Readable once it is dead for good.
    #[must_use]
    pub fn died(&self) -> &Event {
        &self.died
    }

    /// Its death, once it is dead for good.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        let state = self.shared.state.lock();
        match &state.link {
            Link::Gone(death) => Some(Arc::clone(death)),
            // Nobody will replace it: dead as soon as the process is.
            Link::Up(..) if !self.shared.recovery.is_on() => state.process.death(),
            Link::Up(..) | Link::Away(_) => None,
        }
    }

    /// Whether `address` can be attached through this process; takes the place if so.
    pub(crate) fn reserve(&self, address: PciAddress) -> bool {
        let mut state = self.shared.state.lock();
        let up = matches!(state.link, Link::Up(..)) && !state.process.fate.is_condemned();
        let ours = state.functions.iter().any(|identity| identity.address == address);
        let taken = up && ours && !state.closed && state.free.remove(&address.function());
        if taken {
            state.reserved.insert(address.function());
        }
        taken
    }

    /// Gives a place back that was reserved and not used.
    pub(crate) fn unreserve(&self, address: PciAddress) {
        let mut state = self.shared.state.lock();
        // One that was attached meanwhile cannot be opened again by this process.
        if state.reserved.remove(&address.function()) {
            state.free.insert(address.function());
        }
    }

    /// The process that serves now.
    fn process(&self) -> Result<Arc<Process>, DeviceError> {
        let state = self.shared.state.lock();
        match &state.link {
            Link::Up(..) => Ok(Arc::clone(&state.process)),
            Link::Away(death) | Link::Gone(death) => Err(DeviceError::gone(Arc::clone(death))),
        }
    }

    fn call<C: Call<Request>>(
        &self,
        call: &C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(C::Reply, Handles), DeviceError> {
        Ok(self.process()?.call(call, handles, deadline)?)
    }

    fn ask<C: Call<Request>>(&self, call: &C, deadline: Deadline) -> Result<C::Reply, DeviceError> {
        Ok(self.call(call, &[], deadline)?.0)
    }

    /// Until when a caller without a deadline of its own waits.
    fn usual(&self) -> Deadline {
        Deadline::after(self.shared.recovery.timeout)
    }

    /// Claims a function, one that was reserved or one that comes back, and takes its windows.
    ///
    /// # Errors
    /// [`DeviceError`]; [`ErrorKind::Busy`] while somebody else holds the claim, or the dext still
    /// cleans up after somebody who did.
    pub fn attach(&self, address: PciAddress) -> Result<Claimed, DeviceError> {
        let process = self.process()?;
        let deadline = self.usual();
        let call = Attach { function: address.function() };
        let (attached, handles) = process.call(&call, &[], deadline)?;
        if attached.identity.address.function() != address.function()
            || !attached.identity.address.same_device(address)
        {
            let found = attached.identity.address;
            return Err(DeviceError::io(format!("Asked for {address}, {found} was claimed")));
        }
        for warning in &attached.warnings {
            tracing::warn!("{}", crate::text::printable(warning));
        }
        let memories = self.memories(&process, address, &attached, handles, deadline)?;
        let windows = window_check::take(&attached, memories)
            .map_err(|why| DeviceError::io(format!("Function {address}: {why}")))?;
        let mut state = self.shared.state.lock();
        state.reserved.remove(&address.function());
        state.attached.insert(address.function());
        drop(state);
        Ok(Claimed { identity: attached.identity, bars: attached.bars, windows })
    }

    /// The memory of each window, by the way that it comes.
    fn memories(
        &self,
        process: &Process,
        address: PciAddress,
        attached: &Attached,
        handles: Handles,
        deadline: Deadline,
    ) -> Result<Vec<DeviceMemory>, DeviceError> {
        let by_descriptor = attached.carrier == Carrier::Descriptors;
        let count = if by_descriptor { attached.windows.len() } else { 0 };
        handles.expect(count).map_err(|error| DeviceError::io(error.to_string()))?;
        match (attached.carrier, &self.shared.own) {
            (Carrier::Port, _) => {
                let sizes: Vec<u64> = attached.windows.iter().map(|one| one.length).collect();
                let number = address.function().into();
                let entries = process.memories().receive(number, &sizes, deadline);
                let entries = entries.map_err(|error| {
                    DeviceError::io(format!("The memory of its windows did not come: {error}"))
                })?;
                Ok(entries.into_iter().map(DeviceMemory::Entry).collect())
            }
            (Carrier::Own, Some(dext)) => own::memory(dext, address, &attached.windows),
            (Carrier::Own, None) => {
                Err(DeviceError::io("It describes windows that it was to hand on"))
            }
            (Carrier::Descriptors, _) => {
                let taken: Result<Vec<_>, _> = handles.map(SharedMemory::from_peer).collect();
                let taken = taken.map_err(|error| DeviceError::io(ipc::chain(&error)))?;
                Ok(taken.into_iter().map(DeviceMemory::from).collect())
            }
        }
    }

    /// Closes a function's opener: the dext releases what is left of it, guest memory included. Whatever
    /// cannot be released in order by `deadline` is released with the process. `true` when no function
    /// is attached any more.
    ///
    /// # Errors
    /// [`DeviceError`]; the function is detached all the same.
    pub fn detach(&self, address: PciAddress, deadline: Deadline) -> Result<bool, DeviceError> {
        let none_left = {
            let mut state = self.shared.state.lock();
            state.attached.remove(&address.function());
            state.attached.is_empty()
        };
        let stopped = self.process().is_ok_and(|process| process.fate.is_suspended());
        if stopped {
            // It does not answer, and would hold whoever detaches up until the deadline.
            self.condemn(Cause::Overdue("give a function back"));
            return Ok(none_left);
        }
        match self.ask(&Detach { function: address.function() }, deadline) {
            Ok(()) => Ok(none_left),
            Err(error) if error.is_absent() => Ok(none_left),
            Err(error) => {
                self.end_process(&format!("function {address} was not detached: {error}"));
                Err(error)
            }
        }
    }

    /// Closes it for further functions if none is attached or about to be; whether that is so.
    pub(crate) fn close_if_idle(&self) -> bool {
        let mut state = self.shared.state.lock();
        let idle = state.attached.is_empty() && state.reserved.is_empty();
        state.closed |= idle;
        idle
    }

    /// Resets a function that comes back (P8).
    pub(crate) fn reset(&self, address: PciAddress) -> Result<(), DeviceError> {
        self.ask(&Reset { function: address.function() }, self.usual())
    }

    /// Has the process look whether its functions are still there; it ends if they are not. The answer
    /// is its end.
    pub(crate) fn look(&self, deadline: Deadline) {
        let _ = self.ask(&Ping, deadline);
    }

    /// Gives a function a region of guest memory.
    pub(crate) fn add_memory(
        &self,
        address: PciAddress,
        region: &GuestRegion,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let GuestRegion { iova: base, size, offset, writable, .. } = *region;
        let call = AddMemory { function: address.function(), base, size, offset, writable };
        self.call(&call, &[region.memory.as_fd()], deadline).map(drop)
    }

    /// Takes a region away from a function, and what its companion registered of it.
    pub(crate) fn remove_memory(
        &self,
        address: PciAddress,
        base: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let call = RemoveMemory { function: address.function(), base };
        self.ask_until_done(&call, deadline)
    }

    /// Registers a range for a function, on behalf of the VMM; its bus address.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn map_dma(
        &self,
        address: PciAddress,
        entry: DmaEntry,
        deadline: Deadline,
    ) -> Result<u64, DeviceError> {
        let mapped = self.ask(&MapDma { function: address.function(), entry }, deadline)?;
        Ok(mapped.bus_address)
    }

    /// Removes such a registration.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn unmap_dma(
        &self,
        address: PciAddress,
        key: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        self.ask(&UnmapDma { function: address.function(), key }, deadline)
    }

    /// Serves a function's companion over `tube`, whose other end is its function process's.
    pub(crate) fn serve_companion(
        &self,
        address: PciAddress,
        tube: Tube,
    ) -> Result<(), DeviceError> {
        let call = Companion { function: address.function() };
        self.call(&call, &[tube.as_fd()], self.usual()).map(drop)
    }

    /// Removes everything that a function's companion registered. What a dead process had
    /// registered is gone with it.
    pub(crate) fn release_dma(&self, address: PciAddress) -> Result<(), DeviceError> {
        let call = ReleaseDma { function: address.function() };
        match self.ask_until_done(&call, self.usual()) {
            Err(error) if error.kind() == ErrorKind::Gone => Ok(()),
            released => released,
        }
    }

    /// Has a batch of a function's companion undone, whether it is still to come or was carried out. What
    /// a dead process had registered is gone with it.
    pub(crate) fn abandon_batch(
        &self,
        address: PciAddress,
        batch: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        match self.ask(&AbandonBatch { function: address.function(), batch }, deadline) {
            Err(error) if error.kind() == ErrorKind::Gone => Ok(()),
            abandoned => abandoned,
        }
    }

    /// Asks again and again until it is done. The process answers after each slice of its work: it
    /// serves other guests too.
    fn ask_until_done<C: Call<Request, Reply = bool>>(
        &self,
        call: &C,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        loop {
            if self.ask(call, deadline)? {
                return Ok(());
            }
            if deadline.passed() {
                let message = format!("{}: registrations are left at the deadline", call.name());
                return Err(DeviceError::new(ErrorKind::TimedOut, message));
            }
        }
    }

    /// Registrations of a function, now and at most.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn statistics(&self, address: PciAddress) -> Result<DmaStatistics, DeviceError> {
        self.ask(&GetStatistics { function: address.function() }, self.usual())
    }

    /// Ends the process, which is the one way to take everything from it; it counts as its death.
    /// Returns once it is dead.
    pub(crate) fn end_process(&self, why: &str) {
        self.condemn(Cause::Broken(why.to_owned()));
    }

    fn condemn(&self, cause: Cause) {
        let process = Arc::clone(&self.shared.state.lock().process);
        process.fate.condemn(cause);
        process.fate.wait_for_death();
    }

    /// Stops the process in order; it is not replaced. How it ended.
    pub fn stop(&self) -> Arc<Death> {
        self.thread.stop();
        match &self.shared.state.lock().link {
            Link::Gone(death) | Link::Away(death) | Link::Up(_, death) => Arc::clone(death),
        }
    }
}
