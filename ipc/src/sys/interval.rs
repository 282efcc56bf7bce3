//! Ends whatever a thread waits in: a timer that interrupts it again and again.
#![expect(unsafe_code, reason = "installing a signal handler")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Timer;

/// How often the handler ran in this process.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// Made by the thread that it interrupts, and not sent to another.
#[derive(Debug)]
pub(crate) struct Interval(Timer);

impl Interval {
    /// For the calling thread. The process's SIGALRM is this module's from here on.
    pub(crate) fn new() -> io::Result<Self> {
        handle_signal()?;
        Timer::new().map(Self)
    }

    /// Runs `calls`, in which no call of this thread waits for longer than a `period` or two: it
    /// fails with EINTR then. A single shot could go off just before the wait that it is to end,
    /// so the timer repeats.
    pub(crate) fn interrupting<R>(&self, period: Duration, calls: impl FnOnce() -> R) -> R {
        let _armed = Armed::new(&self.0, period);
        calls()
    }
}

struct Armed<'t>(&'t Timer);

impl<'t> Armed<'t> {
    fn new(timer: &'t Timer, period: Duration) -> Self {
        timer.set(period);
        Self(timer)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.set(Duration::ZERO);
    }
}

/// How often intervals have gone off. An EINTR without one more of them was another signal's.
pub(crate) fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

extern "C" fn tick(_: libc::c_int) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// Without SA_RESTART: the point is that the call is not restarted.
fn handle_signal() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is valid, with an empty mask and no flags; the handler only counts
    // in an atomic, which is async-signal-safe.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = tick as *const () as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
