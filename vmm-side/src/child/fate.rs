//! What becomes of a child: found to be as good as dead by anybody, reaped by its keeper, told once.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipc::event::Signaller;
use ipc::wire::function::Access;
use ipc::{Deadline, Event, poll};
use parking_lot::Mutex;

use super::fault_hook::Later;
use super::trail::Trail;
use super::{Cause, ClaimedCall, Death, ExitStatus, Process, lane};

/// How long a child whose tube closed may take to end by itself, so that its own exit status is
/// told and not that of our kill.
const GRACE: Duration = Duration::from_millis(200);
/// How often one that is to end is looked at: it may be stopped meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How long a killed process may take to end; one that takes longer is held by the kernel.
const REAP: Duration = Duration::from_secs(2);

/// Shared by everybody who has to do with one child.
pub(crate) struct Fate {
    name: String,
    process: Box<dyn Process>,
    /// Why it is as good as dead, and whether it was suspended then. The first finding counts.
    condemned: OnceLock<(Cause, bool)>,
    death: OnceLock<Arc<Death>>,
    died: Event,
    tell_death: Signaller,
    /// Wakes the keeper.
    wake: Signaller,
    last_request: Mutex<Option<&'static str>>,
    /// The number of an access that came after it; 0 for none.
    last_access: AtomicU8,
    /// Its last line, and the number of the forbidden call that it said it had made.
    last_words: Mutex<(String, Option<u32>)>,
    /// What it was sent, of one that is observed.
    trail: Option<Box<Trail>>,
    /// Faults whose time is yet to come.
    pub(super) later: Mutex<Vec<Later>>,
}

impl Fate {
    pub(super) fn new(
        name: String,
        process: Box<dyn Process>,
        wake: Signaller,
        observed: bool,
    ) -> std::io::Result<Self> {
        let died = Event::new()?;
        Ok(Self {
            name,
            process,
            condemned: OnceLock::new(),
            death: OnceLock::new(),
            tell_death: died.signaller()?,
            died,
            wake,
            last_request: Mutex::new(None),
            last_access: AtomicU8::new(0),
            last_words: Mutex::default(),
            trail: observed.then(|| Box::new(Trail::new())),
            later: Mutex::default(),
        })
    }

    /// "function process of 01:00.0".
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn process(&self) -> &dyn Process {
        &*self.process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether somebody found that it is as good as dead.
    pub(crate) fn is_condemned(&self) -> bool {
        self.condemned.get().is_some()
    }

    /// Finds that it is as good as dead, and ends it if it does not end by itself. The keeper does the
    /// rest.
    pub(crate) fn condemn(&self, cause: Cause) {
        let suspended = matches!(cause, Cause::Overdue(_)) && self.process.is_suspended();
        let by_itself = matches!(cause, Cause::Ended | Cause::Stopped | Cause::StartFailed(_));
        if self.condemned.set((cause, suspended)).is_ok() {
            if !by_itself {
                self.process.kill();
            }
            self.wake.signal();
        }
    }

    /// Wakes the keeper, which looks at what is due.
    pub(super) fn wake(&self) {
        self.wake.signal();
    }

    pub(super) fn note_request(&self, name: &'static str) {
        *self.last_request.lock() = Some(name);
        self.last_access.store(0, Ordering::Relaxed);
        if let Some(trail) = &self.trail {
            trail.request(name);
        }
    }

    /// [`Fate::note_request`] without a lock.
    pub(super) fn note_access(&self, access: &Access) {
        let number = lane::number(access);
        if self.last_access.load(Ordering::Relaxed) != number {
            self.last_access.store(number, Ordering::Relaxed);
        }
        if let Some(trail) = &self.trail {
            trail.access(access);
        }
    }

    pub(super) fn note_last_words(&self, line: &str, forbidden: Option<u32>) {
        *self.last_words.lock() = (line.to_owned(), forbidden);
    }

    /// Whether a signal from outside stopped it: it answers nothing and ends by nothing but a kill.
    pub(crate) fn is_suspended(&self) -> bool {
        self.process.is_suspended()
    }

    /// Waits until it has ended, at most until `deadline` and not for one that is stopped; whether it has.
    pub(crate) fn ends_by(&self, deadline: Deadline) -> bool {
        loop {
            let look = Deadline::after(LOOK).min(deadline);
            if poll::wait_readable(&self.process, look).unwrap_or(false) {
                return true;
            }
            if deadline.passed() || self.is_suspended() {
                return false;
            }
        }
    }

    /// Kills it, whatever it is condemned for.
    pub(crate) fn kill(&self) {
        self.process.kill();
    }

    /// Waits until it has ended by itself, or for as long as it may take to.
    pub(super) fn wait_for_end(&self) {
        let _ = poll::wait_readable(&self.process, Deadline::after(GRACE));
    }

    pub(crate) fn death(&self) -> Option<Arc<Death>> {
        self.death.get().cloned()
    }

    pub(crate) fn died(&self) -> &Event {
        &self.died
    }

    /// The death of a child that is condemned: waits until it was reaped, which takes as long as the
    /// kernel needs.
    pub(crate) fn wait_for_death(&self) -> Arc<Death> {
        let deadline = Deadline::after(GRACE + REAP + Duration::from_secs(1));
        let _ = poll::wait_readable(&self.died, deadline);
        self.death().unwrap_or_else(|| Arc::new(self.describe(ExitStatus::Unknown)))
    }

    /// Ends the process, reaps it and tells its death. Only its keeper does.
    pub(crate) fn reap(&self, expendable: bool) -> Arc<Death> {
        if let Some(death) = self.death() {
            return death;
        }
        let by_itself = matches!(
            self.condemned.get(),
            Some((Cause::Ended | Cause::Stopped | Cause::StartFailed(_), _))
        );
        let grace = if by_itself { GRACE } else { Duration::ZERO };
        if !poll::wait_readable(&self.process, Deadline::after(grace)).unwrap_or(false) {
            self.process.kill();
        }
        let ended = poll::wait_readable(&self.process, Deadline::after(REAP)).unwrap_or(false);
        let exit = if ended { self.process.reap() } else { ExitStatus::Unknown };
        let death = Arc::new(self.describe(exit));
        // Whoever started it is given the death of one that did not start, and tells it.
        if matches!(death.cause, Cause::Stopped | Cause::StartFailed(_)) || expendable {
            tracing::debug!("{death}");
        } else {
            tracing::warn!("{death}");
        }
        let _ = self.death.set(Arc::clone(&death));
        self.tell_death.signal();
        death
    }

    fn describe(&self, exit: ExitStatus) -> Death {
        let (cause, suspended) = self.condemned.get().cloned().unwrap_or((Cause::Ended, false));
        let (last_words, forbidden) = self.last_words.lock().clone();
        // That there was such a call is the kernel's word, or there was none.
        let forbidden = forbidden.filter(|_| exit == ExitStatus::Signal(libc::SIGSYS));
        Death {
            pid: self.pid(),
            exit,
            last_request: lane::name(self.last_access.load(Ordering::Relaxed))
                .or(*self.last_request.lock())
                .map(str::to_owned),
            suspended,
            last_words,
            claimed_call: forbidden.map(ClaimedCall),
            requests: self.trail.as_ref().map(|trail| trail.requests()).unwrap_or_default(),
            ..Death::new(self.name.clone(), cause)
        }
    }
}
