//! Mutexes and conditions (libpthread-535, `pthread/pthread_impl.h`, `src/pthread_mutex.c`, `src/pthread_cond.c`).
//!
//! Both begin with a signature, so that what was initialised as a constant is zeros after it. A mutex is
//! glibc's, after the signature; a condition is a count that waiters sleep on, since glibc's does not fit.

use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use darwin_abi::{Symbol, error, from_linux, symbols};

use crate::libsystem::time::since_epoch;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_pthread_mutex_init" => mutex_init,
    "_pthread_mutex_destroy" => mutex_destroy,
    "_pthread_mutex_lock" => mutex_lock,
    "_pthread_mutex_trylock" => mutex_trylock,
    "_pthread_mutex_unlock" => mutex_unlock,
    "_pthread_mutexattr_init" => attribute_init,
    "_pthread_mutexattr_destroy" => attribute_destroy,
    "_pthread_mutexattr_settype" => attribute_settype,
    "_pthread_cond_init" => cond_init,
    "_pthread_cond_destroy" => cond_destroy,
    "_pthread_cond_signal" => cond_signal,
    "_pthread_cond_broadcast" => cond_broadcast,
    "_pthread_cond_wait" => cond_wait,
    "_pthread_cond_timedwait" => cond_timedwait,
    "_pthread_cond_timedwait_relative_np" => cond_timedwait_relative,
};

const MUTEX_SIGNATURE: c_long = 0x4d55_545a;
const COND_SIGNATURE: c_long = 0x434f_4e44;
const ATTRIBUTE_SIGNATURE: c_long = 0x4d54_5841;

/// Of 64 bytes.
#[repr(C)]
struct Mutex {
    signature: c_long,
    glibc: libc::pthread_mutex_t,
    _rest: [u8; 8],
}

/// Of 16 bytes.
#[repr(C)]
struct Attribute {
    signature: c_long,
    kind: c_int,
    _rest: c_int,
}

/// Of 48 bytes.
#[repr(C)]
struct Cond {
    signature: c_long,
    /// Counts every signal: a waiter sleeps while it is what it was before the mutex was let go.
    count: AtomicU32,
    _rest: [u32; 9],
}

const _: () =
    assert!(size_of::<Mutex>() == 64 && size_of::<Attribute>() == 16 && size_of::<Cond>() == 48);

unsafe extern "C" fn mutex_init(mutex: *mut Mutex, attribute: *const Attribute) -> c_int {
    // SAFETY: the caller's memory, and its attribute, which may be null.
    unsafe {
        let kind = attribute.as_ref().map_or(0, |attribute| attribute.kind);
        // PTHREAD_MUTEX_NORMAL, ERRORCHECK and RECURSIVE.
        let kind = match kind {
            1 => libc::PTHREAD_MUTEX_ERRORCHECK,
            2 => libc::PTHREAD_MUTEX_RECURSIVE,
            _ => libc::PTHREAD_MUTEX_NORMAL,
        };
        let mut linux: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut linux);
        libc::pthread_mutexattr_settype(&raw mut linux, kind);
        (&raw mut (*mutex).signature).write(MUTEX_SIGNATURE);
        let done = libc::pthread_mutex_init(&raw mut (*mutex).glibc, &raw const linux);
        libc::pthread_mutexattr_destroy(&raw mut linux);
        from_linux(done)
    }
}

unsafe extern "C" fn mutex_destroy(mutex: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    from_linux(unsafe { libc::pthread_mutex_destroy(&raw mut (*mutex).glibc) })
}

unsafe extern "C" fn mutex_lock(mutex: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    from_linux(unsafe { libc::pthread_mutex_lock(&raw mut (*mutex).glibc) })
}

unsafe extern "C" fn mutex_trylock(mutex: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    from_linux(unsafe { libc::pthread_mutex_trylock(&raw mut (*mutex).glibc) })
}

unsafe extern "C" fn mutex_unlock(mutex: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    from_linux(unsafe { libc::pthread_mutex_unlock(&raw mut (*mutex).glibc) })
}

unsafe extern "C" fn attribute_init(attribute: *mut Attribute) -> c_int {
    // SAFETY: the caller's memory.
    unsafe { attribute.write(Attribute { signature: ATTRIBUTE_SIGNATURE, kind: 0, _rest: 0 }) };
    0
}

extern "C" fn attribute_destroy(attribute: &mut Attribute) -> c_int {
    attribute.signature = 0;
    0
}

extern "C" fn attribute_settype(attribute: &mut Attribute, kind: c_int) -> c_int {
    if attribute.signature != ATTRIBUTE_SIGNATURE || !(0..=2).contains(&kind) {
        return error::EINVAL;
    }
    attribute.kind = kind;
    0
}

unsafe extern "C" fn cond_init(cond: *mut Cond, _attribute: usize) -> c_int {
    let count = AtomicU32::new(0);
    // SAFETY: the caller's memory.
    unsafe { cond.write(Cond { signature: COND_SIGNATURE, count, _rest: [0; 9] }) };
    0
}

extern "C" fn cond_destroy(_cond: &Cond) -> c_int {
    0
}

extern "C" fn cond_signal(cond: &Cond) -> c_int {
    wake(cond, 1)
}

extern "C" fn cond_broadcast(cond: &Cond) -> c_int {
    wake(cond, c_int::MAX)
}

fn wake(cond: &Cond, waiters: c_int) -> c_int {
    cond.count.fetch_add(1, Ordering::SeqCst);
    let flags = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the address of a live word.
    unsafe { libc::syscall(libc::SYS_futex, cond.count.as_ptr(), flags, waiters) };
    0
}

unsafe extern "C" fn cond_wait(cond: &Cond, mutex: *mut Mutex) -> c_int {
    // SAFETY: the caller holds the mutex.
    unsafe { wait(cond, mutex, None) }
}

unsafe extern "C" fn cond_timedwait(
    cond: &Cond,
    mutex: *mut Mutex,
    until: &libc::timespec,
) -> c_int {
    let until = Duration::new(until.tv_sec.max(0) as u64, until.tv_nsec as u32);
    // SAFETY: as above.
    unsafe { wait(cond, mutex, Some(until.saturating_sub(since_epoch()))) }
}

unsafe extern "C" fn cond_timedwait_relative(
    cond: &Cond,
    mutex: *mut Mutex,
    time: &libc::timespec,
) -> c_int {
    let time = Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32);
    // SAFETY: as above.
    unsafe { wait(cond, mutex, Some(time)) }
}

unsafe fn wait(cond: &Cond, mutex: *mut Mutex, time: Option<Duration>) -> c_int {
    let before = cond.count.load(Ordering::SeqCst);
    // SAFETY: the caller holds the mutex; the address of a live word, and a time that outlives the call.
    unsafe {
        mutex_unlock(mutex);
        let limit = time.map(|time| libc::timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: time.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let flags = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let waited = libc::syscall(libc::SYS_futex, cond.count.as_ptr(), flags, before, limit);
        let late = waited == -1 && *libc::__errno_location() == libc::ETIMEDOUT;
        mutex_lock(mutex);
        if late { error::ETIMEDOUT } else { 0 }
    }
}
