//! What is unsafe here: asking what becomes of a signal, and having signals wait. The former is the same on Linux
//! and macOS.
#![expect(unsafe_code, reason = "no library asks for a signal's disposition, or has one wait")]

use std::ffi::c_int;
use std::mem::MaybeUninit;

/// Whether this process was started with `signal` ignored, as by nohup, or by a shell that puts a
/// program in the background.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given, so nothing is changed; `now` is a place for the present one.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: all zeroes are a valid sigaction, and the call replaced them by another one.
    let now = unsafe { now.assume_init() };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Has signals of this thread, and of those that it starts, wait, or wait no longer.
#[cfg(target_os = "linux")]
pub(crate) fn set_waiting(signals: impl Iterator<Item = c_int>, waiting: bool) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    let how = if waiting { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: `set` is a place for a set, made an empty one first; the former mask is not asked for.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
    }
}
