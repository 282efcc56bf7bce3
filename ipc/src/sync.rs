//! Locks that go on after a panic.
//!
//! A lock of the standard library is *poisoned* when a thread panics while it holds it, and every
//! later caller has to say what it thinks of that. Here the answer is the same everywhere, so it is
//! given once: take the lock and go on.
//!
//! - A confined process is built to abort on a panic: nobody is left to find a poisoned lock.
//! - A VMM unwinds. A panic is one thread's bug, and the threads of other functions must not fall to
//!   it in turn: they would, at the next shared lock. What such a lock guards (journals, tables, who
//!   holds what) is changed in steps that each leave it usable, with no call to another process and
//!   no code of a caller's in between, so the half-done change of a thread that panicked is at worst
//!   one entry too many or too few, which is found when the function it belongs to ends.
//!
//! The panic itself is not hidden: the panic hook prints it, and whoever joins the thread is told.
//! State that a panic could leave unusable does not belong behind these locks.

use std::sync::PoisonError;
pub use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// [`std::sync::Mutex`] whose [`Mutex::lock`] always gives the guard.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A new lock.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`std::sync::RwLock`] whose methods always give the guard.
#[derive(Debug, Default)]
pub struct RwLock<T: ?Sized>(std::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// A new lock.
    pub const fn new(value: T) -> Self {
        Self(std::sync::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else reads or writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`std::sync::Condvar`] for a [`Mutex`] of this module.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// A new one.
    #[must_use]
    pub const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    /// Wakes one that waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits to be woken, or longer than `timeout`; may wake for no reason.
    pub fn wait_timeout<'l, T>(
        &self,
        guard: MutexGuard<'l, T>,
        timeout: Duration,
    ) -> MutexGuard<'l, T> {
        self.0.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits as long as `condition` holds, but no longer than `timeout`.
    pub fn wait_timeout_while<'l, T>(
        &self,
        guard: MutexGuard<'l, T>,
        timeout: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'l, T> {
        let waited = self.0.wait_timeout_while(guard, timeout, condition);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Has a thread panic while it holds what `take` takes of `lock`.
    fn panic_in<L: Send + Sync + 'static>(lock: &Arc<L>, take: fn(&L)) {
        let lock = Arc::clone(lock);
        let thread = std::thread::spawn(move || take(&lock));
        assert!(thread.join().is_err(), "the panic is told to who joins");
    }

    #[test]
    fn a_lock_can_be_taken_after_a_panic() {
        let mutex = Arc::new(Mutex::new(1));
        panic_in(&mutex, |mutex| {
            let mut guard = mutex.lock();
            *guard = 2;
            panic!("on purpose");
        });
        assert!(mutex.0.is_poisoned());
        assert_eq!(*mutex.lock(), 2);
        let lock = Arc::new(RwLock::new(1));
        panic_in(&lock, |lock| {
            let mut guard = lock.write();
            *guard = 2;
            panic!("on purpose");
        });
        assert!(lock.0.is_poisoned());
        assert_eq!(*lock.read(), 2);
        *lock.write() = 3;
        assert_eq!(*lock.read(), 3);
    }

    #[test]
    fn a_wait_ends_with_its_condition_or_its_time_also_after_a_panic() {
        let (mutex, changed) = (Arc::new(Mutex::new(false)), Condvar::new());
        panic_in(&mutex, |mutex| {
            let _guard = mutex.lock();
            panic!("on purpose");
        });
        let guard = changed.wait_timeout(mutex.lock(), Duration::from_millis(1));
        assert!(!*guard);
        let mut guard = changed.wait_timeout_while(guard, Duration::from_millis(1), |set| !*set);
        *guard = true;
        let guard = changed.wait_timeout_while(guard, Duration::from_secs(60), |set| !*set);
        assert!(*guard);
    }
}
