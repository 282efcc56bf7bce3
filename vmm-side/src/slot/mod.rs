//! A slot: one function and the process that serves it, replaced when it dies.
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
//! are the connection process's, the signallers are kept in the [`journal`]. Recovery, by the
//! slot's one thread: a new process (again with back-off, since the dext cleans up after a dead
//! client in its own time) or the standby, the journal replayed, every vector in use signalled
//! once, since an interrupt may have been lost. Callers wait meanwhile and their request is sent
//! again: it is carried out at least once, and a read is always the device's answer.
//!
//! The death of a connection process, or of the dext, is a surprise removal: all ones under the
//! windows and in every read, until the [`Connection`] has another process. Then the function is
//! claimed, reset and given its memory, a function process is started, the journal is replayed.
//! What comes next is decided in [`state`], without I/O.

mod companion;
pub mod journal;
mod protocol;
mod standby;
pub mod state;
mod watcher;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{InterruptAction, InterruptIndex, MAX_ASSIGN, Ready, Reply, Request};
use ipc::{Deadline, Event, PciAddress};

use crate::connection::{Claimed, Connection};
use crate::container::Container;
use crate::device::DeviceError;
use crate::recovery::Recovery;
use crate::supervisor::{CallError, Cause, Death, Spec, Supervisor};
use crate::windows::Windows;
use journal::Journal;
pub use protocol::FunctionProtocol;
use standby::Standby;
use state::{Machine, Phase};
use watcher::Watcher;

type Child = Supervisor<FunctionProtocol>;

/// What a slot is made of.
pub(crate) struct Parts {
    pub(crate) address: PciAddress,
    pub(crate) spec: Spec,
    pub(crate) recovery: Recovery,
    pub(crate) connection: Arc<Connection>,
    pub(crate) container: Arc<Container>,
    pub(crate) claimed: Claimed,
    /// A process that is ready, and what it said.
    pub(crate) child: Child,
    pub(crate) ready: Ready,
}

struct Shared {
    address: PciAddress,
    spec: Spec,
    recovery: Recovery,
    connection: Arc<Connection>,
    container: Arc<Container>,
    windows: Windows,
    ready: Ready,
    state: Mutex<State>,
    changed: Condvar,
    journal: Mutex<Journal>,
    /// Doorbells rung so far.
    batches: AtomicU64,
    standby: Arc<Standby>,
    died: Signaller,
    news: Signaller,
}

struct State {
    machine: Machine,
    child: Arc<Child>,
    generation: u64,
    returns: u64,
    /// Of the last [`MOST_REMEMBERED`] replacements.
    recoveries: VecDeque<Duration>,
}

/// Replacements whose time is remembered: enough for a median, and no more in years of serving.
const MOST_REMEMBERED: usize = 4096;

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

/// A function and whoever serves it now.
pub(crate) struct Slot {
    shared: Arc<Shared>,
    stop: Signaller,
    died: Event,
    news: Event,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Slot {
    /// Takes over a process that is ready.
    pub(crate) fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts { address, spec, recovery, connection, container, claimed, child, ready } = parts;
        let (died, stopped, news) = (Event::new()?, Event::new()?, Event::new()?);
        let (tell_death, stop, tell) = (died.signaller()?, stopped.signaller()?, news.signaller()?);
        let link = Event::new()?;
        let generation = connection.watch(address, link.signaller()?);
        let name = format!("slot {}", spec.subject);
        let state = State {
            machine: Machine::new(&recovery),
            child: Arc::new(child),
            generation: 0,
            returns: 0,
            recoveries: VecDeque::new(),
        };
        let shared = Arc::new(Shared {
            address,
            standby: Arc::new(Standby::new(&spec, link.signaller()?)),
            spec,
            recovery,
            connection,
            container,
            windows: Windows::new(claimed.windows),
            ready,
            state: Mutex::new(state),
            changed: Condvar::new(),
            journal: Mutex::default(),
            batches: AtomicU64::new(0),
            died: tell_death,
            news: tell,
        });
        let watcher = Watcher { shared: Arc::clone(&shared), stopped, link, generation };
        let thread = std::thread::Builder::new().name(name).spawn(move || watcher.run())?;
        Ok(Self { shared, stop, died, news, thread: Mutex::new(Some(thread)) })
    }

    /// What the function is; it does not change with the process.
    pub(crate) fn ready(&self) -> &Ready {
        &self.shared.ready
    }

    /// Its windows.
    pub(crate) fn windows(&self) -> &Windows {
        &self.shared.windows
    }

    /// Process id of whoever serves it now.
    pub(crate) fn pid(&self) -> u32 {
        self.shared.state().child.pid()
    }

    /// How often the process was replaced while the device was there.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.state().generation
    }

    /// How often the device came back.
    pub(crate) fn returns(&self) -> u64 {
        self.shared.state().returns
    }

    /// Whether a standby waits.
    pub(crate) fn has_standby(&self) -> bool {
        self.shared.standby.waiting().is_some_and(|child| child.death().is_none())
    }

    /// How long the last replacements took, from noticing the death to serving again.
    pub(crate) fn recoveries(&self) -> Vec<Duration> {
        self.shared.state().recoveries.iter().copied().collect()
    }

    /// Where the function is.
    pub(crate) fn presence(&self) -> Presence {
        let state = self.shared.state();
        match state.machine.phase() {
            Phase::Serving | Phase::Recovering => Presence::Present,
            Phase::Away(death) | Phase::Returning(death) => Presence::Away(Arc::clone(death)),
            Phase::Dead(death) => Presence::Gone(Arc::clone(death)),
        }
    }

    /// Why the function is served no more, once it is.
    pub(crate) fn death(&self) -> Option<Arc<Death>> {
        let state = self.shared.state();
        match state.machine.phase() {
            Phase::Dead(death) => Some(Arc::clone(death)),
            // Nobody will replace it: dead as soon as its process is.
            Phase::Serving if !self.shared.recovery.is_on() => state.child.death(),
            _ => None,
        }
    }

    /// Readable once the function is served no more.
    pub(crate) fn died(&self) -> &Event {
        &self.died
    }

    /// Signalled when [`Slot::presence`] changes.
    pub(crate) fn news(&self) -> &Event {
        &self.news
    }

    /// Asks whoever serves the function, and again whoever comes after it.
    pub(crate) fn ask(
        &self,
        request: &Request,
        handles: &[&Signaller],
    ) -> Result<Reply, CallError> {
        self.shared.ask(request, || duplicate(handles))
    }

    /// Assigns signallers, or takes them away; kept for whoever serves the function next, also
    /// while nobody does.
    pub(crate) fn assign(
        &self,
        index: InterruptIndex,
        start: u16,
        signallers: Vec<Option<Signaller>>,
    ) -> Result<(), CallError> {
        let signallers: Vec<_> = signallers.into_iter().map(|one| one.map(Arc::new)).collect();
        // Before it is asked: a process that dies right after must not take it along.
        let before = self.shared.journal().assign(index, start, &signallers);
        let done = assign(index, start, &signallers, |request, handles| self.ask(request, handles));
        match done {
            Err(CallError::Refused(_)) => self.shared.journal().restore(before),
            Err(CallError::Dead(_)) if self.is_away() => return Ok(()),
            _ => {}
        }
        done
    }

    /// Changes the interrupt setup otherwise.
    pub(crate) fn act(
        &self,
        index: InterruptIndex,
        action: InterruptAction,
    ) -> Result<Reply, CallError> {
        let disable = action == InterruptAction::Disable;
        if disable {
            self.shared.journal().disable(index);
        }
        match self.ask(&Request::Interrupts { index, action }, &[]) {
            Err(CallError::Dead(_)) if disable && self.is_away() => Ok(Reply::Done),
            answered => answered,
        }
    }

    fn is_away(&self) -> bool {
        matches!(self.presence(), Presence::Away(_))
    }

    /// Remembers what a config write does to the interrupt capabilities.
    pub(crate) fn note_config_write(&self, offset: u32, data: &[u8]) {
        if let Some(msix) = &self.shared.ready.msix {
            self.shared.journal().config_write(msix.capability, offset, data);
        }
    }

    /// Ends it: whoever serves the function now is stopped and not replaced.
    pub(crate) fn stop(&self) {
        self.shared.connection.unwatch(self.shared.address);
        self.stop.signal();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the slot thread of {} panicked", self.shared.spec.subject);
        }
        self.shared.standby.close();
        let child = Arc::clone(&self.shared.state().child);
        child.stop();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whoever serves the function, and again whoever comes after it, each with `handles`.
    fn ask(
        &self,
        request: &Request,
        mut handles: impl FnMut() -> std::io::Result<Vec<OwnedFd>>,
    ) -> Result<Reply, CallError> {
        let deadline = Deadline::after(self.recovery.patience);
        let mut after = None;
        loop {
            let (child, generation) = self.serving(after, deadline)?;
            let handles = handles().map_err(|error| refused(&error))?;
            let answered = child.call(request.clone(), handles);
            let dead = match &answered {
                Ok(_) => false,
                Err(_) if !self.recovery.is_on() => false,
                Err(CallError::Dead(_)) => true,
                Err(CallError::Refused(failure)) => are_last_words(failure) && ends_soon(&child),
            };
            if !dead {
                return answered.map(|(reply, _)| reply);
            }
            after = Some(generation);
        }
    }

    /// Whoever serves the function, of a later generation than `after`; waits for it.
    fn serving(
        &self,
        after: Option<u64>,
        deadline: Deadline,
    ) -> Result<(Arc<Child>, u64), CallError> {
        let mut state = self.state();
        loop {
            match state.machine.phase() {
                Phase::Dead(death) | Phase::Away(death) | Phase::Returning(death) => {
                    return Err(CallError::Dead(Arc::clone(death)));
                }
                Phase::Serving if after.is_none_or(|after| state.served() > after) => {
                    return Ok((Arc::clone(&state.child), state.served()));
                }
                Phase::Serving | Phase::Recovering => {}
            }
            let Some(left) = deadline.remaining() else {
                return Err(CallError::Dead(self.death(Cause::Overdue("come back"))));
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn death(&self, cause: Cause) -> Arc<Death> {
        Arc::new(Death { cause, ..Death::of_function(&self.spec.subject) })
    }
}

impl State {
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
    ask: impl Fn(&Request, &[&Signaller]) -> Result<Reply, CallError>,
) -> Result<(), CallError> {
    let mut first = start;
    for part in signallers.chunks(MAX_ASSIGN) {
        let present = part.iter().map(Option::is_some).collect();
        let handles: Vec<&Signaller> = part.iter().flatten().map(Arc::as_ref).collect();
        let action = InterruptAction::Assign { start: first, present };
        ask(&Request::Interrupts { index, action }, &handles)?;
        first = first.saturating_add(u16::try_from(part.len()).unwrap_or(u16::MAX));
    }
    Ok(())
}

/// Whether a process says that its dext is gone, after which it ends.
fn are_last_words(failure: &Failure) -> bool {
    failure.kind == FailureKind::NoDevice && failure.code.is_none()
}

/// Whether a process ends within [`LAST_WORDS`].
fn ends_soon(child: &Child) -> bool {
    ipc::poll::wait_readable(child.died(), Deadline::after(LAST_WORDS)).unwrap_or(false)
}

fn duplicate(signallers: &[&Signaller]) -> std::io::Result<Vec<OwnedFd>> {
    use std::os::fd::AsFd as _;
    signallers.iter().map(|one| one.as_fd().try_clone_to_owned()).collect()
}

fn refused(error: &std::io::Error) -> CallError {
    CallError::Refused(companion::failure(format!("No descriptor left to send: {error}")))
}

fn refused_because(error: &DeviceError) -> CallError {
    CallError::Refused(companion::failure(error.to_string()))
}
