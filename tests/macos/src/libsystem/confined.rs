//! What a confined process may not: system calls that its profile's finite list does not have, and operations on
//! files, sockets and processes. Denied is EPERM (`mac_syscall` filter in bsd/dev/arm/systemcalls.c and
//! bsd/kern/kern_mac.c of xnu-11417.101.15), without a signal unless the profile asks for one.

use std::ffi::{CStr, c_char};

/// Whether the profile denies `operation` on `object`; said on standard error, as the system's log says it.
pub(super) fn denies(operation: &str, object: &str) -> bool {
    let denied = !mach_kernel::permits(operation, object);
    if denied {
        eprintln!("[macho-runner] Sandbox: deny(1) {operation} {object}");
    }
    denied
}

/// As [`denies`], for the call itself by its constant of sys/syscall.h.
pub(super) fn denies_call(name: &str) -> bool {
    denies("syscall-unix", name)
}

/// As [`denies`], for a path of the program's.
///
/// # Safety
/// A string that ends in NUL, or null.
pub(super) unsafe fn denies_path(operation: &str, path: *const c_char) -> bool {
    // SAFETY: the caller's promise.
    !path.is_null() && denies(operation, &unsafe { CStr::from_ptr(path) }.to_string_lossy())
}

/// Returns from a call with EPERM where it is denied.
macro_rules! mediated {
    ($call:literal $(, $($condition:expr),*)?) => {
        if $crate::libsystem::confined::denies_call($call) $($(|| $condition)*)? {
            return darwin_abi::fail(darwin_abi::error::EPERM) as _;
        }
    };
}

pub(super) use mediated;
