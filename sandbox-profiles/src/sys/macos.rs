//! macOS: descriptors, resource limits and the role's Seatbelt profile. None of it has run on a Mac
//! yet: see docs/macos.md.
#![expect(unsafe_code, reason = "sandbox_init_with_parameters has no binding in any library")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{BorrowedFd, RawFd};

use rustix::process::{Resource, Rlimit};

use crate::{Collector, ConfineError, Layer, LayerState, Mode, Report, Role, seatbelt};

// libSystem exports these; no header declares the first.
unsafe extern "C" {
    fn sandbox_init_with_parameters(
        profile: *const c_char,
        flags: u64,
        parameters: *const *const c_char,
        error: *mut *mut c_char,
    ) -> c_int;
    fn sandbox_free_error(error: *mut c_char);
    fn sandbox_check(pid: libc::pid_t, operation: *const c_char, kind: c_int, ...) -> c_int;
}

/// Descriptors that are looked at, and that it may have.
const MOST: RawFd = 4096;

/// Confines the calling process for good. `keep` are the descriptors that it has open beside
/// 0, 1 and 2. `_later` are the bytes of memory that it will be handed and map afterwards: the
/// system has no limit of addresses that could count them.
///
/// # Errors
/// [`ConfineError`] in strict mode; the process is partly confined then and must exit.
pub fn confine(
    role: Role,
    mode: Mode,
    keep: &[RawFd],
    _later: u64,
) -> Result<Report, ConfineError> {
    let mut layers = Collector::new(mode);
    layers.add(Layer::Descriptors, descriptors(keep))?;
    layers.add(Layer::ResourceLimits, limits())?;
    let profile = seatbelt::profile(role);
    layers.add(Layer::Seatbelt, if is_confined() { launched() } else { apply(profile) })?;
    Ok(layers.report(0))
}

/// Bytes of memory that this machine has, in all: nobody asks here, since nothing is counted by it.
#[must_use]
pub fn machine_memory() -> u64 {
    0
}

/// Nothing is open but 0, 1, 2 and `keep`. The system's libraries open kernel queues of their own,
/// which lead nowhere: they are told, not refused.
fn descriptors(keep: &[RawFd]) -> LayerState {
    let is_open = |fd: &RawFd| {
        // SAFETY: only asks whether the number is open; nothing is done to it.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*fd) }).is_ok()
    };
    let (mut open, mut queues, mut stray) = (0, 0, Vec::new());
    for fd in (0..MOST).filter(is_open) {
        open += 1;
        if fd > 2 && !keep.contains(&fd) {
            // SAFETY: the number was found open, and this process has one thread that opens.
            let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) });
            // A kernel queue has no kind of file.
            match stat {
                Ok(stat) if u32::from(stat.st_mode) & 0o170_000 == 0 => queues += 1,
                _ => stray.push(fd.to_string()),
            }
        }
    }
    if stray.is_empty() {
        LayerState::Enforced(format!("{open} open, {queues} of them kernel queues"))
    } else {
        LayerState::Missing(format!("unexpected descriptors are open: {}", stray.join(", ")))
    }
}

fn limits() -> LayerState {
    let limits = [
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::Fsize, 0),
        // Whatever whoever started it may have.
        (Resource::Nofile, MOST.unsigned_abs().into()),
    ];
    for (resource, most) in limits {
        let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let most = Some(most.min(hard));
        let limit = Rlimit { current: most, maximum: most };
        if let Err(error) = rustix::process::setrlimit(resource, limit) {
            return LayerState::Missing(format!("{resource:?}: {error}"));
        }
    }
    LayerState::Enforced("no core file, no process, no file; few descriptors".to_owned())
}

/// Whether a profile applies already: a process cannot be confined twice.
fn is_confined() -> bool {
    let own = libc::pid_t::try_from(std::process::id()).unwrap_or_default();
    // SAFETY: no operation and no filter ask whether the process is confined at all.
    unsafe { sandbox_check(own, std::ptr::null(), 0) == 1 }
}

fn launched() -> LayerState {
    LayerState::Partial(
        "by whoever started it (sandbox-exec), with what it needed to start still allowed"
            .to_owned(),
    )
}

fn apply(profile: &str) -> LayerState {
    let Ok(profile) = CString::new(profile) else {
        return LayerState::Missing("the profile has a NUL".to_owned());
    };
    let parameters = [std::ptr::null()];
    let mut error: *mut c_char = std::ptr::null_mut();
    // SAFETY: a string that ends in NUL, no flags (the string is the profile itself), an empty
    // list of parameters that ends in null, and a place for an error; all live through the call.
    let applied = unsafe {
        sandbox_init_with_parameters(profile.as_ptr(), 0, parameters.as_ptr(), &raw mut error)
    };
    if applied == 0 {
        return LayerState::Enforced("deny by default; nothing can be opened".to_owned());
    }
    let why = if error.is_null() {
        std::io::Error::last_os_error().to_string()
    } else {
        // SAFETY: the call left a string that ends in NUL, which is freed once, here.
        unsafe {
            let why = CStr::from_ptr(error).to_string_lossy().into_owned();
            sandbox_free_error(error);
            why
        }
    };
    LayerState::Missing(why)
}

/// Whether the system would let process `pid` do what a probe asks; `None` for what it cannot be
/// asked about.
#[must_use]
pub fn allows(pid: u32, probe: &seatbelt::Probe) -> Option<bool> {
    use seatbelt::Target;
    const NO_FILTER: c_int = 0;
    const PATH: c_int = 1;
    const GLOBAL_NAME: c_int = 2;
    const NO_REPORT: c_int = 0x4000_0000;
    let pid = libc::pid_t::try_from(pid).ok()?;
    let operation = CString::new(probe.operation).ok()?;
    let denied = match probe.target {
        // SAFETY: a string that ends in NUL; without a filter there are no further arguments.
        Target::Nothing => unsafe { sandbox_check(pid, operation.as_ptr(), NO_FILTER | NO_REPORT) },
        Target::Path(target) => {
            let target = CString::new(target).ok()?;
            // SAFETY: strings that end in NUL; the path filter takes one.
            unsafe { sandbox_check(pid, operation.as_ptr(), PATH | NO_REPORT, target.as_ptr()) }
        }
        Target::Name(target) if probe.operation.starts_with("mach-") => {
            let target = CString::new(target).ok()?;
            // SAFETY: strings that end in NUL; the name filter takes one.
            unsafe {
                sandbox_check(pid, operation.as_ptr(), GLOBAL_NAME | NO_REPORT, target.as_ptr())
            }
        }
        Target::Name(_) | Target::Class(_) | Target::OwnProcess | Target::OtherProcess => {
            return None;
        }
    };
    match denied {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    }
}
