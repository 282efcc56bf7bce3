//! libdispatch, as far as it is asked for: queues, semaphores, sources of Mach messages. Facts of
//! libdispatch-1504.0.11 (apple-oss-distributions); its own threads are plain ones here.

pub(crate) mod queue;
mod semaphore;
pub(crate) mod source;

use std::sync::atomic::{AtomicUsize, Ordering};

use darwin_abi::Symbol;

pub(crate) use queue::Queue;
pub(crate) use source::Source;

pub(crate) fn symbols() -> Vec<&'static [Symbol]> {
    vec![SYMBOLS, queue::SYMBOLS, semaphore::SYMBOLS, source::SYMBOLS]
}

const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_dispatch_retain" => retain as extern "C" fn(_),
    "_dispatch_release" => release as extern "C" fn(_),
    "_dispatch_time" => time as extern "C" fn(_, _) -> _,
};

/// What every object begins with.
#[repr(C)]
pub(crate) struct Object {
    references: AtomicUsize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Kind {
    Queue = 0x6469_7301,
    Semaphore = 0x6469_7302,
    Source = 0x6469_7303,
}

impl Object {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { references: AtomicUsize::new(1), kind }
    }
}

pub(crate) extern "C" fn retain(object: *const Object) {
    // SAFETY: an object that the caller has a reference of.
    unsafe { &*object }.references.fetch_add(1, Ordering::Relaxed);
}

pub(crate) extern "C" fn release(object: *const Object) {
    // SAFETY: as above.
    let this = unsafe { &*object };
    let kind = this.kind;
    if this.references.fetch_sub(1, Ordering::AcqRel) > 1 {
        return;
    }
    // SAFETY: the last reference is gone; the kind says what was made.
    unsafe {
        match kind {
            Kind::Queue => queue::dispose(object.cast_mut().cast()),
            Kind::Semaphore => semaphore::dispose(object.cast_mut().cast()),
            Kind::Source => source::dispose(object.cast_mut().cast()),
        }
    }
}

/// DISPATCH_TIME_NOW and DISPATCH_TIME_FOREVER (dispatch/time.h).
pub(crate) const NOW: u64 = 0;
pub(crate) const FOREVER: u64 = !0;

/// Nanoseconds of the monotonic clock: what times of `dispatch_time` count here. They are opaque to callers.
pub(crate) fn clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// `dispatch_time` (src/time.c): from now, or from a time on the same clock. What overflows is FOREVER, what
/// would be in the past is 1.
pub(crate) extern "C" fn time(when: u64, delta: i64) -> u64 {
    if when == FOREVER {
        return FOREVER;
    }
    if when >> 63 != 0 {
        crate::fail::not_simulated("dispatch_time from a wall-clock time");
    }
    let from = if when == NOW { clock() } else { when };
    if delta >= 0 {
        from.checked_add(delta.unsigned_abs()).filter(|time| time >> 63 == 0).unwrap_or(FOREVER)
    } else {
        from.saturating_sub(delta.unsigned_abs()).max(1)
    }
}

/// What is left until a time; `None` without end.
pub(crate) fn left(time: u64) -> Option<std::time::Duration> {
    if time == FOREVER {
        return None;
    }
    let left = if time == NOW { 0 } else { time.saturating_sub(clock()) };
    Some(std::time::Duration::from_nanos(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_saturate_as_libdispatch_has_it() {
        assert_eq!(time(FOREVER, -5), FOREVER);
        assert_eq!(time(NOW, i64::MAX), FOREVER);
        assert_eq!(time(10, -20), 1);
        assert_eq!(time(10, 20), 30);
        let soon = time(NOW, 1_000_000_000);
        assert!(left(soon).unwrap() <= std::time::Duration::from_secs(1));
        assert!(left(NOW).unwrap().is_zero() && left(FOREVER).is_none());
    }
}
