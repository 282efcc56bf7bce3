//! Counting semaphores (libdispatch src/semaphore.c). Rust's standard library parks its threads by them.

use std::sync::{Condvar, Mutex, PoisonError};

use darwin_abi::Symbol;

use super::{Kind, Object, left, release, retain};
use crate::fail;

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_dispatch_semaphore_create" => create as extern "C" fn(_) -> _,
    "_dispatch_semaphore_wait" => wait as extern "C" fn(_, _) -> _,
    "_dispatch_semaphore_signal" => signal as extern "C" fn(_) -> _,
};

#[repr(C)]
pub(super) struct Semaphore {
    object: Object,
    first: isize,
    /// Below 0 there are so many waiters.
    value: Mutex<State>,
    raised: Condvar,
}

struct State {
    value: isize,
    /// Waiters that may go.
    raised: usize,
}

extern "C" fn create(value: isize) -> *mut Semaphore {
    if value < 0 {
        return std::ptr::null_mut();
    }
    let value_now = Mutex::new(State { value, raised: 0 });
    let object = Object::new(Kind::Semaphore);
    Box::into_raw(Box::new(Semaphore {
        object,
        first: value,
        value: value_now,
        raised: Condvar::new(),
    }))
}

/// 0, or not 0 when the time passed first.
extern "C" fn wait(this: *const Semaphore, until: u64) -> isize {
    // SAFETY: an object that the caller has a reference of.
    let this = unsafe { &*this };
    let mut state = this.value.lock().unwrap_or_else(PoisonError::into_inner);
    state.value -= 1;
    if state.value >= 0 {
        return 0;
    }
    while state.raised == 0 {
        match left(until) {
            None => state = this.raised.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) if left.is_zero() => {
                state.value += 1;
                // KERN_OPERATION_TIMED_OUT (osfmk/mach/kern_return.h).
                return 49;
            }
            Some(left) => {
                let waited = this.raised.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
    state.raised -= 1;
    0
}

/// Not 0 if a thread was woken.
extern "C" fn signal(this: *const Semaphore) -> isize {
    // SAFETY: as above. A waiter may give up the last reference before this thread is done: one of our own.
    retain(this.cast());
    let semaphore = unsafe { &*this };
    let mut state = semaphore.value.lock().unwrap_or_else(PoisonError::into_inner);
    state.value += 1;
    let woken = state.value <= 0;
    if woken {
        state.raised += 1;
        semaphore.raised.notify_one();
    }
    drop(state);
    release(this.cast());
    isize::from(woken)
}

/// libdispatch ends the process when a semaphore goes while somebody is within (`_dispatch_semaphore_dispose`).
pub(super) unsafe fn dispose(this: *mut Semaphore) {
    // SAFETY: the caller's: the last reference is gone.
    let this = unsafe { Box::from_raw(this) };
    let value = this.value.lock().unwrap_or_else(PoisonError::into_inner).value;
    if value < this.first {
        fail::abort("BUG IN CLIENT OF LIBDISPATCH: Semaphore object deallocated while in use");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{FOREVER, NOW, time};

    #[test]
    fn a_wait_takes_what_was_signalled_and_times_out_otherwise() {
        let semaphore = create(1);
        assert_eq!(wait(semaphore, NOW), 0);
        assert_ne!(wait(semaphore, NOW), 0);
        assert_ne!(wait(semaphore, time(NOW, 5_000_000)), 0);
        assert_eq!(signal(semaphore), 0);
        assert_eq!(wait(semaphore, FOREVER), 0);
        let other = semaphore as usize;
        let waiter = std::thread::spawn(move || wait(other as *const Semaphore, FOREVER));
        while unsafe { &*semaphore }.value.lock().unwrap().value == 0 {
            std::thread::yield_now();
        }
        assert_eq!(signal(semaphore), 1);
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(signal(semaphore), 0);
        release(semaphore.cast());
        assert!(create(-1).is_null());
    }
}
