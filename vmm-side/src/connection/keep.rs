//! The connection process, kept: replaced when it dies or when its dext did.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::{Deadline, Event};
use parking_lot::Mutex;

use super::{ConnectionShared, ConnectionState, Link};
use crate::child::{Cause, ConnectionProtocol, Death, Spec};
use crate::keeper::{Keeper, KeeperEvent, KeeperParts, ReadyChild, StartError};
use crate::recovery::{Backoff, Deaths, Recovery};

type Started = Result<Arc<ConnectionShared>, Arc<Death>>;

/// Starts the process, tells how that went, and keeps it until it is told to stop.
pub(super) fn run(
    spec: Spec,
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
    let (kept, ready) = match keeper.start() {
        Ok(ready) => ready,
        Err(StartError::Died(death)) => return drop(started.send(Err(death))),
        Err(StartError::Stopped) => return,
    };
    let nobody = Arc::new(Death::of_connection(&spec.subject, Cause::Stopped));
    let state = ConnectionState::new(Arc::clone(&kept.child), ready, Link::Up(0, nobody));
    let shared = Arc::new(ConnectionShared { spec, recovery, own, state: Mutex::new(state), died });
    keeper.keep(kept);
    if started.send(Ok(Arc::clone(&shared))).is_ok() {
        keep(&shared, &mut keeper);
    }
    if let Some(death) = keeper.end() {
        shared.change(|state| state.link = Link::Gone(death));
    }
    shared.died.signal();
}

fn keep(shared: &ConnectionShared, keeper: &mut Keeper<ConnectionProtocol>) {
    let mut deaths = Deaths::new(&shared.recovery);
    loop {
        let death = match keeper.wait() {
            KeeperEvent::Stop => return,
            KeeperEvent::News => continue,
            KeeperEvent::Died(death) => death,
        };
        let replaced = match deaths.on(Instant::now(), &death) {
            Ok(()) => {
                shared.change(|state| state.link = Link::Away(Arc::clone(&death)));
                replace(shared, keeper)
            }
            Err(death) => Err(death),
        };
        match replaced {
            Ok(Some((kept, ready))) => {
                let process = Arc::clone(&kept.child);
                keeper.keep(kept);
                shared.change(|state| {
                    let generation = state.generation + 1;
                    let mut next =
                        ConnectionState::new(process, ready, Link::Up(generation, death));
                    next.generation = generation;
                    next.attached = std::mem::take(&mut state.attached);
                    next.reserved = std::mem::take(&mut state.reserved);
                    next.closed = state.closed;
                    next.watchers = std::mem::take(&mut state.watchers);
                    let ConnectionState { free, attached, reserved, .. } = &mut next;
                    free.retain(|one| !attached.contains(one) && !reserved.contains(one));
                    *state = next;
                });
            }
            Ok(None) => {
                shared.change(|state| state.link = Link::Gone(death));
                return;
            }
            Err(death) => {
                shared.change(|state| state.link = Link::Gone(death));
                shared.died.signal();
            }
        }
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
    // Each attempt that fails is no news.
    let spec = Spec { expendable: true, ..shared.spec.clone() };
    loop {
        let death = match keeper.start_as(&spec) {
            Ok((kept, ready)) => {
                let has = |function: &u8| {
                    ready.functions.iter().any(|one| one.address.function() == *function)
                };
                if shared.state.lock().attached.iter().all(has) {
                    return Ok(Some((kept, ready)));
                }
                let why = "the dext does not have all its functions any more".to_owned();
                let death = keeper.end_in_order(kept);
                Arc::new(Death { cause: Cause::StartFailed(why), ..(*death).clone() })
            }
            Err(StartError::Died(death)) => death,
            Err(StartError::Stopped) => return Ok(None),
        };
        if deadline.passed() {
            return Err(death);
        }
        if !keeper.pause(backoff.pause()) {
            return Ok(None);
        }
    }
}
