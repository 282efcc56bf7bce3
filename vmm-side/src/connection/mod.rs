//! The VMM side of a connection process: claims, windows, guest memory and DMA of one isolation group, which
//! is a physical device or what an IOMMU cannot tell apart. Shared by the functions of it that are attached.
//!
//! What a process held that dies is lost, or, where the backend has devices go on, adopted by the next one
//! (`adopt`) from what this side keeps of it (`escrow`). What this side kept that died itself, and a keeper holds, is
//! taken over by `left`.

mod adopt;
mod escrow;
mod guest;
mod keep;
mod lasting;
mod left;
mod own;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use ipc::event::Signaller;
use ipc::wire::call::Call;
use ipc::wire::common::{BarInfo, Identity, Ping};
use ipc::wire::connection::{
    AbandonBatch, Attach, Attached, Carrier, Companion, Escrow as GetEscrow, HandOver, Ready,
    ReleaseDma, Request,
};
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, DeviceMemory, Event, Handles, PciAddress, SharedMemory, Tube};
use parking_lot::{Condvar, Mutex};

use self::guest::Guest;
use crate::child::{Cause, Child, ConnectionProtocol, Death, Spec};
use crate::container::Container;
use crate::device::BarMemory;
use crate::error::{DeviceError, ErrorKind};
use crate::keeper::KeeperThread;
use crate::kept::{Keeping, KeptGroup};
use crate::recovery::Recovery;
use crate::tally::Deaths;
use crate::window_check;
use left::Waiting;

pub(crate) use escrow::{Account, Accounts, Escrow, HeldFunction};
pub(crate) use left::NotTakenOver;

type Process = Child<ConnectionProtocol>;

/// Whether there is a connection process.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// One serves, and functions are claimed through it by this number; how the one before it died, if there
    /// was one. The number stays the same where claims were adopted.
    Up(u64, Arc<Death>),
    /// It died, what was claimed by this number goes on, and another one is adopting it.
    Adopting(u64, Arc<Death>),
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
    /// What the processes that serve it are handed: nothing where they open it themselves.
    pub(crate) handed: Vec<DeviceMemory>,
    /// It was left by a VMM that is dead, and is as it was.
    pub(crate) kept: bool,
}

struct ConnectionState {
    link: Link,
    process: Arc<Process>,
    /// What it has, and by which numbers it is asked for them.
    functions: Vec<(u8, PciAddress)>,
    sandbox: SandboxReport,
    /// Functions that can be attached: each once in the life of a process, since a closed dext
    /// connection cannot be opened again from inside. One of a group that is not released can.
    free: BTreeSet<PciAddress>,
    /// Functions whose place was taken to attach them.
    reserved: BTreeSet<PciAddress>,
    /// Nobody takes a place any more: it is about to be stopped.
    closed: bool,
    attached: BTreeSet<PciAddress>,
    /// Whose memory its functions reach, where what one of them is given all of them reach.
    guest: Guest,
    watchers: Vec<(PciAddress, Signaller)>,
    /// How many processes were replaced.
    generation: u64,
    /// By which number functions are claimed: see [`Link::Up`].
    claims: u64,
    /// How often what a process left was adopted.
    adoptions: u64,
    /// What keeps functions going when the process dies, while one is attached and the backend has that.
    escrow: Option<Escrow>,
    /// What a successor is to be told; nothing without an escrow.
    accounts: Accounts,
    /// What a keeper has of it for a next VMM.
    keeping: Option<Keeping>,
    /// Functions that a VMM left which is dead: claimed, for whoever attaches them.
    waiting: Waiting,
    /// A companion has registered what nobody but the process knows.
    companion: bool,
    /// Of its processes that served.
    deaths: Deaths,
}

impl ConnectionState {
    fn new(process: Arc<Process>, of: Option<PciAddress>, ready: Ready, link: Link) -> Self {
        let (attached, reserved, watchers) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let functions = numbers(&ready, of);
        let sandbox = ready.sandbox;
        let free = functions.iter().map(|(_, address)| *address).collect();
        Self {
            link,
            process,
            functions,
            sandbox,
            free,
            reserved,
            closed: false,
            attached,
            guest: Guest::default(),
            watchers,
            generation: 0,
            claims: 0,
            adoptions: 0,
            escrow: None,
            accounts: Accounts::new(),
            keeping: None,
            waiting: Waiting::new(),
            companion: false,
            deaths: Deaths::default(),
        }
    }

    /// The number of a function; of one that it has not, none that it has.
    fn number(&self, address: PciAddress) -> u8 {
        let found = self.functions.iter().find(|(_, one)| *one == address);
        found.map_or(u8::MAX, |(number, _)| *number)
    }

    /// Another process comes in the place of the one that served.
    fn succeed(&mut self, mut next: Self) {
        next.generation = self.generation + 1;
        next.adoptions = self.adoptions;
        next.attached = std::mem::take(&mut self.attached);
        next.reserved = std::mem::take(&mut self.reserved);
        next.closed = self.closed;
        next.guest = std::mem::take(&mut self.guest);
        next.deaths = self.deaths;
        next.watchers = std::mem::take(&mut self.watchers);
        next.keeping = self.keeping.take();
        next.waiting = std::mem::take(&mut self.waiting);
        let Self { free, attached, reserved, .. } = &mut next;
        free.retain(|one| !attached.contains(one) && !reserved.contains(one));
        *self = next;
    }

    /// Nothing is kept of the process any more: it goes with it, and the kernel can have it.
    fn drop_escrow(&mut self) {
        self.escrow = None;
        self.accounts.clear();
        self.waiting.clear();
        self.keep();
    }

    /// Has the keeper, if there is one, know how things are.
    fn keep(&mut self) {
        let Self { keeping: Some(keeping), escrow, accounts, attached, waiting, .. } = self else {
            return;
        };
        let keeps = |one| attached.contains(&one) || waiting.contains_key(&one);
        match escrow {
            Some(escrow) => keeping.update(escrow, accounts, keeps),
            None => keeping.void(),
        }
    }

    /// Whether what the process of this generation did is, or is going to be, another one's.
    fn is_adopted_from(&self, generation: u64) -> bool {
        let serves = matches!(self.link, Link::Up(..)) && self.generation == generation;
        self.escrow.is_some() && !serves
    }
}

/// The functions that a process says it has, by the numbers that it is asked for them; it was started for `of`.
fn numbers(ready: &Ready, of: Option<PciAddress>) -> Vec<(u8, PciAddress)> {
    let addresses: Vec<_> = ready.functions.iter().map(|identity| identity.address).collect();
    let of = of.or(addresses.first().copied());
    of.into_iter().flat_map(|of| ipc::numbered(of, addresses.clone())).collect()
}

/// Why a function is not attached through a connection process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotReserved {
    /// It does not have it, or not any more.
    NotThere,
    /// A function of its group, this one, is another guest's.
    OtherGuest(PciAddress),
}

/// A program of a connection process, and what stands before its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionProgram {
    pub(crate) program: PathBuf,
    pub(crate) before: Vec<OsString>,
}

impl ConnectionProgram {
    /// What to start of it.
    fn of(&self, spec: &Spec) -> Spec {
        let Self { program, before } = self.clone();
        Spec { program, before, ..spec.clone() }
    }
}

/// Of which programs its processes are.
struct Programs {
    /// Of the one that serves, or did.
    now: ConnectionProgram,
    /// Of the next one, if that is another.
    next: Option<ConnectionProgram>,
}

struct ConnectionShared {
    spec: Spec,
    programs: Mutex<Programs>,
    recovery: Recovery,
    /// The dext, if the VMM maps windows by a connection of its own.
    own: Option<OsString>,
    state: Mutex<ConnectionState>,
    /// With each change of the link.
    changed: Condvar,
    died: Signaller,
}

impl ConnectionShared {
    /// Whether its functions are handed on, as those of a group of the kernel's: the group is this process's
    /// while it lives, its functions reach the same memory, and each can be attached again.
    fn hands_on(&self) -> bool {
        self.spec.handed.is_some()
    }

    /// Changes the state and tells everybody who holds a function through it.
    fn change<T>(&self, change: impl FnOnce(&mut ConnectionState) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state);
        state.watchers.iter().for_each(|(_, watcher)| watcher.signal());
        drop(state);
        self.changed.notify_all();
        changed
    }

    /// There is no process, and nothing of it is kept.
    fn lose(&self, link: Link) {
        self.change(|state| {
            state.drop_escrow();
            state.link = link;
        });
    }

    /// One of this program serves.
    fn runs(&self, program: ConnectionProgram) {
        let mut programs = self.programs.lock();
        programs.next = programs.next.take().filter(|wanted| *wanted != program);
        programs.now = program;
    }
}

/// The connection to a physical device: a connection process, replaced when it dies or when its
/// dext did. What it held is lost with it, so those who hold functions through it watch the link
/// and claim them anew; or it is adopted by the next one, and those who ask wait for that.
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
        Self::start_with(spec, recovery, own, &Arc::default())
    }

    /// Starts it to take over what is `left`, if anything is; that is taken out if it did.
    fn start_with(
        spec: &Spec,
        recovery: Recovery,
        own: Option<OsString>,
        left: &Arc<Mutex<Option<KeptGroup>>>,
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
        let (own_spec, left) = (spec.clone(), Arc::clone(left));
        let launch = Arc::clone(&spec.launch);
        let thread = KeeperThread::spawn(name, launch, move |parts| {
            keep::run((own_spec, &left), recovery, own, tell_death, parts, &sender);
        });
        let thread = thread.map_err(no_room)?;
        let started = started.recv().unwrap_or_else(|_| Err(failed("its keeper ended")));
        Ok(Self { shared: started?, thread, died })
    }

    /// Why connection processes of this device died that served it.
    #[must_use]
    pub fn deaths(&self) -> Deaths {
        self.shared.state.lock().deaths
    }

    /// How often another process took over what one that died had left, without anybody who holds a function
    /// noticing (Linux's VFIO).
    #[must_use]
    pub fn adoptions(&self) -> u64 {
        self.shared.state.lock().adoptions
    }

    /// The program of the process that serves, and of the one that comes after it.
    #[must_use]
    pub fn programs(&self) -> (PathBuf, Option<PathBuf>) {
        let programs = self.shared.programs.lock();
        (programs.now.program.clone(), programs.next.as_ref().map(|next| next.program.clone()))
    }

    /// Has the process that comes after this one, when it dies, be of that program.
    pub(crate) fn succeed_by(&self, program: ConnectionProgram) {
        let mut programs = self.shared.programs.lock();
        programs.next = (programs.now != program).then_some(program);
    }

    /// Ends the process if another program is to serve; whether it is. Its functions are away until that
    /// does, unless it adopts them.
    pub(crate) fn give_way(&self) -> bool {
        let wanted = self.shared.programs.lock().next.is_some();
        if wanted && matches!(self.link(), Link::Up(..)) {
            let process = Arc::clone(&self.shared.state.lock().process);
            process.fate.condemn(Cause::Upgraded);
            process.fate.wait_for_death();
        }
        wanted
    }

    /// Whether there is a process.
    pub(crate) fn link(&self) -> Link {
        self.shared.state.lock().link.clone()
    }

    /// Signals `watcher` whenever the [`Link`] changes, on behalf of a function; the number by which it
    /// is claimed.
    pub(crate) fn watch(&self, address: PciAddress, watcher: Signaller) -> u64 {
        let mut state = self.shared.state.lock();
        state.watchers.push((address, watcher));
        state.claims
    }

    /// The function is not attached any more.
    pub(crate) fn unwatch(&self, address: PciAddress) {
        let mut state = self.shared.state.lock();
        state.watchers.retain(|(function, _)| *function != address);
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
            Link::Up(..) | Link::Adopting(..) | Link::Away(_) => None,
        }
    }

    /// Takes the place of `address` to attach it through this process, for the guest whose memory `container`
    /// is.
    pub(crate) fn reserve(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
    ) -> Result<(), NotReserved> {
        let mut state = self.shared.state.lock();
        let up = matches!(state.link, Link::Up(..)) && !state.process.fate.is_condemned();
        if !up || state.closed || !state.free.contains(&address) {
            return Err(NotReserved::NotThere);
        }
        if self.shared.hands_on() {
            let in_use = state.attached.iter().chain(&state.reserved).next().copied();
            state.guest.admit(container, in_use)?;
        }
        state.free.remove(&address);
        state.reserved.insert(address);
        Ok(())
    }

    /// The death of the process that was asked for a place, if that is why there was none.
    pub(crate) fn lost(&self) -> Option<Arc<Death>> {
        let process = {
            let state = self.shared.state.lock();
            match &state.link {
                Link::Adopting(_, death) | Link::Away(death) | Link::Gone(death) => {
                    return Some(Arc::clone(death));
                }
                Link::Up(..) => Arc::clone(&state.process),
            }
        };
        process.fate.is_condemned().then(|| process.fate.wait_for_death())
    }

    /// Gives a place back that was reserved and not used.
    pub(crate) fn unreserve(&self, address: PciAddress) {
        let mut state = self.shared.state.lock();
        // One that was attached meanwhile cannot be opened again by this process.
        if state.reserved.remove(&address) {
            state.free.insert(address);
        }
    }

    /// The process that serves, or will when it has adopted what one before it left, and by which number it has
    /// a function.
    fn process(
        &self,
        address: PciAddress,
        deadline: Deadline,
    ) -> Result<(Arc<Process>, u8), DeviceError> {
        let state = self.settled(deadline)?;
        Ok((Arc::clone(&state.process), state.number(address)))
    }

    /// Makes the call that `call` is for a function of this number.
    fn call<C: Call<Request>>(
        &self,
        address: PciAddress,
        call: impl FnOnce(u8) -> C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(C::Reply, Handles), DeviceError> {
        let (process, number) = self.process(address, deadline)?;
        Ok(process.call(&call(number), handles, deadline)?)
    }

    fn ask<C: Call<Request>>(
        &self,
        address: PciAddress,
        call: impl FnOnce(u8) -> C,
        deadline: Deadline,
    ) -> Result<C::Reply, DeviceError> {
        Ok(self.call(address, call, &[], deadline)?.0)
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
        if let Some(claimed) = self.take_waiting(address) {
            return Ok(claimed);
        }
        let deadline = self.usual();
        let (process, function) = self.process(address, deadline)?;
        let (attached, handles) = process.call(&Attach { function }, &[], deadline)?;
        if attached.identity.address != address {
            let found = attached.identity.address;
            return Err(DeviceError::io(format!("Asked for {address}, {found} was claimed")));
        }
        for warning in &attached.warnings {
            tracing::warn!("{}", crate::text::printable(warning));
        }
        let memories =
            self.memories(&process, (function, address), &attached, handles, deadline)?;
        let windows = window_check::take(&attached, memories)
            .map_err(|why| DeviceError::io(format!("Function {address}: {why}")))?;
        try_windows(address, &windows)?;
        let handed = self.handed(&process, (function, address), deadline)?;
        let escrow = self.escrow(&process, address, deadline)?;
        let mut state = self.shared.state.lock();
        let serves = matches!(state.link, Link::Up(..)) && Arc::ptr_eq(&state.process, &process);
        if self.shared.hands_on() && !serves {
            // What is adopted meanwhile has the function as it was before: not claimed.
            drop(state);
            return Err(DeviceError::gone(process.fate.wait_for_death()));
        }
        state.reserved.remove(&address);
        state.attached.insert(address);
        if escrow.is_some() && !state.companion {
            state.accounts.insert(address, Account::new(attached.identity, attached.bars));
            state.escrow = escrow;
            state.keep();
        } else {
            state.drop_escrow();
        }
        drop(state);
        let Attached { identity, bars, .. } = *attached;
        Ok(Claimed { identity, bars, windows, handed, kept: false })
    }

    /// What keeps functions going when the process dies, where the backend has that and it is replaced.
    fn escrow(
        &self,
        process: &Process,
        address: PciAddress,
        deadline: Deadline,
    ) -> Result<Option<Escrow>, DeviceError> {
        if !self.shared.hands_on() || !self.shared.recovery.is_on() {
            return Ok(None);
        }
        let (escrowed, handles) = process.call(&GetEscrow, &[], deadline)?;
        Escrow::of(&escrowed, handles)
            .map_err(|error| DeviceError::io(format!("Function {address} is not kept: {error}")))
    }

    /// What function processes are handed, where they open nothing themselves: one device.
    fn handed(
        &self,
        process: &Process,
        (function, address): (u8, PciAddress),
        deadline: Deadline,
    ) -> Result<Vec<DeviceMemory>, DeviceError> {
        if !self.shared.hands_on() {
            return Ok(Vec::new());
        }
        let ((), handles) = process.call(&HandOver { function }, &[], deadline)?;
        let device = handles.one().map_err(|error| DeviceError::io(error.to_string()))?;
        let device = DeviceMemory::of_device(device).map_err(|error| {
            DeviceError::io(format!("Function {address} is not handed on: {}", ipc::chain(&error)))
        })?;
        Ok(vec![device])
    }

    /// The memory of each window, by the way that it comes.
    fn memories(
        &self,
        process: &Process,
        (function, address): (u8, PciAddress),
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
                let entries = process.memories().receive(function.into(), &sizes, deadline);
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
                // Its windows may be anywhere in it: `window_check` compares them with the size.
                let of_devices = self.shared.hands_on();
                let take = |fd| match of_devices {
                    true => DeviceMemory::of_device(fd),
                    false => SharedMemory::measured(fd).map(DeviceMemory::from),
                };
                let taken: Result<_, _> = handles.map(take).collect();
                taken.map_err(|error| DeviceError::io(ipc::chain(&error)))
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
        let (none_left, process) = {
            let mut state = self.shared.state.lock();
            state.attached.remove(&address);
            let none_left = state.attached.is_empty();
            if none_left {
                state.drop_escrow();
            } else {
                // First: what is given back is not there for a next VMM.
                state.keep();
            }
            let is_up = matches!(state.link, Link::Up(..));
            (none_left, is_up.then(|| Arc::clone(&state.process)))
        };
        if process.is_some_and(|process| process.fate.is_suspended()) {
            // It does not answer, and would hold whoever detaches up until the deadline.
            self.condemn(Cause::Overdue("give a function back"));
            return Ok(none_left);
        }
        match self.ask_to_detach(address, deadline) {
            Ok(()) => {
                if self.shared.hands_on() {
                    // The process keeps its group, and no other could have it.
                    self.shared.state.lock().free.insert(address);
                }
                Ok(none_left)
            }
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

    /// Has the process look whether its functions are still there; it ends if they are not. The answer
    /// is its end.
    pub(crate) fn look(&self, address: PciAddress, deadline: Deadline) {
        let _ = self.ask(address, |_| Ping, deadline);
    }

    /// Serves a function's companion over `tube`, whose other end is its function process's.
    pub(crate) fn serve_companion(
        &self,
        address: PciAddress,
        tube: Tube,
    ) -> Result<(), DeviceError> {
        let call = |function| Companion { function };
        {
            // What it registers is known to the process alone, so no other one can adopt it.
            let mut state = self.shared.state.lock();
            state.companion = true;
            state.drop_escrow();
        }
        self.call(address, call, &[tube.as_fd()], self.usual()).map(drop)
    }

    /// Removes everything that a function's companion registered. What a dead process had
    /// registered is gone with it.
    pub(crate) fn release_dma(&self, address: PciAddress) -> Result<(), DeviceError> {
        match self.ask_until_done(address, |function| ReleaseDma { function }, self.usual()) {
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
        match self.ask(address, |function| AbandonBatch { function, batch }, deadline) {
            Err(error) if error.kind() == ErrorKind::Gone => Ok(()),
            abandoned => abandoned,
        }
    }

    /// Asks again and again until it is done. The process answers after each slice of its work: it
    /// serves other guests too.
    fn ask_until_done<C: Call<Request, Reply = bool>>(
        &self,
        address: PciAddress,
        call: impl Fn(u8) -> C,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        loop {
            if self.ask(address, &call, deadline)? {
                return Ok(());
            }
            if deadline.passed() {
                return Err(still_left(call(u8::MAX).name()));
            }
        }
    }

    /// Ends the process, which is the one way to take everything from it; it counts as its death, and nobody
    /// adopts what it leaves. Returns once it is dead.
    pub(crate) fn end_process(&self, why: &str) {
        self.condemn(Cause::Broken(why.to_owned()));
    }

    fn condemn(&self, cause: Cause) {
        let process = {
            let mut state = self.shared.state.lock();
            state.drop_escrow();
            Arc::clone(&state.process)
        };
        process.fate.condemn(cause);
        process.fate.wait_for_death();
    }

    /// Stops the process in order; it is not replaced. How it ended.
    pub fn stop(&self) -> Arc<Death> {
        self.thread.stop();
        match &self.shared.state.lock().link {
            Link::Gone(death)
            | Link::Away(death)
            | Link::Adopting(_, death)
            | Link::Up(_, death) => Arc::clone(death),
        }
    }
}

/// A device's descriptor has no size: what it has is found by mapping, before a guest's is mapped over.
fn try_windows(address: PciAddress, windows: &[BarMemory]) -> Result<(), DeviceError> {
    for one in windows.iter().filter(|one| matches!(one.memory, DeviceMemory::Device(_))) {
        one.map().map_err(|error| {
            let why = format!("Function {address}: BAR {}: {}", one.bar, ipc::chain(&error));
            DeviceError::io(why)
        })?;
    }
    Ok(())
}

/// Work that is not done at its deadline.
fn still_left(what: &str) -> DeviceError {
    let message = format!("{what}: registrations are left at the deadline");
    DeviceError::new(ErrorKind::TimedOut, message)
}
