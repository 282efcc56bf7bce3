//! The function's thread: carries out what [`super::machine`] decides.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use ipc::Event;
use ipc::event::Signaller;
use ipc::wire::function::{Known, Ready};
use parking_lot::{Condvar, Mutex};

use super::accesses::AccessMeter;
use super::guard::ConfigGuard;
use super::machine::{Action, FunctionEvent, FunctionState, Machine};
use super::upgrade::{Preparing, UpgradeError};
use super::{FunctionShared, MAX_REMEMBERED, Parts, Serving};
use crate::child::start::Kept;
use crate::child::{Cause, Death, FunctionProtocol, Handed, Spec};
use crate::connection::{Claimed, Link};
use crate::keeper::{Keeper, KeeperEvent, KeeperParts, StartError};
use crate::observer::{Happening, ProcessKind, Successor};
use crate::tally::{Deaths, Histogram};
use crate::window_check;
use crate::windows::Windows;

type Started = Result<Arc<FunctionShared>, Arc<Death>>;

/// How it came about that another process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// In the place of one that died.
    Replaced(Successor),
    /// In the place of one of another program, which gave way.
    Upgraded,
    /// The device was away.
    Returned,
}

/// Why a process was not replaced.
pub(super) enum Failed {
    /// The function is stopped.
    Stopped,
    /// The connection process is another, or none: that comes first.
    Lost,
    /// Not this time.
    Death(Arc<Death>),
    /// And never will be.
    GivenUp(Arc<Death>),
}

/// The thread's state.
pub(super) struct FunctionKeeper {
    pub(super) shared: Arc<FunctionShared>,
    pub(super) keeper: Keeper<FunctionProtocol>,
    /// By which number the function is claimed: see [`Link::Up`].
    generation: u64,
    /// What the first process found that served the function since it was claimed.
    pub(super) known: Known,
    /// How its processes are started.
    pub(super) spec: Spec,
    /// The process of another program that is to take over.
    pub(super) preparing: Option<Preparing>,
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
    let signaller = || link.as_ref().ok().and_then(|link| link.signaller().ok());
    let (watcher, ordered) = (signaller(), signaller());
    let keeper =
        link.and_then(|link| Keeper::<FunctionProtocol>::new(parts.spec.clone(), link, keeper));
    let (Ok(keeper), Some(watcher), Some(ordered)) = (keeper, watcher, ordered) else {
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
    let Parts { address, mut spec, recovery, connection, container, claimed, kept: left, name: _ } =
        parts;
    // What the host had set, which a guest may lower before this process is replaced.
    let size = ready.max_read_request;
    spec.arguments.extend(size.map(|size| format!("--max-read-request={size}").into()));
    let known = ready.known.clone();
    let generation = connection.watch(address, watcher);
    let state = Serving {
        machine: Machine::new(&recovery),
        process: Arc::clone(&kept.child),
        generation: 0,
        returns: 0,
        upgrades: 0,
        recoveries: VecDeque::new(),
        took: Histogram::default(),
        deaths: Deaths::default(),
    };
    let current = ArcSwapOption::from(state.current().map(Arc::new));
    let shared = Arc::new(FunctionShared {
        address,
        spec: spec.clone(),
        recovery,
        connection,
        container,
        windows: Windows::new(claimed.windows),
        guard: ConfigGuard::new(&ready.known.config),
        caught_up: left.then(Mutex::default),
        ready,
        state: Mutex::new(state),
        current,
        changed: Condvar::new(),
        journal: Mutex::default(),
        accesses: AccessMeter::new(),
        batches: AtomicU64::new(0),
        to_abandon: Mutex::new(None),
        standby: keeper.standby_flag(),
        died,
        news,
        orders: Mutex::default(),
        ordered,
    });
    if left {
        shared.find_decoding();
    }
    let preparing = None;
    let mut function = FunctionKeeper { shared, keeper, generation, known, spec, preparing };
    function.keeper.keep(kept);
    if started.send(Ok(Arc::clone(&function.shared))).is_ok() {
        function.run();
    }
    function.keeper.drop_standby();
    function.drop_candidate(&UpgradeError::Stopped);
    function.keeper.end();
    function.spec.handed.iter().for_each(Handed::clear);
    function.shared.orders.lock().close();
    function.shared.died.signal();
}

/// Whether both processes speak of the same function, and where one says that the MSI-X structures are
/// the other offers no windows.
fn agree(ready: &Ready, claimed: &Claimed) -> Result<(), String> {
    let (found, there) = (ready.identity, claimed.identity);
    if found != there {
        return Err(format!("it found {found:?}, the connection process {there:?}"));
    }
    let mut of_both = ready.known.bars.iter().zip(&claimed.bars).enumerate();
    if let Some((bar, (found, there))) = of_both.find(|(_, (found, there))| found != there) {
        return Err(format!("it found BAR {bar} as {found:?}, the connection process {there:?}"));
    }
    window_check::check_claimed(&claimed.windows, &ready.known.bars, ready.msix.as_ref())
        .map_err(|error| format!("the connection process offers what no guest may have: {error}"))
}

/// Adds a time, and forgets the oldest where there are too many.
fn remember(times: &mut VecDeque<Duration>, time: Duration) {
    if times.len() == MAX_REMEMBERED {
        times.pop_front();
    }
    times.push_back(time);
}

impl FunctionKeeper {
    fn run(&mut self) {
        self.stand_by();
        loop {
            let event = match self.keeper.wait() {
                KeeperEvent::Stop => return,
                KeeperEvent::Died(death) => self.after_death(death),
                KeeperEvent::Candidate(ready) => {
                    self.after_candidate(ready);
                    None
                }
                KeeperEvent::News => {
                    if self.obey().is_err() {
                        return;
                    }
                    self.after_news()
                }
            };
            if self.follow(event, Instant::now()).is_err() {
                return;
            }
        }
    }

    /// Decides and carries out, until nothing follows. An error: the function is stopped.
    pub(super) fn follow(
        &mut self,
        mut event: Option<FunctionEvent>,
        noticed: Instant,
    ) -> Result<(), ()> {
        while let Some(now) = event.take() {
            event = self.on(now, noticed)?;
        }
        Ok(())
    }

    /// A process that comes after the first one.
    pub(super) fn successor(&self, spec: &Spec) -> Spec {
        // The death of one that does not serve yet is expected, so it is logged at debug level.
        let mut spec = Spec { expendable: true, ..spec.clone() };
        spec.arguments.push(format!("--known={}", self.known.to_hex()).into());
        spec
    }

    /// A process that comes after the first one, and waits until it is to take over.
    pub(super) fn standby(&self, spec: &Spec) -> Spec {
        let mut spec = self.successor(spec);
        spec.arguments.push("--standby".into());
        spec
    }

    /// Keeps a standby from here on, if one is wanted.
    pub(super) fn stand_by(&mut self) {
        if self.shared.recovery.standby {
            self.keeper.stand_by(self.standby(&self.spec));
        }
    }

    /// The process died; of its connection process's death, if that is why, is told first.
    fn after_death(&mut self, death: Arc<Death>) -> Option<FunctionEvent> {
        self.shared.state.lock().deaths.add(&death);
        match self.shared.connection.link() {
            Link::Up(now, _) | Link::Adopting(now, _) if now == self.generation => {
                self.tell_died(&death);
                Some(FunctionEvent::Died(Instant::now(), death))
            }
            _ => {
                self.tell_died(&death);
                self.after_news()
            }
        }
    }

    pub(super) fn tell_died(&self, death: &Arc<Death>) {
        let (kind, death) = (ProcessKind::Function, Arc::clone(death));
        self.spec.tell(|address| {
            let generation = self.shared.state.lock().generation;
            let sandbox = self.shared.ready.sandbox.clone();
            Happening::Died { address, kind, death, generation, sandbox }
        });
    }

    /// The connection process died, was succeeded or is back.
    fn after_news(&mut self) -> Option<FunctionEvent> {
        match self.shared.connection.link() {
            Link::Gone(death) => Some(FunctionEvent::GivenUp(death)),
            Link::Away(death) => Some(FunctionEvent::Lost(death)),
            Link::Up(now, before) if now != self.generation => {
                let _ = self.on(FunctionEvent::Lost(before), Instant::now());
                self.generation = now;
                Some(FunctionEvent::Back)
            }
            Link::Up(..) => {
                let state = self.shared.state.lock();
                let is_adopted = matches!(state.machine.state(), FunctionState::Adopting);
                is_adopted.then_some(FunctionEvent::Adopted)
            }
            Link::Adopting(now, _) if now == self.generation => Some(FunctionEvent::Orphaned),
            // Claimed through one that is lost. It comes back through the next that serves.
            Link::Adopting(_, death) => Some(FunctionEvent::Lost(death)),
        }
    }

    /// Decides and carries out; what that leads to. An error: the function is stopped.
    fn on(&mut self, event: FunctionEvent, noticed: Instant) -> Result<Option<FunctionEvent>, ()> {
        let is_death = matches!(event, FunctionEvent::Died(..));
        let (action, now) = self.shared.change(|state| {
            let action = state.machine.on(event);
            (action, state.machine.state().clone())
        });
        let replaced = match action {
            Action::Nothing => return Ok(None),
            Action::Withdraw => {
                if let FunctionState::Away(death) = now {
                    tracing::warn!("{}: away: {death}", self.shared.spec.subject);
                    self.spec.tell(|address| Happening::Away { address, death });
                }
                self.shared.container.lose(self.shared.address, &self.shared.connection);
                self.withdraw();
                return Ok(None);
            }
            Action::GiveUp => {
                if let FunctionState::Dead(death) = now {
                    tracing::warn!("{}: given up: {death}", self.shared.spec.subject);
                    if is_death {
                        self.spec.tell_crash_loop(ProcessKind::Function, &death);
                    }
                    self.spec.tell(|address| Happening::GivenUp { address, death });
                }
                self.withdraw();
                self.shared.died.signal();
                return Ok(None);
            }
            // Only an order leads there, which carries it out itself.
            Action::HandOver => return Ok(None),
            Action::Replace => self.replace(),
            Action::Return => self.come_back().map(|kept| (kept, How::Returned)),
        };
        self.settle(replaced, noticed)
    }

    /// Has another process serve, or says what the lack of one leads to. An error: the function is stopped.
    pub(super) fn settle(
        &mut self,
        replaced: Result<(Kept<FunctionProtocol>, How), Failed>,
        noticed: Instant,
    ) -> Result<Option<FunctionEvent>, ()> {
        match replaced {
            Ok((kept, how)) => {
                self.serve(kept, how, noticed);
                Ok(None)
            }
            Err(Failed::Stopped) => Err(()),
            Err(Failed::Lost) => Ok(Some(match self.shared.connection.link() {
                Link::Gone(death) => FunctionEvent::GivenUp(death),
                Link::Away(death) | Link::Adopting(_, death) | Link::Up(_, death) => {
                    FunctionEvent::Lost(death)
                }
            })),
            Err(Failed::Death(death)) => Ok(Some(FunctionEvent::NotReplaced(death))),
            Err(Failed::GivenUp(death)) => Ok(Some(FunctionEvent::GivenUp(death))),
        }
    }

    /// Another process serves from here on.
    pub(super) fn serve(&mut self, kept: Kept<FunctionProtocol>, how: How, noticed: Instant) {
        let process = Arc::clone(&kept.child);
        let pid = process.pid();
        self.keeper.keep(kept);
        let (count, took) = self.shared.change(|state| {
            state.process = process;
            state.machine.on(FunctionEvent::Replaced);
            let took = noticed.elapsed();
            let count = match how {
                How::Returned => &mut state.returns,
                How::Upgraded => &mut state.upgrades,
                How::Replaced(_) => &mut state.generation,
            };
            *count += 1;
            let count = *count;
            if let How::Replaced(_) = how {
                remember(&mut state.recoveries, took);
                state.took.add(took);
            }
            (count, took)
        });
        self.spec.tell(|address| match how {
            How::Returned => Happening::Back { address, pid, returns: count, took },
            How::Upgraded => Happening::Upgraded { address, pid, upgrades: count, took },
            How::Replaced(by) => Happening::Recovered { address, pid, generation: count, took, by },
        });
        if how == How::Returned {
            self.stand_by();
        }
        self.keeper.warm(Duration::ZERO);
    }

    /// All ones under the windows; whoever serves and whoever waits ends.
    fn withdraw(&mut self) {
        self.shared.windows.withdraw();
        self.keeper.end();
        self.keeper.drop_standby();
        self.drop_candidate(&UpgradeError::NotServed);
        self.spec.handed.iter().for_each(Handed::clear);
    }

    /// Whether the function is still claimed through the connection process that it was claimed
    /// through.
    pub(super) fn is_linked(&self) -> bool {
        let link = self.shared.connection.link();
        matches!(link, Link::Up(now, _) | Link::Adopting(now, _) if now == self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_replacement_is_forgotten_when_there_are_too_many() {
        let mut times = VecDeque::new();
        for number in 0..=MAX_REMEMBERED as u64 {
            remember(&mut times, Duration::from_millis(number));
        }
        assert_eq!(times.len(), MAX_REMEMBERED);
        let ends = [times.front(), times.back()].map(|one| one.unwrap().as_millis());
        assert_eq!(ends, [1, MAX_REMEMBERED as u128]);
    }
}
