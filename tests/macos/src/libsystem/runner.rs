//! What is of the runner itself and not of the program: environment variables and hidden descriptors.

use std::ffi::{CString, OsStr, c_int};
use std::os::unix::ffi::OsStrExt as _;

/// Variables whose names begin so are not the program's.
const PREFIX: &str = "MACHO_RUNNER_";
/// What the parent's Mach kernel left for this process.
pub(crate) const INHERITED: &str = "MACHO_RUNNER_INHERITED";
/// The emulator that the runner is run by, if the host is no arm64 machine.
pub(crate) const EMULATOR: &str = "MACHO_RUNNER_EMULATOR";

/// Whether a variable is the runner's.
pub(crate) fn is_ours(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX.as_bytes())
}

/// What the parent's Mach kernel left for this process.
pub(crate) fn take_inherited() -> Option<String> {
    std::env::var(INHERITED).ok()
}

/// Makes room for descriptors that the program does not see.
pub(crate) fn hide_descriptors() {
    // SAFETY: a place for the limits, and limits that are not above what is allowed.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The words before a Mach-O program's own: emulator and runner.
pub(crate) fn command() -> Result<Vec<CString>, c_int> {
    let words = std::env::var_os(EMULATOR).into_iter().chain([own_path()?]);
    let words = words.map(|word| CString::new(word.as_bytes()).map_err(|_| libc::EINVAL));
    words.collect()
}

fn own_path() -> Result<std::ffi::OsString, c_int> {
    let path = std::env::current_exe();
    path.map(Into::into).map_err(|error| error.raw_os_error().unwrap_or(libc::ENOENT))
}

/// Ends the process, since it asks for something that the runner does not have: what it would get is not known.
pub(crate) fn lacks(what: std::fmt::Arguments<'_>) -> ! {
    eprintln!("macho-runner: not implemented: {what}");
    std::process::abort()
}
