//! What is unsafe here: asking what becomes of a signal. The same on Linux and macOS.
#![expect(unsafe_code, reason = "no library asks for a signal's disposition")]

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
