//! The function's thread: carries out what [`super::machine`] decides.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::wire::function::{InterruptAction, Interrupts, Ready, TakeOver};
use ipc::{Deadline, Event};
use parking_lot::{Condvar, Mutex};

use super::calls::assign;
use super::machine::{Action, FunctionEvent, FunctionState, Machine};
use super::{FunctionShared, MAX_REMEMBERED, Parts, Serving};
use crate::child::start::Kept;
use crate::child::{CallError, Cause, Death, FunctionProtocol, Spec};
use crate::connection::{Claimed, Link};
use crate::error::{DeviceError, ErrorKind};
use crate::keeper::{Keeper, KeeperEvent, KeeperParts, StartError};
use crate::recovery::Backoff;
use crate::text::printable;
use crate::window_check;
use crate::windows::Windows;

type Started = Result<Arc<FunctionShared>, Arc<Death>>;

/// Why a process was not replaced.
enum Failed {
    /// The function is stopped.
    Stopped,
    /// The connection process is another, or none: that comes first.
    Lost,
    /// For good.
    Death(Arc<Death>),
}

/// How long a connection process may take to say whether its device is there; it is asked again.
const LOOK: Duration = Duration::from_millis(200);

/// Pauses while the dext cleans up: a caller waits.
fn backoff(first: Duration) -> Backoff {
    Backoff::new(first, Duration::from_millis(50))
}

/// The thread's state.
struct FunctionKeeper {
    shared: Arc<FunctionShared>,
    keeper: Keeper<FunctionProtocol>,
    /// The generation of the connection process that the function was claimed through.
    generation: u64,
}

/// Starts the process, tells how that went, and keeps it until it is told to stop.
pub(super) fn run(
    parts: Parts,
    died: Signaller,
    news: Signaller,
    keeper: KeeperParts,
    started: &SyncSender<Started>,
) {
    let subject = parts.spec.subject.clone();
    let failed = |why: String| Arc::new(Death::of_function(&subject, Cause::StartFailed(why)));
    let link = Event::new();
    let watcher = link.as_ref().ok().and_then(|link| link.signaller().ok());
    let keeper =
        link.and_then(|link| Keeper::<FunctionProtocol>::new(parts.spec.clone(), link, keeper));
    let (Ok(keeper), Some(watcher)) = (keeper, watcher) else {
        return drop(started.send(Err(failed("no descriptors are left".to_owned()))));
    };
    let (kept, ready) = match keeper.start() {
        Ok(ready) => ready,
        Err(StartError::Died(death)) => return drop(started.send(Err(death))),
        Err(StartError::Stopped) => return,
    };
    if let Err(why) = agree(&ready, &parts.claimed) {
        keeper.end_in_order(kept);
        return drop(started.send(Err(failed(why))));
    }
    let Parts { address, mut spec, recovery, connection, container, claimed, name: _ } = parts;
    // What the host had set, which a guest may lower before this process is replaced.
    let size = ready.max_read_request;
    spec.arguments.extend(size.map(|size| format!("--max-read-request={size}").into()));
    let generation = connection.watch(address, watcher);
    let state = Serving {
        machine: Machine::new(&recovery),
        process: Arc::clone(&kept.child),
        generation: 0,
        returns: 0,
        recoveries: VecDeque::new(),
    };
    let shared = Arc::new(FunctionShared {
        address,
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
        to_abandon: Mutex::new(None),
        standby: keeper.standby_flag(),
        died,
        news,
    });
    let mut function = FunctionKeeper { shared, keeper, generation };
    function.keeper.keep(kept);
    if started.send(Ok(Arc::clone(&function.shared))).is_ok() {
        function.run();
    }
    function.keeper.drop_standby();
    function.keeper.end();
    function.shared.died.signal();
}

/// Whether both processes speak of the same function, and where one says that the MSI-X structures are
/// the other offers no windows.
fn agree(ready: &Ready, claimed: &Claimed) -> Result<(), String> {
    let (found, there) = (ready.identity, claimed.identity);
    if found != there || ready.bars != claimed.bars {
        return Err(format!("it found {found:?}, the connection process {there:?}"));
    }
    window_check::check_claimed(&claimed.windows, &ready.bars, ready.msix.as_ref())
        .map_err(|error| format!("the connection process offers what no guest may have: {error}"))
}

impl FunctionKeeper {
    fn run(&mut self) {
        if self.shared.recovery.standby {
            let mut spec = self.shared.spec.clone();
            spec.arguments.push("--standby".into());
            // A standby's death is expected, so it is logged at debug level.
            spec.expendable = true;
            self.keeper.stand_by(spec);
        }
        loop {
            let mut event = match self.keeper.wait() {
                KeeperEvent::Stop => return,
                KeeperEvent::Died(death) => self.after_death(death),
                KeeperEvent::News => self.after_news(),
            };
            let noticed = Instant::now();
            while let Some(now) = event.take() {
                match self.on(now, noticed) {
                    Ok(next) => event = next,
                    Err(()) => return,
                }
            }
        }
    }

    /// The process died; of its connection process's death, if that is why, is told first.
    fn after_death(&mut self, death: Arc<Death>) -> Option<FunctionEvent> {
        match self.shared.connection.link() {
            Link::Up(now, _) if now == self.generation => {
                Some(FunctionEvent::Died(Instant::now(), death))
            }
            _ => self.after_news(),
        }
    }

    /// The connection process died or is back.
    fn after_news(&mut self) -> Option<FunctionEvent> {
        match self.shared.connection.link() {
            Link::Gone(death) => Some(FunctionEvent::GivenUp(death)),
            Link::Away(death) => Some(FunctionEvent::Lost(death)),
            Link::Up(now, before) if now != self.generation => {
                let _ = self.on(FunctionEvent::Lost(before), Instant::now());
                self.generation = now;
                Some(FunctionEvent::Back)
            }
            Link::Up(..) => None,
        }
    }

    /// Decides and carries out; what that leads to. An error: the function is stopped.
    fn on(&mut self, event: FunctionEvent, noticed: Instant) -> Result<Option<FunctionEvent>, ()> {
        let (action, now) = self.shared.change(|state| {
            let action = state.machine.on(event);
            (action, state.machine.state().clone())
        });
        let replaced = match action {
            Action::Nothing => return Ok(None),
            Action::Withdraw => {
                if let FunctionState::Away(death) = &now {
                    tracing::warn!("{}: away: {death}", self.shared.spec.subject);
                }
                self.shared.container.lose(self.shared.address, &self.shared.connection);
                self.withdraw();
                return Ok(None);
            }
            Action::GiveUp => {
                if let FunctionState::Dead(death) = &now {
                    tracing::warn!("{}: given up: {death}", self.shared.spec.subject);
                }
                self.withdraw();
                self.shared.died.signal();
                return Ok(None);
            }
            Action::Replace => self.replace().map(|kept| (kept, false)),
            Action::Return => self.come_back().map(|kept| (kept, true)),
        };
        match replaced {
            Ok((kept, returned)) => {
                self.serve(kept, returned, noticed);
                Ok(None)
            }
            Err(Failed::Stopped) => Err(()),
            Err(Failed::Lost) => Ok(Some(match self.shared.connection.link() {
                Link::Gone(death) => FunctionEvent::GivenUp(death),
                Link::Away(death) | Link::Up(_, death) => FunctionEvent::Lost(death),
            })),
            Err(Failed::Death(death)) => Ok(Some(FunctionEvent::NotReplaced(death))),
        }
    }

    /// Another process serves from here on.
    fn serve(&mut self, kept: Kept<FunctionProtocol>, returned: bool, noticed: Instant) {
        let process = Arc::clone(&kept.child);
        self.keeper.keep(kept);
        self.shared.change(|state| {
            state.process = process;
            state.machine.on(FunctionEvent::Replaced);
            if returned {
                state.returns += 1;
                return;
            }
            state.generation += 1;
            if state.recoveries.len() == MAX_REMEMBERED {
                state.recoveries.pop_front();
            }
            state.recoveries.push_back(noticed.elapsed());
        });
        self.keeper.warm(Duration::ZERO);
    }

    /// All ones under the windows; whoever serves and whoever waits ends.
    fn withdraw(&mut self) {
        self.shared.windows.withdraw();
        self.keeper.end();
        self.keeper.drop_standby();
    }

    /// Whether the function is still claimed through the connection process that it was claimed
    /// through.
    fn is_linked(&self) -> bool {
        matches!(self.shared.connection.link(), Link::Up(now, _) if now == self.generation)
    }

    /// A new process with the journal replayed.
    fn replace(&mut self) -> Result<Kept<FunctionProtocol>, Failed> {
        let deadline = Deadline::after(self.shared.recovery.timeout);
        match self.keeper.take_standby() {
            Ok(Some((kept, ready))) => match self.take_over(&kept, &ready, deadline) {
                Ok(()) => return Ok(kept),
                Err(error) => {
                    let death = self.keeper.end_in_order(kept);
                    let Failed::Death(why) = error else { return Err(error) };
                    tracing::warn!("the standby did not take over: {why}; {death}");
                }
            },
            Ok(None) => {}
            Err(_) => return Err(Failed::Stopped),
        }
        // Each attempt that fails is no news: the last one is told.
        let spec = Spec { expendable: true, ..self.shared.spec.clone() };
        let mut backoff = backoff(Duration::from_millis(1));
        loop {
            let death = match self.keeper.start_as(&spec) {
                Ok((mut kept, ready)) => {
                    let replayed = if ready == self.shared.ready {
                        self.replay(&kept).map_err(|error| self.not_replayed(error))
                    } else {
                        Err(self.other_device())
                    };
                    match replayed {
                        Ok(()) => {
                            kept.is_relied_on();
                            return Ok(kept);
                        }
                        Err(death) => {
                            self.keeper.end_in_order(kept);
                            death
                        }
                    }
                }
                Err(StartError::Died(death)) => {
                    // Perhaps since the device is gone: the process that holds the claim then ends.
                    self.shared.connection.look(Deadline::after(LOOK).min(deadline));
                    death
                }
                Err(StartError::Stopped) => return Err(Failed::Stopped),
            };
            // The dext may still be cleaning up after the dead one.
            self.pause(&mut backoff, deadline, death)?;
        }
    }

    /// The standby sets the interrupts up as soon as the dext has cleaned up after the dead one.
    fn take_over(
        &self,
        kept: &Kept<FunctionProtocol>,
        ready: &Ready,
        deadline: Deadline,
    ) -> Result<(), Failed> {
        let mut backoff = backoff(Duration::from_micros(100));
        if (Ready { vectors: self.shared.ready.vectors, ..ready.clone() }) != self.shared.ready {
            return Err(Failed::Death(self.other_device()));
        }
        loop {
            let child = &kept.child;
            let taken =
                self.keeper.with_in_hand(child, || child.call_as_keeper(&TakeOver, &[], deadline));
            let death = match taken {
                Ok(vectors) if vectors == self.shared.ready.vectors => {
                    let replayed = self.replay(kept);
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
        if !self.keeper.pause(backoff.pause()) && self.keeper.is_stopped() {
            return Err(Failed::Stopped);
        }
        Ok(())
    }

    /// The function comes back through another connection process: claimed, reset so that it
    /// forgets every address it was told, given its memory, and served by a new process.
    fn come_back(&mut self) -> Result<Kept<FunctionProtocol>, Failed> {
        let deadline = Deadline::after(self.shared.recovery.timeout);
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
        let (address, connection) = (self.shared.address, Arc::clone(&self.shared.connection));
        self.step("resetting", connection.reset(address))?;
        self.step("mapping guest memory", self.shared.container.rejoin(address, &connection))?;
        let kept = self.replace()?;
        if let Err(failed) =
            self.step("restoring windows", self.shared.windows.restore(claimed.windows))
        {
            self.keeper.end_in_order(kept);
            return Err(failed);
        }
        tracing::info!("{}: back", self.shared.spec.subject);
        Ok(kept)
    }

    fn step(&self, what: &str, done: Result<(), DeviceError>) -> Result<(), Failed> {
        done.map_err(|error| match error.kind() {
            ErrorKind::Gone => Failed::Lost,
            _ => Failed::Death(self.not_back(what, &error)),
        })
    }

    fn death(&self, why: String) -> Arc<Death> {
        Arc::new(Death::of_function(&self.shared.spec.subject, Cause::StartFailed(why)))
    }

    fn not_back(&self, what: &str, error: &DeviceError) -> Arc<Death> {
        self.death(format!("{what} failed: {error}"))
    }

    fn other_device(&self) -> Arc<Death> {
        self.death("it is another device".to_owned())
    }

    fn not_replayed(&self, error: CallError) -> Arc<Death> {
        match error {
            CallError::Dead(death) => death,
            CallError::Refused(failure) => self.death(printable(&failure.message)),
            CallError::TimedOut { .. } => self.death(error.to_string()),
        }
    }

    /// Sets the interrupts up as they were and signals each vector in use once; a masked INTx is
    /// signalled when it is unmasked.
    fn replay(&self, kept: &Kept<FunctionProtocol>) -> Result<(), CallError> {
        let child = &kept.child;
        self.keeper.with_in_hand(child, || {
            let deadline = self.shared.usual();
            let journal = self.shared.journal().clone();
            let memory = journal.memory.values().cloned();
            self.shared.replay_companion(child, journal.companion, memory, deadline)?;
            let Some((index, signallers)) = journal.interrupts() else { return Ok(()) };
            assign(index, 0, signallers, |call, handles| {
                let handles: Vec<_> = handles.iter().map(|handle| handle.as_fd()).collect();
                child.call_as_keeper(call, &handles, deadline)
            })?;
            if journal.is_masked() {
                let mask = Interrupts { index, action: InterruptAction::Mask };
                child.call_as_keeper(&mask, &[], deadline)?;
            }
            let count = u16::try_from(signallers.len()).unwrap_or(u16::MAX);
            let action = InterruptAction::Trigger { start: 0, count };
            child.call_as_keeper(&Interrupts { index, action }, &[], deadline)
        })
    }
}
