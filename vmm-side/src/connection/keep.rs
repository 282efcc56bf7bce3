//! The connection process, kept: replaced when it dies or when its dext did.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::{Deadline, Event, PciAddress};
use parking_lot::{Condvar, Mutex};

use super::{ConnectionProgram, ConnectionShared, ConnectionState, Link, Programs, adopt, left};
use crate::child::start::Kept;
use crate::child::{Cause, ConnectionProtocol, Death, Spec};
use crate::keeper::{Keeper, KeeperEvent, KeeperParts, ReadyChild, StartError};
use crate::kept::KeptGroup;
use crate::observer::{Happening, Limit, ProcessKind};
use crate::recovery::{Backoff, Deaths, Recovery};

type Started = Result<Arc<ConnectionShared>, Arc<Death>>;

/// Starts the process, tells how that went, and keeps it until it is told to stop.
pub(super) fn run(
    (spec, left): (Spec, &Mutex<Option<KeptGroup>>),
    recovery: Recovery,
    own: Option<OsString>,
    died: Signaller,
    parts: KeeperParts,
    started: &SyncSender<Started>,
) {
    let failed = |error: std::io::Error| {
        Arc::new(Death::of_connection(&spec.subject, Cause::no_room(error)))
    };
    let keeper = Event::new().and_then(|news| Keeper::new(spec.clone(), news, parts));
    let mut keeper = match keeper {
        Ok(keeper) => keeper,
        Err(error) => return drop(started.send(Err(failed(error)))),
    };
    let mut left = left.lock();
    let begun = match left.as_ref() {
        None => keeper.start().map(|ready| (ready, None)),
        Some(group) => left::start(&keeper, &spec, group, recovery.timeout)
            .map(|(ready, taken)| (ready, Some(taken))),
    };
    let ((kept, ready), taken) = match begun {
        Ok(begun) => begun,
        Err(StartError::Died(death)) => return drop(started.send(Err(death))),
        Err(StartError::Stopped) => return,
    };
    let nobody = Arc::new(Death::of_connection(&spec.subject, Cause::Stopped));
    let link = Link::Up(0, nobody);
    let mut state = ConnectionState::new(Arc::clone(&kept.child), spec.address, ready, link);
    state.keeping = spec.store.as_ref().zip(spec.address).map(|(store, of)| store.keeping(of));
    if let Some((taken, group)) = taken.zip(left.take()) {
        state.take_over(taken, group);
    }
    drop(left);
    let now = ConnectionProgram { program: spec.program.clone(), before: spec.before.clone() };
    let programs = Mutex::new(Programs { now, next: None });
    let state = Mutex::new(state);
    let changed = Condvar::new();
    let shared = Arc::new(ConnectionShared { spec, programs, recovery, own, state, changed, died });
    keeper.keep(relied_on(kept));
    if started.send(Ok(Arc::clone(&shared))).is_ok() {
        keep(&shared, &mut keeper);
    }
    if let Some(death) = keeper.end() {
        shared.lose(Link::Gone(death));
    }
    shared.died.signal();
}

fn keep(shared: &ConnectionShared, keeper: &mut Keeper<ConnectionProtocol>) {
    let mut deaths = Deaths::new(&shared.recovery);
    let mut adoptions = adopt::bound(&shared.recovery);
    loop {
        let death = match keeper.wait() {
            KeeperEvent::Stop => return,
            KeeperEvent::News | KeeperEvent::Candidate(_) => continue,
            KeeperEvent::Died(death) => death,
        };
        let (noticed, kind) = (Instant::now(), ProcessKind::Connection);
        let died = Arc::clone(&death);
        if death.is_requested() {
            shared.is_wanted_back(&death);
        }
        shared.spec.tell(|address| {
            let state = shared.state.lock();
            let (generation, sandbox) = (state.generation, state.sandbox.clone());
            Happening::Died { address, kind, death: died, generation, sandbox }
        });
        shared.state.lock().deaths.add(&death);
        let replaced = match deaths.on(noticed, &death) {
            Ok(()) => {
                if adopt::begin(shared, &death, noticed, &mut adoptions) {
                    match adopted(shared, keeper, &death, noticed) {
                        Ok(true) => continue,
                        Ok(false) => {
                            shared.lose(Link::Gone(death));
                            return;
                        }
                        Err(why) => {
                            // That too may be why.
                            let escrow = shared.state.lock().escrow.clone();
                            if escrow.is_some_and(|escrow| escrow.is_requested()) {
                                shared.is_wanted_back(&why);
                            }
                            tracing::warn!("{}: not adopted: {why}", shared.spec.subject);
                        }
                    }
                }
                shared.lose(Link::Away(Arc::clone(&death)));
                replace(shared, keeper)
            }
            Err(death) => {
                shared.spec.tell_crash_loop(kind, &death);
                Err(death)
            }
        };
        match replaced {
            Ok(Some((kept, ready))) => {
                let process = Arc::clone(&kept.child);
                let pid = process.pid();
                keeper.keep(kept);
                let generation = shared.change(|state| {
                    let claims = state.generation + 1;
                    let link = Link::Up(claims, death);
                    state.succeed(ConnectionState::new(process, shared.spec.address, ready, link));
                    state.claims = claims;
                    state.generation
                });
                let took = noticed.elapsed();
                shared.spec.tell(|address| Happening::Reconnected {
                    address,
                    pid,
                    generation,
                    took,
                });
            }
            Ok(None) => {
                shared.lose(Link::Gone(death));
                return;
            }
            Err(death) => {
                shared.lose(Link::Gone(death));
                shared.died.signal();
            }
        }
    }
}

impl ConnectionShared {
    /// The kernel wants a function back: what was handed of its group is closed, and that is told.
    pub(super) fn is_wanted_back(&self, death: &Arc<Death>) {
        if let Some(group) = &self.spec.group {
            group.give_back();
        }
        let death = Arc::clone(death);
        self.spec.tell(|address| Happening::Requested { address, death });
    }
}

/// Has what the process left adopted, and says so; `false` when that is not wanted any more.
fn adopted(
    shared: &ConnectionShared,
    keeper: &mut Keeper<ConnectionProtocol>,
    death: &Arc<Death>,
    noticed: Instant,
) -> Result<bool, Arc<Death>> {
    let Some(((kept, ready), told)) = adopt::adopt(shared, keeper)? else { return Ok(false) };
    let process = Arc::clone(&kept.child);
    let pid = process.pid();
    let generation = shared.change(|state| {
        // Given back meanwhile.
        let escrow = state.escrow.take()?;
        let (claims, accounts) = (state.claims, std::mem::take(&mut state.accounts));
        let link = Link::Up(claims, Arc::clone(death));
        state.succeed(ConnectionState::new(process, shared.spec.address, ready, link));
        (state.claims, state.escrow, state.accounts) = (claims, Some(escrow), accounts);
        state.adoptions += 1;
        state.was_told(&told, state.generation);
        Some(state.generation)
    });
    let Some(generation) = generation else {
        return Err(kept.end(Cause::Broken(GIVEN_BACK.to_owned())));
    };
    keeper.keep(relied_on(kept));
    let took = noticed.elapsed();
    tracing::info!("{}: adopted by process {pid} after {took:?}", shared.spec.subject);
    shared.spec.tell(|address| Happening::Adopted { address, pid, generation, took });
    Ok(true)
}

/// Why a successor ends that has adopted what nobody has any more.
const GIVEN_BACK: &str = "what it adopted was given back meanwhile";

fn relied_on(mut kept: Kept<ConnectionProtocol>) -> Kept<ConnectionProtocol> {
    kept.is_relied_on();
    kept
}

/// Programs of a next process. One of another program may not start, and then the former one does: they take turns,
/// since it may also be the dext that is not there yet.
pub(super) struct Turns {
    programs: Vec<ConnectionProgram>,
    at: usize,
}

impl Turns {
    pub(super) fn new(shared: &ConnectionShared) -> Self {
        let programs = shared.programs.lock();
        let all = programs.next.iter().chain([&programs.now]).cloned().collect();
        Self { programs: all, at: 0 }
    }

    pub(super) fn next(&mut self) -> ConnectionProgram {
        let program = self.programs[self.at % self.programs.len()].clone();
        self.at += 1;
        program
    }
}

/// Another process that has every function that is attached; `None` when it is not wanted any
/// more. The dext may be gone for a while as well.
fn replace(
    shared: &ConnectionShared,
    keeper: &Keeper<ConnectionProtocol>,
) -> Result<Option<ReadyChild<ConnectionProtocol>>, Arc<Death>> {
    let deadline = Deadline::after(shared.recovery.away);
    let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(200));
    let mut turns = Turns::new(shared);
    loop {
        let program = turns.next();
        // Each attempt that fails is no news.
        let spec = Spec { expendable: true, ..program.of(&shared.spec) };
        let death = match keeper.start_as(&spec) {
            Ok((kept, ready)) => {
                let has = |function: &PciAddress| {
                    ready.functions.iter().any(|one| one.address == *function)
                };
                if shared.state.lock().attached.iter().all(has) {
                    shared.runs(program);
                    return Ok(Some((kept, ready)));
                }
                let why = "not all of its functions are there any more".to_owned();
                let death = keeper.end_in_order(kept);
                Arc::new(Death { cause: Cause::StartFailed(why), ..(*death).clone() })
            }
            Err(StartError::Died(death)) => death,
            Err(StartError::Stopped) => return Ok(None),
        };
        if deadline.passed() {
            let (kind, limit) = (ProcessKind::Connection, Limit::Away(shared.recovery.away));
            shared.spec.tell(|address| Happening::LimitReached { address, kind, limit });
            return Err(death);
        }
        if !keeper.pause(backoff.pause()) {
            return Ok(None);
        }
    }
}
