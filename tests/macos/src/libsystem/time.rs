//! Clocks (`_time.h`, Libc-1669) and timers.

use std::ffi::c_int;

use crate::libsystem::confined::mediated;
use darwin_abi::{Symbol, error, fail, result, symbols};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_clock_gettime" => clock_gettime,
    "_gettimeofday" => gettimeofday,
    "_nanosleep" => nanosleep,
    "_setitimer" => setitimer,
};

unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int {
    let clock = match clock {
        0 => libc::CLOCK_REALTIME,
        // CLOCK_MONOTONIC_RAW, its approximate form, and CLOCK_MONOTONIC.
        4..=6 => libc::CLOCK_MONOTONIC,
        // CLOCK_UPTIME_RAW and its approximate form stop in sleep, as Linux's monotonic clock does.
        8 | 9 => libc::CLOCK_MONOTONIC,
        12 => libc::CLOCK_PROCESS_CPUTIME_ID,
        16 => libc::CLOCK_THREAD_CPUTIME_ID,
        _ => return fail(error::EINVAL),
    };
    // SAFETY: the caller's place.
    result(unsafe { libc::clock_gettime(clock, time) })
}

/// Seconds, and microseconds in 32 bits.
#[repr(C)]
struct Timeval {
    seconds: i64,
    microseconds: i32,
}

impl Timeval {
    fn of(time: libc::timeval) -> Self {
        Self { seconds: time.tv_sec, microseconds: time.tv_usec as i32 }
    }

    fn to_linux(&self) -> libc::timeval {
        libc::timeval { tv_sec: self.seconds, tv_usec: self.microseconds.into() }
    }
}

unsafe extern "C" fn gettimeofday(time: *mut Timeval, _zone: usize) -> c_int {
    let mut now = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: places of this function's and the caller's.
    unsafe {
        libc::gettimeofday(&raw mut now, std::ptr::null_mut());
        if !time.is_null() {
            time.write(Timeval::of(now));
        }
    }
    0
}

unsafe extern "C" fn nanosleep(time: *const libc::timespec, left: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's places; the layout is the same.
    result(unsafe { libc::nanosleep(time, left) })
}

/// An interval and what is left of it.
#[repr(C)]
struct Timer {
    interval: Timeval,
    value: Timeval,
}

unsafe extern "C" fn setitimer(which: c_int, new: *const Timer, old: *mut Timer) -> c_int {
    mediated!("SYS_setitimer");
    // SAFETY: places of the caller's, and this function's own; the numbers of the timers are the same.
    unsafe {
        let convert = |timer: &Timer| libc::itimerval {
            it_interval: timer.interval.to_linux(),
            it_value: timer.value.to_linux(),
        };
        let new = new.as_ref().map(convert);
        let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let mut was: libc::itimerval = std::mem::zeroed();
        let done = raw_setitimer(which, new, &raw mut was);
        if let (0, Some(old)) = (done, old.as_mut()) {
            old.interval = Timeval::of(was.it_interval);
            old.value = Timeval::of(was.it_value);
        }
        result(done)
    }
}

/// The same in every libc, but typed as an enum in some.
unsafe fn raw_setitimer(
    which: c_int,
    new: *const libc::itimerval,
    old: *mut libc::itimerval,
) -> c_int {
    // SAFETY: the caller's places.
    unsafe { libc::syscall(libc::SYS_setitimer, which, new, old) as c_int }
}

/// Since 1970.
pub(super) fn since_epoch() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
