//! Serial queues: what was submitted runs one after the other, in order, each on a thread of the queue's or, for
//! `dispatch_sync_f`, on its caller's.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use darwin_abi::Symbol;

use super::{Kind, Object, release, retain};
use crate::fail;

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_dispatch_queue_create" => create as extern "C" fn(_, _) -> _,
    "_dispatch_sync_f" => sync as extern "C" fn(_, _, _),
    "_dispatch_async_f" => run_async as extern "C" fn(_, _, _),
};

/// What is submitted.
pub(crate) type Function = extern "C" fn(*mut c_void);

/// A serial queue.
#[repr(C)]
pub(crate) struct Queue {
    object: Object,
    number: u64,
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Default)]
struct State {
    /// The next ticket that is given out, and whose turn it is.
    next: u64,
    turn: u64,
}

thread_local! {
    /// The queue that this thread is on.
    static ON: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

impl Queue {
    fn ticket(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = state.next;
        state.next += 1;
        ticket
    }

    /// Runs something when it is the ticket's turn.
    fn run(&self, ticket: u64, what: impl FnOnce()) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.turn != ticket {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let before = ON.replace(self.number);
        what();
        ON.set(before);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).turn += 1;
        self.turn.notify_all();
    }

    /// Runs something on this thread, after all that was submitted before.
    pub(crate) fn run_here(&self, what: impl FnOnce()) {
        self.run(self.ticket(), what);
    }

    /// Submits something; it has its place in the order when this returns.
    pub(crate) fn submit(this: *const Self, what: impl FnOnce() + Send + 'static) {
        retain(this.cast());
        // SAFETY: a queue that the caller has a reference of; from here on one of this submission's own.
        let ticket = unsafe { &*this }.ticket();
        let at = this as usize;
        let run = move || {
            let this = at as *const Self;
            // SAFETY: the submission's reference.
            unsafe { &*this }.run(ticket, what);
            release(this.cast());
        };
        if let Err(error) = std::thread::Builder::new().name("dispatch".to_owned()).spawn(run) {
            fail::not_simulated(&format!("a queue without a thread ({error})"));
        }
    }
}

/// A null attribute is DISPATCH_QUEUE_SERIAL.
pub(crate) extern "C" fn create(_label: *const c_char, attribute: *const c_void) -> *mut Queue {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    if !attribute.is_null() {
        fail::not_simulated("dispatch_queue_create of another queue than a serial one");
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (state, turn) = (Mutex::default(), Condvar::new());
    Box::into_raw(Box::new(Queue { object: Object::new(Kind::Queue), number, state, turn }))
}

/// On the caller's own thread, after all that was submitted before. From the queue itself libdispatch ends the
/// process (`__DISPATCH_WAIT_FOR_QUEUE__`, src/queue.c).
pub(crate) extern "C" fn sync(this: *const Queue, context: *mut c_void, function: Function) {
    // SAFETY: a queue that the caller has a reference of.
    let this = unsafe { &*this };
    if ON.get() == this.number {
        fail::abort(
            "BUG IN CLIENT OF LIBDISPATCH: dispatch_sync called on queue already owned by current thread",
        );
    }
    this.run_here(|| function(context));
}

extern "C" fn run_async(this: *const Queue, context: *mut c_void, function: Function) {
    let context = context as usize;
    Queue::submit(this, move || function(context as *mut c_void));
}

pub(super) unsafe fn dispose(this: *mut Queue) {
    // SAFETY: the caller's: the last reference is gone, and every submission had one.
    drop(unsafe { Box::from_raw(this) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_is_submitted_runs_in_order_and_sync_comes_after_it() {
        let queue = create(std::ptr::null(), std::ptr::null());
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..20 {
            let seen = Arc::clone(&seen);
            Queue::submit(queue, move || {
                std::thread::sleep(std::time::Duration::from_micros(50 * (20 - number)));
                seen.lock().unwrap().push(number);
            });
        }
        extern "C" fn count(context: *mut c_void) {
            // SAFETY: the test's own vector.
            let (seen, found) = unsafe { &mut *context.cast::<(Arc<Mutex<Vec<u64>>>, usize)>() };
            *found = seen.lock().unwrap().len();
        }
        let mut found = (Arc::clone(&seen), 0);
        sync(queue, (&raw mut found).cast(), count);
        assert_eq!(found.1, 20);
        assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
        release(queue.cast());
    }
}
