//! A timer of one thread, by `timer_create`.
#![expect(unsafe_code, reason = "timers have no safe wrapper")]

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Sends SIGALRM to the thread that made it, and to no other.
#[derive(Debug)]
pub(crate) struct Timer(libc::timer_t);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: gettid takes nothing. A zeroed sigevent is valid, and the kernel writes `timer`
        // before timer_create says that it succeeded; both live through the call.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = MaybeUninit::uninit();
            match libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()) {
                0 => Ok(Self(timer.assume_init())),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Goes off every `period` from now on; zero stops it.
    pub(crate) fn set(&self, period: Duration) {
        let period = libc::timespec {
            tv_sec: libc::time_t::try_from(period.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: period.subsec_nanos().into(),
        };
        let setting = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer exists for as long as `self` does; the setting lives through the call,
        // and nobody wants the old one. It cannot fail with a valid timer and valid times.
        let _ = unsafe { libc::timer_settime(self.0, 0, &raw const setting, std::ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is not used after this.
        let _ = unsafe { libc::timer_delete(self.0) };
    }
}
