//! The process's real interval timer: macOS has none for a single thread.
#![expect(unsafe_code, reason = "timers have no safe wrapper")]

use std::io;
use std::marker::PhantomData;
use std::time::Duration;

/// Sends SIGALRM to the process: in one that has a single thread, to that.
#[derive(Debug)]
pub(crate) struct Timer(PhantomData<*const ()>);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(PhantomData))
    }

    /// Goes off every `period` from now on; zero stops it.
    pub(crate) fn set(&self, period: Duration) {
        let period = libc::timeval {
            tv_sec: libc::time_t::try_from(period.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_usec: libc::suseconds_t::try_from(period.subsec_micros()).unwrap_or_default(),
        };
        let setting = libc::itimerval { it_interval: period, it_value: period };
        // SAFETY: the setting lives through the call, and nobody wants the old one. It cannot fail
        // with a timer that exists and valid times.
        let _ =
            unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const setting, std::ptr::null_mut()) };
    }
}
