//! Loud ends. What is not simulated is never answered as if it had been done.

use std::io::Write as _;

/// The status of a process that asked for what is not simulated.
const STATUS: libc::c_int = 97;

/// Ends the process, and says what it asked for.
pub(crate) fn not_simulated(what: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "[mach] not simulated: {what}");
    // SAFETY: ends the process; nothing runs afterwards.
    unsafe { libc::_exit(STATUS) }
}

/// Ends the process as a fatal guard exception does: `mach_port_guard_exception_immovable`
/// (osfmk/ipc/ipc_policy.c, xnu-11417.101.15) has the BSD side send SIGKILL with the reason EXC_GUARD.
pub(crate) fn guard_exception(what: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "[mach] EXC_GUARD: {what}");
    // SAFETY: plain numbers; the signal cannot be handled.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        // Until the signal is there.
        loop {
            libc::pause();
        }
    }
}

/// Ends the process as a library of the system's does that finds a caller's bug: by a trap, with a word.
pub(crate) fn abort(what: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "[mach] {what}");
    std::process::abort()
}
