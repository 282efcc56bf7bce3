//! The slot's thread: carries out what [`super::state`] decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::poll::{self, Source};
use ipc::wire::function::{InterruptAction, Ready, Reply, Request};
use ipc::{Deadline, Event};

use super::state::{Do, Happened, Phase};
use super::{Child, MOST_REMEMBERED, Shared, State, assign, duplicate, refused};
use crate::connection::Link;
use crate::device::DeviceError;
use crate::recovery::Backoff;
use crate::supervisor::{CallError, Cause, Death};

/// The slot's thread.
pub(super) struct Watcher {
    pub(super) shared: Arc<Shared>,
    pub(super) stopped: Event,
    /// Signalled when the connection process dies or is back, and when a standby waits.
    pub(super) link: Event,
    /// The generation of the connection process that the function was claimed through.
    pub(super) generation: u64,
}

/// Why a process was not replaced.
enum Failed {
    /// The slot is stopped.
    Stopped,
    /// The connection process is another, or none: that comes first.
    Lost,
    /// For good.
    Death(Arc<Death>),
}

/// Pauses while the dext cleans up: a caller waits.
fn backoff(first: Duration) -> Backoff {
    Backoff::new(first, Duration::from_millis(50))
}

impl Watcher {
    pub(super) fn run(mut self) {
        if self.shared.recovery.standby {
            self.shared.standby.warm();
        }
        loop {
            let (child, served) = {
                let state = self.shared.state();
                (Arc::clone(&state.child), matches!(state.machine.phase(), Phase::Serving))
            };
            let mut sources =
                vec![Source::readable(&self.stopped, true), Source::readable(&self.link, false)];
            if served {
                sources.push(Source::readable(child.died(), false));
            }
            let standby = self.shared.standby.waiting();
            sources.extend(standby.iter().map(|waits| Source::readable(waits.died(), false)));
            match poll::wait(&sources, None) {
                Ok(tokens) if tokens.contains(&true) => return,
                Ok(_) => {}
                Err(error) => tracing::error!("{}: cannot wait: {error}", self.shared.spec.subject),
            }
            let noticed = Instant::now();
            let _ = self.link.clear();
            if standby.is_some_and(|waits| waits.death().is_some()) {
                self.shared.standby.warm();
            }
            let mut happened = match self.shared.connection.link() {
                Link::Gone(death) => Some(Happened::GivenUp(death)),
                Link::Away(death) => Some(Happened::Lost(death)),
                Link::Up(now, before) if now != self.generation => {
                    let _ = self.happened(Happened::Lost(before), noticed);
                    self.generation = now;
                    Some(Happened::Back)
                }
                Link::Up(..) if served => child.death().map(|death| Happened::Died(noticed, death)),
                Link::Up(..) => None,
            };
            while let Some(now) = happened.take() {
                happened = match self.happened(now, noticed) {
                    Ok(next) => next,
                    Err(()) => return,
                };
            }
        }
    }

    /// Decides and carries out; what that leads to. An error: the slot is stopped or given up.
    fn happened(&self, happened: Happened, noticed: Instant) -> Result<Option<Happened>, ()> {
        let (what, phase) = self.change(|state| {
            let what = state.machine.on(happened);
            (what, state.machine.phase().clone())
        });
        let replaced = match what {
            Do::Nothing => return Ok(None),
            Do::Withdraw => {
                if let Phase::Away(death) = &phase {
                    tracing::warn!("{}: away: {death}", self.shared.spec.subject);
                }
                self.shared.container.lose(self.shared.address, &self.shared.connection);
                self.withdraw();
                return Ok(None);
            }
            Do::GiveUp => {
                if let Phase::Dead(death) = &phase {
                    tracing::warn!("{}: given up: {death}", self.shared.spec.subject);
                }
                self.withdraw();
                self.shared.died.signal();
                return Err(());
            }
            Do::Replace => self.replace().map(|child| (child, false)),
            Do::Return => self.come_back().map(|child| (child, true)),
        };
        match replaced {
            Ok((child, returned)) => {
                self.change(|state| {
                    state.child = child;
                    state.machine.on(Happened::Replaced);
                    if returned {
                        state.returns += 1;
                    } else {
                        state.generation += 1;
                        if state.recoveries.len() == MOST_REMEMBERED {
                            state.recoveries.pop_front();
                        }
                        state.recoveries.push_back(noticed.elapsed());
                    }
                });
                if self.shared.recovery.standby {
                    self.shared.standby.warm();
                }
                Ok(None)
            }
            Err(Failed::Stopped) => Err(()),
            Err(Failed::Lost) => Ok(Some(match self.shared.connection.link() {
                Link::Gone(death) => Happened::GivenUp(death),
                Link::Away(death) | Link::Up(_, death) => Happened::Lost(death),
            })),
            Err(Failed::Death(death)) => Ok(Some(Happened::NotReplaced(death))),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.shared.state());
        self.shared.changed.notify_all();
        self.shared.news.signal();
        changed
    }

    /// All ones under the windows; whoever serves and whoever waits ends.
    fn withdraw(&self) {
        self.shared.windows.withdraw();
        let child = Arc::clone(&self.shared.state().child);
        child.stop();
        self.shared.standby.clear();
    }

    /// Whether the function is still claimed through the connection process that it was claimed
    /// through.
    fn is_linked(&self) -> bool {
        matches!(self.shared.connection.link(), Link::Up(now, _) if now == self.generation)
    }

    /// A new process with the journal replayed.
    fn replace(&self) -> Result<Arc<Child>, Failed> {
        let deadline = Deadline::after(self.shared.recovery.patience);
        if let Some((child, ready)) = self.shared.standby.take(deadline) {
            match self.take_over(&child, &ready, deadline) {
                Ok(()) => return Ok(child),
                Err(Failed::Death(death)) => {
                    tracing::warn!("the standby did not take over: {death}");
                }
                Err(other) => return Err(other),
            }
        }
        let mut backoff = backoff(Duration::from_millis(1));
        loop {
            let death = match Child::start(&self.shared.spec) {
                Ok((child, ready)) if ready == self.shared.ready => match self.replay(&child) {
                    Ok(()) => return Ok(Arc::new(child)),
                    Err(error) => self.not_replayed(error),
                },
                Ok(_) => self.other_device(),
                Err(death) => death,
            };
            // The dext may still be cleaning up after the dead one.
            self.pause(&mut backoff, deadline, death)?;
        }
    }

    /// The standby sets the interrupts up as soon as the dext has cleaned up after the dead one.
    fn take_over(&self, child: &Child, ready: &Ready, deadline: Deadline) -> Result<(), Failed> {
        let mut backoff = backoff(Duration::from_micros(100));
        if (Ready { vectors: self.shared.ready.vectors, ..ready.clone() }) != self.shared.ready {
            return Err(Failed::Death(self.other_device()));
        }
        loop {
            let death = match child.ask(Request::TakeOver) {
                Ok(Reply::Vectors(vectors)) if vectors == self.shared.ready.vectors => {
                    let replayed = self.replay(child);
                    return replayed.map_err(|error| Failed::Death(self.not_replayed(error)));
                }
                Ok(_) => return Err(Failed::Death(self.other_device())),
                Err(CallError::Dead(death)) => return Err(Failed::Death(death)),
                Err(refused) => self.not_replayed(refused),
            };
            self.pause(&mut backoff, deadline, death)?;
        }
    }

    /// Waits a little, and longer the next time. An error when there is no point in going on.
    fn pause(
        &self,
        backoff: &mut Backoff,
        deadline: Deadline,
        death: Arc<Death>,
    ) -> Result<(), Failed> {
        if !self.is_linked() {
            return Err(Failed::Lost);
        }
        if deadline.passed() {
            return Err(Failed::Death(death));
        }
        let sources = [Source::readable(&self.stopped, true), Source::readable(&self.link, false)];
        let tokens = poll::wait(&sources, Some(Deadline::after(backoff.pause())));
        let tokens = tokens.unwrap_or_default();
        if tokens.contains(&true) {
            return Err(Failed::Stopped);
        }
        Ok(())
    }

    /// The function comes back through another connection process: claimed, reset so that it
    /// forgets every address it was told, given its memory, and served by a new process.
    fn come_back(&self) -> Result<Arc<Child>, Failed> {
        let deadline = Deadline::after(self.shared.recovery.patience);
        let mut backoff = backoff(Duration::from_millis(1));
        let claimed = loop {
            match self.shared.connection.attach(self.shared.address) {
                Ok(claimed) => break claimed,
                // The dext may still be cleaning up after the connection process that died.
                Err(error) => {
                    let death = self.not_back("claiming", &error);
                    self.pause(&mut backoff, deadline, death)?;
                }
            }
        };
        if claimed.identity != self.shared.ready.identity || claimed.bars != self.shared.ready.bars
        {
            return Err(Failed::Death(self.other_device()));
        }
        let (address, connection) = (self.shared.address, &self.shared.connection);
        self.step("resetting", connection.reset(address))?;
        self.step("mapping guest memory", self.shared.container.rejoin(address, connection))?;
        let child = self.replace()?;
        self.step("restoring windows", self.shared.windows.restore(claimed.windows))?;
        tracing::info!("{}: back", self.shared.spec.subject);
        Ok(child)
    }

    fn step(&self, what: &str, done: Result<(), DeviceError>) -> Result<(), Failed> {
        done.map_err(|error| match error {
            DeviceError::Gone(_) => Failed::Lost,
            error => Failed::Death(self.not_back(what, &error)),
        })
    }

    fn not_back(&self, what: &str, error: &DeviceError) -> Arc<Death> {
        self.shared.death(Cause::StartFailed(format!("{what} failed: {error}")))
    }

    fn other_device(&self) -> Arc<Death> {
        self.shared.death(Cause::StartFailed("it is another device".to_owned()))
    }

    fn not_replayed(&self, error: CallError) -> Arc<Death> {
        match error {
            CallError::Dead(death) => death,
            CallError::Refused(failure) => {
                self.shared.death(Cause::StartFailed(crate::text::printable(&failure.message)))
            }
        }
    }

    /// Sets the interrupts up as they were and signals each vector in use once.
    fn replay(&self, child: &Child) -> Result<(), CallError> {
        let journal = self.shared.journal().clone();
        for (offset, data) in journal.config_writes() {
            child.ask(Request::ConfigWrite { offset, data })?;
        }
        let memory = journal.memory.values().cloned();
        self.shared.replay_companion(child, journal.companion, memory)?;
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
