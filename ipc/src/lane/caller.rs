//! The calling side of a lane: several threads, each in a slot of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::protocol::{SLOTS, WORDS, calling};
use crate::event::{Event, Signaller};
use crate::poll::{self, Source};
use crate::spin::{self, Spin};
use crate::wire::common::Failure;
use crate::wire::function::Access;
use crate::{Deadline, SharedMemory, Window, window};

/// How long a caller looks for its answer before it sleeps, at most: longer than it takes to wake a process on a
/// machine that is itself virtual (some 40 us), or two sides that sleep would never find each other awake.
const LONGEST_LOOK: Duration = Duration::from_micros(100);

/// How long a caller waits for its turn to look, before it asks without and sleeps.
const PATIENCE: Duration = Duration::from_micros(100);

/// All slots are free.
const ALL: u32 = (1 << SLOTS) - 1;

/// Why there is no outcome.
#[derive(Debug)]
pub enum LaneError {
    /// Every slot is taken: nothing was sent.
    Full,
    /// The server is dead.
    Dead {
        /// Whether it may have been at this request: it did not say that it was at another.
        begun: bool,
    },
    /// The deadline passed. The slot is out of use until the answer comes.
    TimedOut {
        /// Whether the server may be at this request: it does not say that it is at another.
        begun: bool,
    },
    /// What was answered makes no sense.
    Nonsense,
    /// The wait failed.
    Wait(io::Error),
}

/// A lane that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MadeError {
    /// No memory or descriptors are left.
    #[error("No memory or descriptors for a lane")]
    System(#[source] io::Error),
    /// The memory cannot be mapped.
    #[error("The memory of a lane cannot be mapped")]
    Map(#[from] window::WindowError),
}

/// What the server is handed, in the order in which [`Server::join`](super::Server::join) takes it:
/// the memory, what it waits on, what wakes the caller of each slot.
pub struct LaneHandles {
    memory: SharedMemory,
    server: Event,
    callers: Vec<Signaller>,
}

impl LaneHandles {
    /// As they travel beside a message.
    #[must_use]
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        let mut handles = vec![self.memory.as_fd(), self.server.as_fd()];
        handles.extend(self.callers.iter().map(AsFd::as_fd));
        handles
    }
}

/// See the module.
#[derive(Debug)]
pub struct Caller {
    window: Window,
    /// Wakes the server.
    wake: Signaller,
    slots: [Slot; SLOTS],
    /// A bit for each slot that nobody uses.
    free: AtomicU32,
    /// Requests whose callers gave up, and when the server is overdue with each.
    abandoned: Mutex<Vec<Abandoned>>,
    spin: Spin,
}

#[derive(Debug)]
struct Slot {
    /// Wakes its caller.
    event: Event,
    /// Of the last request in it.
    number: AtomicU64,
}

#[derive(Debug)]
struct Abandoned {
    at: usize,
    number: u64,
    overdue: Instant,
}

/// A wait for one answer.
pub struct Wait<'w> {
    /// Readable once the server is dead.
    pub died: BorrowedFd<'w>,
    /// Until when the caller waits.
    pub until: Deadline,
    /// When the server is overdue, if the caller gives up before.
    pub overdue: Instant,
}

impl Caller {
    /// A new lane, and what the server is to be handed.
    ///
    /// # Errors
    /// [`MadeError`].
    pub fn new() -> Result<(Self, LaneHandles), MadeError> {
        let memory =
            SharedMemory::create("cordon-lane", super::BYTES).map_err(MadeError::System)?;
        let window = memory.map_all(window::Access::ReadWrite)?;
        // The server sleeps until it has come.
        super::protocol::serving::will_sleep(window.words(0, WORDS)?);
        let server = Event::new().map_err(MadeError::System)?;
        let wake = server.signaller().map_err(MadeError::System)?;
        let slot = |_| Ok(Slot { event: Event::new()?, number: AtomicU64::new(0) });
        let slots: Vec<Slot> =
            (0..SLOTS).map(slot).collect::<io::Result<_>>().map_err(MadeError::System)?;
        let callers = slots.iter().map(|slot| slot.event.signaller()).collect::<io::Result<_>>();
        let handles = LaneHandles { memory, server, callers: callers.map_err(MadeError::System)? };
        let slots = <[Slot; SLOTS]>::try_from(slots)
            .map_err(|_| MadeError::System(io::ErrorKind::InvalidData.into()))?;
        let caller = Self {
            window,
            wake,
            slots,
            free: AtomicU32::new(ALL),
            abandoned: Mutex::default(),
            spin: Spin::new(if spin::has_processors_for(2) {
                LONGEST_LOOK
            } else {
                Duration::ZERO
            }),
        };
        Ok((caller, handles))
    }

    /// Has `access` carried out. `published` runs once the server can see it; `is_dead` is looked at
    /// all the time; `wait` is asked for when the answer does not come at once.
    ///
    /// # Errors
    /// [`LaneError`].
    pub fn call<'w>(
        &self,
        access: &Access,
        published: impl FnOnce(),
        is_dead: impl Fn() -> bool,
        wait: impl FnOnce() -> Wait<'w>,
    ) -> Result<Result<u64, Failure>, LaneError> {
        let words = self.words()?;
        let spinner = Spinner::enter();
        let at = self.take().ok_or(LaneError::Full)?;
        let slot = &self.slots[at];
        // Only whoever has the slot counts here.
        let number = slot.number.load(Ordering::Relaxed) + 1;
        slot.number.store(number, Ordering::Relaxed);
        if calling::publish(words, at, number, access) {
            self.wake.signal();
        }
        published();
        let is_answered = || calling::is_answered(words, at, number);
        let found = spinner.is_some_and(|_spinner| self.spin.look(|| is_answered() || is_dead()));
        if !found || !is_answered() {
            let wait = wait();
            match self.sleep(words, at, is_answered, is_dead, &wait) {
                Ok(()) => {}
                // The server will serve nobody any more; the slot stays taken.
                Err(error @ LaneError::Dead { .. }) => return Err(error),
                Err(error) => {
                    self.abandoned().push(Abandoned { at, number, overdue: wait.overdue });
                    return Err(error);
                }
            }
        }
        let outcome = calling::outcome(words, at);
        self.free.fetch_or(1 << at, Ordering::Release);
        outcome.ok_or(LaneError::Nonsense)
    }

    /// Whether the server is overdue with an answer that its caller no longer waits for. Slots whose
    /// answers came are put to use again.
    pub fn is_overdue(&self) -> bool {
        self.reclaim();
        let now = Instant::now();
        self.abandoned().iter().any(|one| one.overdue <= now)
    }

    fn words(&self) -> Result<&[AtomicU64], LaneError> {
        let failed = |error| LaneError::Wait(io::Error::other(error));
        self.window.words(0, WORDS).map_err(failed)
    }

    /// A slot that nobody uses.
    fn take(&self) -> Option<usize> {
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            if free == 0 {
                self.reclaim();
                free = self.free.load(Ordering::Relaxed);
            }
            let at = free.trailing_zeros();
            if free == 0 {
                return None;
            }
            let taken = free & !(1 << at);
            match self.free.compare_exchange_weak(free, taken, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return usize::try_from(at).ok(),
                Err(now) => free = now,
            }
        }
    }

    fn reclaim(&self) {
        let Ok(words) = self.words() else { return };
        self.abandoned().retain(|one| {
            let answered = calling::is_answered(words, one.at, one.number);
            if answered {
                self.free.fetch_or(1 << one.at, Ordering::Release);
            }
            !answered
        });
    }

    fn abandoned(&self) -> std::sync::MutexGuard<'_, Vec<Abandoned>> {
        self.abandoned.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn sleep(
        &self,
        words: &[AtomicU64],
        at: usize,
        is_answered: impl Fn() -> bool,
        is_dead: impl Fn() -> bool,
        wait: &Wait<'_>,
    ) -> Result<(), LaneError> {
        let event = &self.slots[at].event;
        let begun = || calling::may_be_begun(words, at);
        let outcome = loop {
            calling::will_sleep(words, at);
            if is_answered() {
                break Ok(());
            }
            if is_dead() {
                break Err(LaneError::Dead { begun: begun() });
            }
            let sources = [Source::readable(event, ()), Source::readable_fd(wait.died, ())];
            match poll::wait(&sources, Some(wait.until)) {
                // One that was answered at the last moment was answered; one that is only woken, however
                // often, is late all the same.
                Ok(_) if wait.until.passed() && !is_answered() => {
                    break Err(LaneError::TimedOut { begun: begun() });
                }
                Ok(_) => {}
                Err(error) => break Err(LaneError::Wait(error)),
            }
            if let Err(error) = event.clear() {
                break Err(LaneError::Wait(error));
            }
            if !is_answered() && poll::wait_readable(&wait.died, Deadline::now()).unwrap_or(true) {
                break if is_answered() { Ok(()) } else { Err(LaneError::Dead { begun: begun() }) };
            }
        };
        calling::woke(words, at);
        outcome
    }
}

/// Threads of this process that may look for an answer.
static SPINNING: AtomicUsize = AtomicUsize::new(0);

/// One of them.
struct Spinner;

impl Spinner {
    /// Takes a turn. While others have all of them, gives its processor to whoever has work, for at most
    /// [`PATIENCE`]: an answer takes a fraction of a microsecond to come, and a caller that slept instead would
    /// cost two wake-ups, which is a hundred times as much.
    fn enter() -> Option<Self> {
        let most = spin::most_lookers();
        let mut began = None;
        loop {
            if SPINNING.load(Ordering::Relaxed) < most {
                if SPINNING.fetch_add(1, Ordering::Relaxed) < most {
                    return Some(Self);
                }
                SPINNING.fetch_sub(1, Ordering::Relaxed);
            }
            if most == 0 || began.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                return None;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        SPINNING.fetch_sub(1, Ordering::Relaxed);
    }
}
