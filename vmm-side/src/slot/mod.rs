//! A slot: one function and the process that serves it, replaced when it dies.
//!
//! ```text
//!              died                      replayed
//!   Serving ──────────▶ Recovering ─────────────────▶ Serving
//!      │ stop               │ too many deaths, not replayed in time, connection process dead
//!      ▼                    ▼
//!   Stopped               Dead: reads are all ones from here on
//! ```
//!
//! What survives a death is not the process's: the claim, DMA and windows are the connection
//! process's, the signallers are kept in the [`journal`]. Recovery, by the slot's one thread: a new
//! process (again with back-off, since the dext cleans up after a dead client in its own time),
//! the journal replayed, every vector in use signalled once, since an interrupt may have been
//! lost. Callers wait meanwhile and their request is sent again: it is carried out at least once,
//! and a read is always the device's answer. What comes next is decided in [`state`], without I/O.

pub mod journal;
pub mod state;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::wire::function::{InterruptAction, InterruptIndex, MAX_ASSIGN, Ready, Reply, Request};
use ipc::{Deadline, Event};

use crate::connection::Connection;
use crate::proxy::FunctionProtocol;
use crate::supervisor::{CallError, Cause, Death, Spec, Supervisor};
use journal::Journal;
use state::{Next, Phase};

type Child = Supervisor<FunctionProtocol>;

/// Whether and how a dead function process is replaced.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Deaths within [`Recovery::window`] after which the function is given up. 0: at the first,
    /// so nothing is ever replaced.
    pub most_deaths: u32,
    /// See [`Recovery::most_deaths`].
    pub window: Duration,
    /// How long a caller waits in all, and how long replacing one process may take: 4.5 s by
    /// default, below the 5 s after which QEMU gives up on a request.
    pub patience: Duration,
}

impl Recovery {
    /// A dead function stays dead.
    pub const OFF: Self =
        Self { most_deaths: 0, window: Duration::from_secs(1), patience: Duration::from_secs(4) };
}

impl Default for Recovery {
    /// Up to 100 deaths in 10 s: many more than any accident, and few enough that a guest whose
    /// requests kill the process does not keep the host busy.
    fn default() -> Self {
        Self {
            most_deaths: 100,
            window: Duration::from_secs(10),
            patience: Duration::from_millis(4500),
        }
    }
}

struct Shared {
    spec: Spec,
    recovery: Recovery,
    connection: Arc<Connection>,
    ready: Ready,
    state: Mutex<State>,
    changed: Condvar,
    journal: Mutex<Journal>,
    died: Signaller,
}

struct State {
    phase: Phase,
    child: Arc<Child>,
    generation: u64,
    /// Of the last [`MOST_REMEMBERED`] replacements.
    recoveries: VecDeque<Duration>,
}

/// Replacements whose time is remembered: enough for a median, and no more in years of serving.
const MOST_REMEMBERED: usize = 4096;

/// A function and whoever serves it now.
pub(crate) struct Slot {
    shared: Arc<Shared>,
    stop: Signaller,
    died: Event,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Slot {
    /// Takes over a process that is ready.
    pub(crate) fn new(
        spec: Spec,
        recovery: Recovery,
        connection: Arc<Connection>,
        child: Child,
        ready: Ready,
    ) -> std::io::Result<Self> {
        let (died, stopped) = (Event::new()?, Event::new()?);
        let (tell, stop) = (died.signaller()?, stopped.signaller()?);
        let name = format!("slot {}", spec.subject);
        let child = Arc::new(child);
        let state =
            State { phase: Phase::Serving, child, generation: 0, recoveries: VecDeque::new() };
        let shared = Arc::new(Shared {
            spec,
            recovery,
            connection,
            ready,
            state: Mutex::new(state),
            changed: Condvar::new(),
            journal: Mutex::default(),
            died: tell,
        });
        let for_thread = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name(name).spawn(move || for_thread.watch(&stopped))?;
        Ok(Self { shared, stop, died, thread: Mutex::new(Some(thread)) })
    }

    /// What the function is; it does not change with the process.
    pub(crate) fn ready(&self) -> &Ready {
        &self.shared.ready
    }

    /// Process id of whoever serves it now.
    pub(crate) fn pid(&self) -> u32 {
        self.shared.state().child.pid()
    }

    /// How often the process was replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.state().generation
    }

    /// How long the last replacements took, from noticing the death to serving again.
    pub(crate) fn recoveries(&self) -> Vec<Duration> {
        self.shared.state().recoveries.iter().copied().collect()
    }

    /// Why the function is served no more, once it is.
    pub(crate) fn death(&self) -> Option<Arc<Death>> {
        let state = self.shared.state();
        match &state.phase {
            Phase::Dead(death) => Some(Arc::clone(death)),
            // Nobody will replace it: dead as soon as its process is.
            Phase::Serving if self.shared.recovery.most_deaths == 0 => state.child.death(),
            _ => None,
        }
    }

    /// Readable once the function is served no more.
    pub(crate) fn died(&self) -> &Event {
        &self.died
    }

    /// Asks whoever serves the function, and again whoever comes after it.
    pub(crate) fn ask(
        &self,
        request: &Request,
        handles: &[&Signaller],
    ) -> Result<Reply, CallError> {
        let deadline = Deadline::after(self.shared.recovery.patience);
        let mut after = None;
        loop {
            let (child, generation) = self.shared.serving(after, deadline)?;
            let handles = duplicate(handles).map_err(|error| refused(&error))?;
            match child.call(request.clone(), handles) {
                Err(CallError::Dead(death)) if self.shared.recovery.most_deaths == 0 => {
                    return Err(CallError::Dead(death));
                }
                Err(CallError::Dead(_)) => after = Some(generation),
                answered => return answered.map(|(reply, _)| reply),
            }
        }
    }

    /// Assigns signallers, or takes them away; kept for whoever serves the function next.
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
        if let Err(CallError::Refused(_)) = done {
            self.shared.journal().restore(before);
        }
        done
    }

    /// Changes the interrupt setup otherwise.
    pub(crate) fn act(
        &self,
        index: InterruptIndex,
        action: InterruptAction,
    ) -> Result<Reply, CallError> {
        if action == InterruptAction::Disable {
            self.shared.journal().disable(index);
        }
        self.ask(&Request::Interrupts { index, action }, &[])
    }

    /// Remembers what a config write does to the interrupt capabilities.
    pub(crate) fn note_config_write(&self, offset: u32, data: &[u8]) {
        if let Some(msix) = &self.shared.ready.msix {
            self.shared.journal().config_write(msix.capability, offset, data);
        }
    }

    /// Ends it: whoever serves the function now is stopped and not replaced.
    pub(crate) fn stop(&self) {
        self.stop.signal();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the slot thread of {} panicked", self.shared.spec.subject);
        }
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

    /// Whoever serves the function, of a later generation than `after`; waits for it.
    fn serving(
        &self,
        after: Option<u64>,
        deadline: Deadline,
    ) -> Result<(Arc<Child>, u64), CallError> {
        let mut state = self.state();
        loop {
            match &state.phase {
                Phase::Dead(death) => return Err(CallError::Dead(Arc::clone(death))),
                Phase::Serving if after.is_none_or(|after| state.generation > after) => {
                    return Ok((Arc::clone(&state.child), state.generation));
                }
                _ => {}
            }
            let Some(left) = deadline.remaining() else {
                return Err(CallError::Dead(Arc::new(self.death(Cause::Overdue("come back")))));
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn death(&self, cause: Cause) -> Death {
        Death { cause, ..Death::of_function(&self.spec.subject) }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// The slot's thread.
    fn watch(&self, stopped: &Event) {
        let mut deaths = state::Deaths::new(self.recovery.most_deaths, self.recovery.window);
        loop {
            let child = Arc::clone(&self.state().child);
            let sources = [Source::readable(stopped, true), Source::readable(child.died(), false)];
            match poll::wait(&sources, None) {
                Ok(tokens) if tokens.contains(&true) => return,
                Ok(_) => {}
                Err(error) => tracing::error!("{}: cannot wait: {error}", self.spec.subject),
            }
            let noticed = Instant::now();
            let death = child.death().unwrap_or_else(|| Arc::new(self.death(Cause::Ended)));
            let next = match self.connection.death() {
                Some(death) => Next::GiveUp(death),
                None => deaths.on(noticed, death),
            };
            let replaced = match next {
                Next::GiveUp(death) => Err(death),
                Next::Replace => {
                    self.set(|state| state.phase = Phase::Recovering);
                    self.replace(stopped)
                }
            };
            match replaced {
                Ok(Some(child)) => self.set(|state| {
                    state.child = Arc::new(child);
                    state.generation += 1;
                    state.phase = Phase::Serving;
                    if state.recoveries.len() == MOST_REMEMBERED {
                        state.recoveries.pop_front();
                    }
                    state.recoveries.push_back(noticed.elapsed());
                }),
                Ok(None) => return,
                Err(death) => {
                    tracing::warn!("{}: given up: {death}", self.spec.subject);
                    self.set(|state| state.phase = Phase::Dead(death));
                    return self.died.signal();
                }
            }
        }
    }

    /// A new process with the journal replayed; `None` when the slot is stopped meanwhile.
    fn replace(&self, stopped: &Event) -> Result<Option<Child>, Arc<Death>> {
        let deadline = Deadline::after(self.recovery.patience);
        let mut pause = Duration::from_millis(1);
        loop {
            let death = match Child::start(&self.spec) {
                Ok((child, ready)) if ready == self.ready => match self.replay(&child) {
                    Ok(()) => return Ok(Some(child)),
                    Err(CallError::Dead(death)) => death,
                    Err(CallError::Refused(failure)) => {
                        Arc::new(self.death(Cause::StartFailed(failure.message)))
                    }
                },
                Ok(_) => {
                    Arc::new(self.death(Cause::StartFailed("it is another device".to_owned())))
                }
                Err(death) => death,
            };
            if deadline.passed() || self.connection.death().is_some() {
                return Err(self.connection.death().unwrap_or(death));
            }
            // The dext may still be cleaning up after the dead one.
            if poll::wait_readable(stopped, Deadline::after(pause)).unwrap_or(true) {
                return Ok(None);
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Sets the interrupts up as they were and signals each vector in use once.
    fn replay(&self, child: &Child) -> Result<(), CallError> {
        let journal = self.journal().clone();
        for (offset, data) in journal.config_writes() {
            child.ask(Request::ConfigWrite { offset, data })?;
        }
        let Some((index, signallers)) = journal.interrupts() else { return Ok(()) };
        assign(index, 0, signallers, |request, handles| {
            let handles = duplicate(handles).map_err(|error| refused(&error))?;
            child.call(request.clone(), handles).map(|(reply, _)| reply)
        })?;
        let count = u16::try_from(signallers.len()).unwrap_or(u16::MAX);
        let action = InterruptAction::Trigger { start: 0, count };
        child.ask(Request::Interrupts { index, action }).map(drop)
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

fn duplicate(signallers: &[&Signaller]) -> std::io::Result<Vec<OwnedFd>> {
    use std::os::fd::AsFd as _;
    signallers.iter().map(|one| one.as_fd().try_clone_to_owned()).collect()
}

fn refused(error: &std::io::Error) -> CallError {
    use ipc::wire::common::{Failure, FailureKind};
    let message = format!("No descriptor left for a signaller: {error}");
    CallError::Refused(Failure { kind: FailureKind::NoSpace, code: None, message })
}
