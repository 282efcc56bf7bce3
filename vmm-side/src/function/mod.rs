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
//! A function process that works gives way to one of another program in the same way, when that is ready:
//! see `upgrade`.
//!
//! The death of a connection process, or of the dext, is a surprise removal: all ones under the
//! windows and in every read, until the [`Connection`] has another process. Then the function is
//! claimed, reset and given its memory, a function process is started, the journal is replayed.
//!
//! Where the backend has devices go on without their connection process, another one adopts what it left
//! (`connection`): `Serving ──▶ Adopting ──▶ Serving`, and the function process serves throughout. Only where that
//! cannot be done, or not in time, the function is lost.
//!
//! What comes next is decided in `machine`, without I/O.

mod accesses;
mod calls;
mod companion;
mod device;
mod guard;
mod journal;
mod keep;
mod machine;
mod replace;
mod upgrade;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::wire::function::{GetStatistics, InterruptIndex, Ready, Statistics};
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, Event, PciAddress};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::child::{Cause, Child, Death, FunctionProtocol, Spec};
use crate::connection::{Claimed, Connection};
use crate::container::Container;
use crate::device::DeviceInfo;
use arc_swap::ArcSwapOption;

use crate::error::DeviceError;
use crate::keeper::KeeperThread;
use crate::limits::MAX_REMEMBERED;
use crate::recovery::Recovery;
use crate::tally::{Accesses, Deaths, Histogram};
use crate::windows::Windows;
use accesses::AccessMeter;
use guard::ConfigGuard;
use journal::Journal;
use machine::{FunctionState, Machine};
use upgrade::Orders;
pub(crate) use upgrade::{Program, told};
pub use upgrade::{UpgradeError, Upgraded};

type Process = Child<FunctionProtocol>;

/// What a function is attached with.
pub(crate) struct Parts {
    pub(crate) address: PciAddress,
    pub(crate) spec: Spec,
    pub(crate) recovery: Recovery,
    pub(crate) connection: Arc<Connection>,
    pub(crate) container: Arc<Container>,
    pub(crate) claimed: Claimed,
    /// A VMM left it that is dead, and it goes on as it is.
    pub(crate) kept: bool,
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
    guard: ConfigGuard,
    ready: Ready,
    state: Mutex<Serving>,
    /// What callers look at first: who serves the function, and nobody while `state` says that nobody
    /// does. Written with `state` only.
    current: ArcSwapOption<Current>,
    changed: Condvar,
    journal: Mutex<Journal>,
    /// Vectors that were signalled once since they were set up, of a function that went on while nobody was there
    /// to be woken.
    caught_up: Option<Mutex<HashSet<(InterruptIndex, u16)>>>,
    accesses: AccessMeter,
    /// Doorbells rung so far.
    batches: AtomicU64,
    /// The companion's last batch, if its guest was told that it failed and the connection process does
    /// not know yet.
    to_abandon: Mutex<Option<u64>>,
    /// Whether a standby waits.
    standby: Arc<AtomicBool>,
    died: Signaller,
    news: Signaller,
    /// What the function's thread is to do, and how it is told that there is something.
    orders: Mutex<Orders>,
    ordered: Signaller,
}

/// Who serves a function.
struct Current {
    process: Arc<Process>,
    /// Counts the processes that have served.
    served: u64,
}

struct Serving {
    machine: Machine,
    process: Arc<Process>,
    generation: u64,
    returns: u64,
    /// Times that its process gave way to one of another program.
    upgrades: u64,
    /// Of the last [`MAX_REMEMBERED`] replacements.
    recoveries: VecDeque<Duration>,
    /// Of all replacements.
    took: Histogram,
    /// Of its processes that served.
    deaths: Deaths,
}

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

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.info.name)
            .field("address", &self.shared.address)
            .finish_non_exhaustive()
    }
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
        let launch = Arc::clone(&parts.spec.launch);
        let thread = KeeperThread::spawn(format!("function {subject}"), launch, move |keeper| {
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
            bars: ready.known.bars,
            msix: ready.msix,
            resettable: is_resettable(&ready.identity).is_ok(),
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

    /// Whether an instance of the VMM before this one left it, and it goes on as that had it
    /// ([`kept`](crate::kept)): it was not reset, and its driver need not set it up.
    #[must_use]
    pub fn was_kept(&self) -> bool {
        self.shared.caught_up.is_some()
    }

    /// Where it is.
    #[must_use]
    pub fn presence(&self) -> Presence {
        match self.shared.state.lock().machine.state() {
            FunctionState::Serving | FunctionState::Adopting | FunctionState::Recovering => {
                Presence::Present
            }
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

    /// How often its function process gave way to one of another program
    /// ([`Host::upgrade`](crate::Host::upgrade)).
    #[must_use]
    pub fn upgrades(&self) -> u64 {
        self.shared.state.lock().upgrades
    }

    /// How long the last replacements of its function process took, from noticing the death to
    /// serving again; at most 4096 of them.
    #[must_use]
    pub fn recoveries(&self) -> Vec<Duration> {
        self.shared.state.lock().recoveries.iter().copied().collect()
    }

    /// How long all replacements of its function process took, as [`Function::recoveries`].
    #[must_use]
    pub fn recovery_times(&self) -> Histogram {
        self.shared.state.lock().took
    }

    /// How many accesses its processes were asked for, and how long they took.
    #[must_use]
    pub fn accesses(&self) -> Accesses {
        self.shared.accesses.accesses()
    }

    /// Why function processes that served it died.
    #[must_use]
    pub fn deaths(&self) -> Deaths {
        self.shared.state.lock().deaths
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
    /// not replaced, and windows that are still mapped read all ones. Takes at most about half a second.
    pub(crate) fn stop(&self) {
        self.shared.connection.unwatch(self.shared.address);
        let death = Death::of_function(&self.shared.spec.subject, Cause::Stopped);
        self.shared.change(|state| {
            let given_up = machine::FunctionEvent::GivenUp(Arc::new(death));
            state.machine.on(given_up);
        });
        self.thread.stop();
        // Whoever has the device next shares nothing with who had it.
        self.shared.windows.end();
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
        let mut state = self.state.lock();
        let changed = change(&mut state);
        self.current.store(state.current().map(Arc::new));
        drop(state);
        self.changed.notify_all();
        self.news.signal();
        changed
    }

    fn is_away(&self) -> bool {
        let state = self.state.lock();
        matches!(state.machine.state(), FunctionState::Away(_) | FunctionState::Returning(_))
    }
}

impl Serving {
    /// Who serves the function, if somebody does.
    fn current(&self) -> Option<Current> {
        let state = self.machine.state();
        let serves = matches!(state, FunctionState::Serving | FunctionState::Adopting);
        let served = self.generation + self.returns + self.upgrades;
        serves.then(|| Current { process: Arc::clone(&self.process), served })
    }
}

/// Whether a function survives the reset that a backend has for it (P8).
///
/// # Errors
/// Why it does not.
fn is_resettable(
    identity: &ipc::wire::common::Identity,
) -> Result<(), cordon_pci::reset::ResetRefused> {
    use cordon_pci::reset::{ResetKind, choose};
    choose(identity.vendor, identity.device, &[ResetKind::Function]).map(drop)
}
