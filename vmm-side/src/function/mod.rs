//! A function that is attached, and the process that serves it, replaced when it dies.
//!
//! ```text
//!             died                    replaced
//!   Serving ────────▶ Recovering ─────────────────▶ Serving
//!      │                  │ too many deaths, not replaced in time
//!      │ connection       ├──────────────▶ Dead: all ones, for good
//!      │ process lost     │ lost                ▲
//!      ▼                  ▼                     │ not back in time, another device
//!    Away: all ones ◀─────┘     back            │
//!      └──────────────────────────────▶ Returning ─────────▶ Serving
//! ```
//!
//! What survives the death of a function process is not the process's: the claim, DMA and windows
//! are the connection process's, the signallers are kept in the `journal`. Recovery, by the
//! function's one thread (`keep`): a new process (again with back-off, since the dext cleans up after
//! a dead client in its own time) or the standby, the journal replayed, every vector in use signalled
//! once, since an interrupt may have been lost. Callers wait meanwhile and their request is sent
//! again: it is carried out at least once, and a read is always the device's answer. A request whose
//! process crashed, hung or broke the protocol over it is sent again once; after that it is an error.
//!
//! The death of a connection process, or of the dext, is a surprise removal: all ones under the
//! windows and in every read, until the [`Connection`] has another process. Then the function is
//! claimed, reset and given its memory, a function process is started, the journal is replayed.
//! What comes next is decided in `machine`, without I/O.

mod companion;
mod device;
mod journal;
mod keep;
mod machine;

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::wire::call::Call;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{
    Access, GetStatistics, InterruptAction, InterruptIndex, Interrupts, MAX_ASSIGN, Ready, Request,
    Statistics,
};
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, Event, PciAddress};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::child::{CallError, Cause, Child, Death, FunctionProtocol, Spec, channel};
use crate::connection::{Claimed, Connection};
use crate::container::Container;
use crate::device::DeviceInfo;
use crate::error::DeviceError;
use crate::keeper::KeeperThread;
use crate::recovery::Recovery;
use crate::windows::Windows;
use journal::Journal;
use machine::{FunctionState, Machine};

type Process = Child<FunctionProtocol>;

/// What a function is attached with.
pub(crate) struct Parts {
    pub(crate) address: PciAddress,
    pub(crate) spec: Spec,
    pub(crate) recovery: Recovery,
    pub(crate) connection: Arc<Connection>,
    pub(crate) container: Arc<Container>,
    pub(crate) claimed: Claimed,
    pub(crate) name: String,
}

/// What callers and the function's thread share.
pub(crate) struct FunctionShared {
    address: PciAddress,
    spec: Spec,
    recovery: Recovery,
    connection: Arc<Connection>,
    container: Arc<Container>,
    windows: Windows,
    ready: Ready,
    state: Mutex<Serving>,
    changed: Condvar,
    journal: Mutex<Journal>,
    /// Doorbells rung so far.
    batches: AtomicU64,
    /// The companion's last batch, if its guest was told that it failed and the connection process does
    /// not know yet.
    to_abandon: Mutex<Option<u64>>,
    /// Whether a standby waits.
    standby: Arc<AtomicBool>,
    died: Signaller,
    news: Signaller,
}

struct Serving {
    machine: Machine,
    process: Arc<Process>,
    generation: u64,
    returns: u64,
    /// Of the last [`MAX_REMEMBERED`] replacements.
    recoveries: VecDeque<Duration>,
}

/// Replacements whose time is remembered: enough for a median, and no more in years of serving.
const MAX_REMEMBERED: usize = 4096;

/// Where a function is, as its VMM may tell people.
#[derive(Clone, Debug)]
pub enum Presence {
    /// It is served; the death of its process may be under repair.
    Present,
    /// Its connection process or its dext died, and may come back: all ones meanwhile.
    Away(Arc<Death>),
    /// Given up: all ones.
    Gone(Arc<Death>),
}

/// How long a process may take to end after it has said that its dext is gone.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// An attached function: [`PassthroughDevice`](crate::PassthroughDevice), carried out by a function
/// process. Detach it with [`Host::detach`](crate::Host::detach); dropping the last handle without
/// that ends its processes too.
pub struct Function {
    pub(crate) shared: Arc<FunctionShared>,
    thread: KeeperThread,
    info: DeviceInfo,
    died: Event,
    news: Event,
}

impl Function {
    /// Starts the function's process and thread.
    ///
    /// # Errors
    /// The [`Death`] of a process that did not become ready, or is another function's.
    pub(crate) fn start(parts: Parts) -> Result<Self, Arc<Death>> {
        let subject = parts.spec.subject.clone();
        let no_room =
            |error: std::io::Error| Arc::new(Death::of_function(&subject, Cause::no_room(error)));
        let (died, news) = (Event::new().map_err(no_room)?, Event::new().map_err(no_room)?);
        let (tell_death, tell) =
            (died.signaller().map_err(no_room)?, news.signaller().map_err(no_room)?);
        let name = parts.name.clone();
        let (sender, started) = sync_channel(1);
        let thread = KeeperThread::spawn(format!("function {subject}"), move |keeper| {
            keep::run(parts, tell_death, tell, keeper, &sender);
        });
        let thread = thread.map_err(no_room)?;
        let ended = || {
            let cause = Cause::StartFailed("its keeper ended".to_owned());
            Arc::new(Death::of_function(&subject, cause))
        };
        let shared = started.recv().unwrap_or_else(|_| Err(ended()))?;
        let ready = &shared.ready;
        let info = DeviceInfo {
            name,
            identity: ready.identity,
            bars: ready.bars,
            msix: ready.msix,
            resettable: true,
        };
        Ok(Self { shared, thread, info, died, news })
    }

    /// Where it is on the host.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.shared.address
    }

    /// Process id of the function process that serves it now.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.state.lock().process.pid()
    }

    /// What confines its function process.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.shared.ready.sandbox.clone()
    }

    /// The connection process of its device.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    pub(crate) fn connection_handle(&self) -> &Arc<Connection> {
        &self.shared.connection
    }

    pub(crate) fn container(&self) -> &Arc<Container> {
        &self.shared.container
    }

    /// Vectors that the dext registered.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.shared.ready.vectors
    }

    /// Where it is.
    #[must_use]
    pub fn presence(&self) -> Presence {
        match self.shared.state.lock().machine.state() {
            FunctionState::Serving | FunctionState::Recovering => Presence::Present,
            FunctionState::Away(death) | FunctionState::Returning(death) => {
                Presence::Away(Arc::clone(death))
            }
            FunctionState::Dead(death) => Presence::Gone(Arc::clone(death)),
        }
    }

    /// Signalled when [`Function::presence`] changes.
    #[must_use]
    pub fn news(&self) -> &Event {
        &self.news
    }

    /// How often the device went away and came back.
    #[must_use]
    pub fn returns(&self) -> u64 {
        self.shared.state.lock().returns
    }

    /// Whether a standby waits for its function process's death.
    #[must_use]
    pub fn has_standby(&self) -> bool {
        self.shared.standby.load(Ordering::Acquire)
    }

    /// Why it is served no more, once it is: its function process or its connection process died
    /// and is not replaced.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        let state = self.shared.state.lock();
        let death = match state.machine.state() {
            FunctionState::Dead(death) => Some(Arc::clone(death)),
            // Nobody will replace it: dead as soon as its process is.
            FunctionState::Serving if !self.shared.recovery.is_on() => state.process.death(),
            _ => None,
        };
        drop(state);
        death.or_else(|| self.shared.connection.death())
    }

    /// Readable once [`Function::death`] is there.
    #[must_use]
    pub fn died(&self) -> &Event {
        &self.died
    }

    /// How often its function process was replaced.
    #[must_use]
    pub fn replacements(&self) -> u64 {
        self.shared.state.lock().generation
    }

    /// How long the last replacements of its function process took, from noticing the death to
    /// serving again; at most 4096 of them.
    #[must_use]
    pub fn recoveries(&self) -> Vec<Duration> {
        self.shared.state.lock().recoveries.iter().copied().collect()
    }

    /// Counters of its function process.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn statistics(&self) -> Result<Statistics, DeviceError> {
        Ok(self.shared.ask(&GetStatistics, self.shared.usual())?)
    }

    /// Whether direct DMA works on this platform: gives the function the regions of `container`
    /// for a moment and takes them away again.
    ///
    /// # Errors
    /// [`DeviceError`] of kind [`NotSupported`](crate::ErrorKind::NotSupported) when the platform
    /// chooses bus addresses (P2.4).
    pub fn try_direct(&self, container: &Container) -> Result<(), DeviceError> {
        container.join(self.address(), &self.shared.connection)?;
        container.leave(self.address(), &self.shared.connection);
        Ok(())
    }

    /// Ends it: callers that wait are answered at once, whoever serves the function is stopped and
    /// not replaced. Takes at most about half a second.
    pub(crate) fn stop(&self) {
        self.shared.connection.unwatch(self.shared.address);
        let death = Death::of_function(&self.shared.spec.subject, Cause::Stopped);
        self.shared.change(|state| {
            let given_up = machine::FunctionEvent::GivenUp(Arc::new(death));
            state.machine.on(given_up);
        });
        self.thread.stop();
    }
}

impl FunctionShared {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    /// Until when a caller without a deadline of its own waits.
    fn usual(&self) -> Deadline {
        Deadline::after(self.recovery.timeout)
    }

    /// Changes the state and tells everybody who waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut Serving) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.changed.notify_all();
        self.news.signal();
        changed
    }

    /// Asks whoever serves the function, and again whoever comes after it.
    fn ask<C: Call<Request>>(&self, call: &C, deadline: Deadline) -> Result<C::Reply, CallError> {
        self.call(call, || Ok(Vec::new()), deadline)
    }

    /// Asks whoever serves the function, and again whoever comes after it, each with `handles`.
    fn call<C: Call<Request>>(
        &self,
        call: &C,
        mut handles: impl FnMut() -> std::io::Result<Vec<OwnedFd>>,
        deadline: Deadline,
    ) -> Result<C::Reply, CallError> {
        self.call_each::<C, &C>(call.name(), || Ok((call, handles()?)), deadline)
    }

    /// Asks whoever serves the function, and again whoever comes after it, each for what `call` makes for
    /// it and with the handles that go beside.
    fn call_each<C: Call<Request>, B: Borrow<C>>(
        &self,
        name: &'static str,
        mut call: impl FnMut() -> std::io::Result<(B, Vec<OwnedFd>)>,
        deadline: Deadline,
    ) -> Result<C::Reply, CallError> {
        let mut tries = Tries::new(name);
        loop {
            let (process, generation) = self.serving(tries.after, deadline, name)?;
            let (call, handles) = call().map_err(|error| no_descriptor(&error))?;
            let borrowed: Vec<_> = handles.iter().map(|handle| handle.as_fd()).collect();
            match process.channel.call(call.borrow(), &borrowed, deadline) {
                Ok((reply, _)) => return Ok(reply),
                Err(failed) => self.on_failed(&process, failed, &mut tries)?,
            }
            tries.after = Some(generation);
        }
    }

    /// [`FunctionShared::ask`] for an access, which has a shorter way.
    fn access(&self, access: &Access, deadline: Deadline) -> Result<u64, CallError> {
        let mut tries = Tries::new(Call::<Request>::name(access));
        loop {
            let (process, generation) = self.serving(tries.after, deadline, tries.request)?;
            match process.channel.access(access, deadline) {
                Ok(value) => return Ok(value),
                Err(failed) => self.on_failed(&process, failed, &mut tries)?,
            }
            tries.after = Some(generation);
        }
    }

    /// Whether a request that `process` did not answer goes to whoever comes after it.
    fn on_failed(
        &self,
        process: &Process,
        failed: channel::Failed,
        tries: &mut Tries,
    ) -> Result<(), CallError> {
        match failed {
            channel::Failed::Refused(failure) => {
                let is_end = self.recovery.is_on() && are_last_words(&failure);
                if !is_end || !ends_soon(process) {
                    return Err(CallError::Refused(failure));
                }
            }
            channel::Failed::TimedOut => return Err(self.timed_out(tries.request)),
            channel::Failed::Lost { .. } if !self.recovery.is_on() => {
                return Err(CallError::Dead(process.fate.wait_for_death()));
            }
            // Condemned over somebody else's request, or before this one was sent.
            channel::Failed::Lost { sent: false } => {}
            channel::Failed::Lost { sent: true } => {
                let death = process.fate.wait_for_death();
                if !death.is_from_outside() && std::mem::replace(&mut tries.blamed, true) {
                    return Err(CallError::Refused(self.blame(tries.request, &death)));
                }
            }
        }
        Ok(())
    }

    /// A request that ended two processes is not sent to a third.
    fn blame(&self, request: &'static str, death: &Death) -> Failure {
        let message = format!(
            "Function {}: {request} ended the process that carried it out, twice: {death}",
            self.address
        );
        tracing::warn!("{message}");
        Failure { kind: FailureKind::Io, code: None, message }
    }

    fn timed_out(&self, request: &'static str) -> CallError {
        let process = format!("function process of {}", self.spec.subject);
        CallError::TimedOut { process, request }
    }

    /// Whoever serves the function, of a later generation than `after`; waits for it.
    fn serving(
        &self,
        after: Option<u64>,
        deadline: Deadline,
        request: &'static str,
    ) -> Result<(Arc<Process>, u64), CallError> {
        let mut state = self.state.lock();
        loop {
            match state.machine.state() {
                FunctionState::Dead(death)
                | FunctionState::Away(death)
                | FunctionState::Returning(death) => {
                    return Err(CallError::Dead(Arc::clone(death)));
                }
                FunctionState::Serving if after.is_none_or(|after| state.served() > after) => {
                    return Ok((Arc::clone(&state.process), state.served()));
                }
                FunctionState::Serving | FunctionState::Recovering => {}
            }
            if self.changed.wait_until(&mut state, deadline.instant()).timed_out() {
                return Err(self.timed_out(request));
            }
        }
    }

    fn is_away(&self) -> bool {
        let state = self.state.lock();
        matches!(state.machine.state(), FunctionState::Away(_) | FunctionState::Returning(_))
    }

    /// Assigns signallers, or takes them away; kept for whoever serves the function next, also
    /// while nobody does.
    fn assign(
        &self,
        index: InterruptIndex,
        start: u16,
        signallers: Vec<Option<Signaller>>,
    ) -> Result<(), CallError> {
        let signallers: Vec<_> = signallers.into_iter().map(|one| one.map(Arc::new)).collect();
        // Before it is asked: a process that dies right after must not take it along.
        let before = self.journal().assign(index, start, &signallers);
        let deadline = self.usual();
        let done = assign(index, start, &signallers, |call, handles| {
            self.call(call, || duplicate(handles), deadline)
        });
        match done {
            Err(CallError::Refused(_)) => self.journal().restore(before),
            Err(CallError::Dead(_)) if self.is_away() => return Ok(()),
            _ => {}
        }
        done
    }

    /// Changes the interrupt setup otherwise.
    fn act(&self, index: InterruptIndex, action: InterruptAction) -> Result<(), CallError> {
        // Before it is asked: a process that dies right after must not take it along.
        let masked = match action {
            InterruptAction::Mask => self.journal().mask(index, true),
            InterruptAction::Unmask => self.journal().mask(index, false),
            _ => None,
        };
        let disable = action == InterruptAction::Disable;
        if disable {
            self.journal().disable(index);
        }
        let is_kept = disable || masked.is_some();
        let done = self.ask(&Interrupts { index, action }, self.usual());
        match (done, masked) {
            (Err(CallError::Dead(_)), _) if is_kept && self.is_away() => Ok(()),
            (Err(refused @ CallError::Refused(_)), Some(before)) => {
                self.journal().restore(before);
                Err(refused)
            }
            (done, _) => done,
        }
    }
}

/// How often a request was tried so far.
struct Tries {
    request: &'static str,
    /// The last generation that it was sent to.
    after: Option<u64>,
    /// A process ended over it.
    blamed: bool,
}

impl Tries {
    fn new(request: &'static str) -> Self {
        Self { request, after: None, blamed: false }
    }
}

impl Serving {
    /// Counts the processes that have served.
    fn served(&self) -> u64 {
        self.generation + self.returns
    }
}

/// Assigns in pieces that fit beside one message each.
fn assign(
    index: InterruptIndex,
    start: u16,
    signallers: &[Option<Arc<Signaller>>],
    call: impl Fn(&Interrupts, &[&Signaller]) -> Result<(), CallError>,
) -> Result<(), CallError> {
    let mut first = start;
    for part in signallers.chunks(MAX_ASSIGN) {
        let present = part.iter().map(Option::is_some).collect();
        let handles: Vec<&Signaller> = part.iter().flatten().map(Arc::as_ref).collect();
        let action = InterruptAction::Assign { start: first, present };
        call(&Interrupts { index, action }, &handles)?;
        first = first.saturating_add(u16::try_from(part.len()).unwrap_or(u16::MAX));
    }
    Ok(())
}

/// Whether a process says that its dext is gone, after which it ends.
fn are_last_words(failure: &Failure) -> bool {
    failure.kind == FailureKind::Lost
}

/// Whether a process ends within [`LAST_WORDS`].
fn ends_soon(process: &Process) -> bool {
    ipc::poll::wait_readable(process.died(), Deadline::after(LAST_WORDS)).unwrap_or(false)
}

fn duplicate(signallers: &[&Signaller]) -> std::io::Result<Vec<OwnedFd>> {
    signallers.iter().map(|one| one.as_fd().try_clone_to_owned()).collect()
}

fn no_descriptor(error: &std::io::Error) -> CallError {
    let message = format!("No descriptor left to send: {error}");
    CallError::Refused(Failure { kind: FailureKind::NoSpace, code: None, message })
}
