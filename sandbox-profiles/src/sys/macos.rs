//! macOS: descriptors, resource limits and the role's Seatbelt profile. None of it has run on a Mac
//! yet: see docs/macos.md.
#![expect(unsafe_code, reason = "sandbox_init_with_parameters has no binding in any library")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{BorrowedFd, RawFd};

use rustix::process::{Resource, Rlimit};

use crate::{Collector, ConfineError, Given, Layer, LayerState, Mode, Report, Role, seatbelt};

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
const MOST: RawFd = 10_240;
const _: () = assert!(MOST as u64 == crate::limits::MAX_DESCRIPTORS);

/// Confines the calling process for good. `keep` are the descriptors that it has open beside
/// 0, 1 and 2. The system has no limit of addresses that could count what it will be given.
///
/// # Errors
/// [`ConfineError`] in strict mode; the process is partly confined then and must exit.
pub fn confine(
    role: Role,
    mode: Mode,
    keep: &[RawFd],
    _given: Given,
) -> Result<Report, ConfineError> {
    let mut layers = Collector::new(mode);
    layers.add(Layer::Descriptors, descriptors(keep))?;
    layers.add(Layer::ResourceLimits, limits())?;
    let (state, syscalls) = if is_confined() { (launched(), 0) } else { seatbelt(role) };
    layers.add(Layer::Seatbelt, state)?;
    Ok(layers.report(syscalls))
}

/// Bytes of memory that this machine has, in all: nobody asks here, since nothing is counted by it.
#[must_use]
pub fn machine_memory() -> u64 {
    0
}

/// Nothing is open but 0, 1, 2 and `keep`. The system's libraries open kernel queues of their own,
/// which cannot be handed on and lead nowhere: they are told, not refused.
fn descriptors(keep: &[RawFd]) -> LayerState {
    let is_open = |fd: &RawFd| {
        // SAFETY: only asks whether the number is open; nothing is done to it.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*fd) }).is_ok()
    };
    let (mut open, mut queues, mut stray) = (0, 0, Vec::new());
    for fd in (0..MOST).filter(is_open) {
        open += 1;
        if fd > 2 && !keep.contains(&fd) {
            if is_kernel_queue(fd) {
                queues += 1;
            } else {
                stray.push(fd.to_string());
            }
        }
    }
    if stray.is_empty() {
        LayerState::Enforced(format!("{open} open, {queues} of them kernel queues"))
    } else {
        LayerState::Missing(format!("unexpected descriptors are open: {}", stray.join(", ")))
    }
}

/// Whether a descriptor is a kernel queue: only of one can changes and events be asked for, here none of
/// either. What kind of file it is does not tell, a queue says that it is a pipe.
fn is_kernel_queue(fd: RawFd) -> bool {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: no changes and no room for events, both of length 0; a timeout that lives through the call.
    let asked =
        unsafe { libc::kevent(fd, std::ptr::null(), 0, std::ptr::null_mut(), 0, &raw const now) };
    asked == 0
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

/// Applies the role's profile; how many system calls it leaves, 0 where they are not counted. A system
/// that does not take the one of version 3 gets that of version 1, and the report says so.
fn seatbelt(role: Role) -> (LayerState, usize) {
    let text = seatbelt::profile(role);
    let calls = |operation| {
        let parsed = seatbelt::Profile::parse(text, &[]);
        parsed.map_or(0, |profile| profile.calls(operation).len())
    };
    let (unix, traps, routines) =
        (calls("syscall-unix"), calls("syscall-mach"), calls("syscall-mig"));
    let why = match apply(text) {
        Ok(()) => {
            let said = format!(
                "version 3, deny by default; {unix} system calls, {traps} Mach traps, {routines} \
                 kernel routines"
            );
            return (LayerState::Enforced(said), unix);
        }
        Err(why) => why,
    };
    match apply(seatbelt::fallback(role)) {
        Ok(()) => (
            LayerState::Partial(format!(
                "version 1, deny by default, without lists of calls: version 3 was refused ({why})"
            )),
            0,
        ),
        Err(older) => (LayerState::Missing(format!("version 3: {why}; version 1: {older}")), 0),
    }
}

/// Applies a profile, or says why the system does not take it; the process is then as it was.
fn apply(profile: &str) -> Result<(), String> {
    let profile = CString::new(profile).map_err(|_| "the profile has a NUL".to_owned())?;
    let parameters = [std::ptr::null()];
    let mut error: *mut c_char = std::ptr::null_mut();
    // SAFETY: a string that ends in NUL, no flags (the string is the profile itself), an empty
    // list of parameters that ends in null, and a place for an error; all live through the call.
    let applied = unsafe {
        sandbox_init_with_parameters(profile.as_ptr(), 0, parameters.as_ptr(), &raw mut error)
    };
    if applied == 0 {
        return Ok(());
    }
    if error.is_null() {
        return Err(std::io::Error::last_os_error().to_string());
    }
    // SAFETY: the call left a string that ends in NUL, which is freed once, here.
    unsafe {
        let why = CStr::from_ptr(error).to_string_lossy().into_owned();
        sandbox_free_error(error);
        Err(why)
    }
}

/// What the system says to a question about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
    /// The system does not say: that is no refusal.
    None,
    /// There is no way to ask.
    NotAskable,
}

/// Whether the system would let process `pid` do what a probe asks. To be asked from outside: a process
/// that is confined may not ask even about itself.
#[must_use]
pub fn ask(pid: u32, probe: &seatbelt::Probe) -> Answer {
    use seatbelt::Target;
    const NO_FILTER: c_int = 0;
    const PATH: c_int = 1;
    const GLOBAL_NAME: c_int = 2;
    const NO_REPORT: c_int = 0x4000_0000;
    // Only the family can be asked: the operation itself always answers -1.
    let operation =
        if probe.operation == "process-exec" { "process-exec*" } else { probe.operation };
    let (Ok(pid), Ok(operation)) = (libc::pid_t::try_from(pid), CString::new(operation)) else {
        return Answer::NotAskable;
    };
    let with = |kind: c_int, target: &str| {
        let Ok(target) = CString::new(target) else { return -1 };
        // SAFETY: strings that end in NUL; either filter takes one.
        unsafe { sandbox_check(pid, operation.as_ptr(), kind | NO_REPORT, target.as_ptr()) }
    };
    let denied = match probe.target {
        // SAFETY: a string that ends in NUL; without a filter there are no further arguments.
        Target::Nothing => unsafe { sandbox_check(pid, operation.as_ptr(), NO_FILTER | NO_REPORT) },
        Target::Path(target) => with(PATH, target),
        Target::Name(target) if probe.operation.starts_with("mach-") => with(GLOBAL_NAME, target),
        Target::Name(_)
        | Target::Class(_)
        | Target::Call(_)
        | Target::OwnProcess
        | Target::OtherProcess => return Answer::NotAskable,
    };
    match denied {
        0 => Answer::Allowed,
        1 => Answer::Denied,
        _ => Answer::None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

    use super::*;

    #[test]
    fn a_kernel_queue_is_told_from_pipes_sockets_and_files() {
        // SAFETY: a new descriptor, owned from here on.
        let queue = unsafe { OwnedFd::from_raw_fd(libc::kqueue()) };
        assert!(is_kernel_queue(queue.as_raw_fd()));
        let (read, write) = std::io::pipe().unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let others =
            [read.as_raw_fd(), write.as_raw_fd(), socket.as_raw_fd(), file.as_raw_fd(), -1, MOST];
        for fd in others {
            assert!(!is_kernel_queue(fd), "{fd}");
        }
    }

    #[test]
    fn a_queue_of_a_librarys_is_no_stray_descriptor_and_a_pipe_is() {
        // SAFETY: a new descriptor, owned from here on.
        let queue = unsafe { OwnedFd::from_raw_fd(libc::kqueue()) };
        let (read, _write) = std::io::pipe().unwrap();
        let stray = |state| match state {
            LayerState::Missing(why) => why.rsplit_once(": ").unwrap().1.to_owned(),
            other => format!("{other:?}"),
        };
        let stray = stray(descriptors(&[]));
        let names = |fd: RawFd| stray.split(", ").any(|one| one == fd.to_string());
        assert!(names(read.as_raw_fd()) && !names(queue.as_raw_fd()), "{stray}");
    }
}
