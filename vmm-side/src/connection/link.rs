//! The process of a connection, replaced when it dies or when its dext did.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::wire::common::Identity;
use ipc::wire::connection::Ready;
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, Event};

use super::ConnectionProtocol;
use crate::recovery::{Backoff, Deaths, Recovery};
use crate::supervisor::{Cause, Death, Spec, Supervisor};

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

pub(super) type Process = Supervisor<ConnectionProtocol>;

pub(super) struct Shared {
    pub(super) spec: Spec,
    pub(super) recovery: Recovery,
    /// The dext, if the VMM maps windows by a connection of its own.
    pub(super) own: Option<String>,
    pub(super) state: Mutex<State>,
    pub(super) died: Signaller,
}

pub(super) struct State {
    pub(super) link: Link,
    pub(super) process: Arc<Process>,
    pub(super) functions: Vec<Identity>,
    pub(super) sandbox: SandboxReport,
    /// Functions that can be attached: each once in the life of a process, since a closed dext
    /// connection cannot be opened again from inside.
    pub(super) free: BTreeSet<u8>,
    pub(super) attached: BTreeSet<u8>,
    pub(super) watchers: Vec<(u8, Signaller)>,
    pub(super) generation: u64,
}

impl State {
    pub(super) fn new(process: Process, ready: Ready, link: Link) -> Self {
        let free = ready.functions.iter().map(|identity| identity.address.function()).collect();
        let (attached, watchers) = (BTreeSet::new(), Vec::new());
        let Ready { functions, sandbox } = ready;
        let process = Arc::new(process);
        Self { link, process, functions, sandbox, free, attached, watchers, generation: 0 }
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.watchers.iter().for_each(|(_, watcher)| watcher.signal());
    }

    /// The thread that replaces the process.
    pub(super) fn watch(&self, stopped: &Event) {
        let mut deaths = Deaths::new(&self.recovery);
        loop {
            let process = Arc::clone(&self.state().process);
            let sources =
                [Source::readable(stopped, true), Source::readable(process.died(), false)];
            match poll::wait(&sources, None) {
                Ok(tokens) if tokens.contains(&true) => return,
                Ok(_) => {}
                Err(error) => tracing::error!("{}: cannot wait: {error}", self.spec.subject),
            }
            let Some(death) = process.death() else { continue };
            let replaced = match deaths.on(Instant::now(), &death) {
                Ok(()) => {
                    self.change(|state| state.link = Link::Away(Arc::clone(&death)));
                    self.replace(stopped)
                }
                Err(death) => Err(death),
            };
            match replaced {
                Ok(Some((process, ready))) => self.change(|state| {
                    let generation = state.generation + 1;
                    let link = Link::Up(generation, death);
                    let mut next = State::new(process, ready, link);
                    next.generation = generation;
                    next.attached = std::mem::take(&mut state.attached);
                    next.watchers = std::mem::take(&mut state.watchers);
                    next.free.retain(|function| !next.attached.contains(function));
                    *state = next;
                }),
                Ok(None) => return,
                Err(death) => {
                    self.change(|state| state.link = Link::Gone(death));
                    return self.died.signal();
                }
            }
        }
    }

    /// Another process that has every function that is attached; `None` when it is not wanted any
    /// more. The dext may be gone for a while as well.
    fn replace(&self, stopped: &Event) -> Result<Option<(Process, Ready)>, Arc<Death>> {
        let deadline = Deadline::after(self.recovery.away);
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(200));
        // Each attempt that fails is no news.
        let spec = Spec { expendable: true, ..self.spec.clone() };
        loop {
            let death = match Process::start(&spec) {
                Ok((process, ready)) => {
                    let state = self.state();
                    let has = |function: &u8| {
                        ready.functions.iter().any(|one| one.address.function() == *function)
                    };
                    if state.attached.iter().all(has) {
                        return Ok(Some((process, ready)));
                    }
                    let why = "the dext does not have all its functions any more".to_owned();
                    drop(state);
                    Arc::new(Death { cause: Cause::StartFailed(why), ..(*process.stop()).clone() })
                }
                Err(death) => death,
            };
            if deadline.passed() {
                return Err(death);
            }
            if poll::wait_readable(stopped, Deadline::after(backoff.pause())).unwrap_or(true) {
                return Ok(None);
            }
        }
    }
}
