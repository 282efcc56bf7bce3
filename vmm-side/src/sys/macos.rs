//! macOS: a child by `posix_spawn` with a closed descriptor set, watched through a kernel queue.
//! None of it has run on a Mac yet: see docs/macos.md.
#![expect(unsafe_code, reason = "posix_spawn and kevent")]

use std::ffi::{c_char, c_int, c_short};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

mod confined;

use ipc::Deadline;
use ipc::poll;
use rustix::fs::OFlags;
use rustix::io::FdFlags;

use super::{CURE_OF_NULL, SpawnError, Step, Words, cure_of_run, null_device};
use crate::child::launch::Isolation;
use crate::child::{ExitStatus, Start};

// libSystem exports it; only a private header declares it.
unsafe extern "C" {
    fn posix_spawnattr_set_registered_ports_np(
        attributes: *mut libc::posix_spawnattr_t,
        ports: *mut u32,
        count: u32,
    ) -> c_int;
}

/// macOS has no service manager that keeps descriptors.
pub(crate) fn keeper_socket() -> io::Result<Option<std::os::unix::net::UnixDatagram>> {
    Ok(None)
}

/// Nothing is passed on.
pub(crate) fn passed_on(_is_wanted: fn(&str) -> bool) -> io::Result<Vec<(OwnedFd, String)>> {
    Ok(Vec::new())
}

/// The name of a system call, of which no process here says the number: the system reports crashes.
pub(crate) fn call_name(_number: u32) -> Option<&'static str> {
    None
}

/// A running child. Not reaped on drop: see [`Process::reap`].
#[derive(Debug)]
pub(crate) struct Process {
    pid: libc::pid_t,
    /// Readable once the process has ended.
    queue: OwnedFd,
    /// Its number may be somebody else's afterwards.
    reaped: parking_lot::Mutex<bool>,
    suspended: AtomicBool,
    /// Its status, if looking whether it is suspended took it; [`NOT_ENDED`] otherwise.
    ended: AtomicI32,
}

/// No status that `waitpid` gives.
const NOT_ENDED: c_int = -1;

/// Attributes and file actions of a spawn, destroyed on drop.
struct Plan {
    attributes: libc::posix_spawnattr_t,
    actions: libc::posix_spawn_file_actions_t,
}

impl Plan {
    fn new() -> io::Result<Self> {
        let mut attributes: libc::posix_spawnattr_t = std::ptr::null_mut();
        let mut actions: libc::posix_spawn_file_actions_t = std::ptr::null_mut();
        // SAFETY: both are places for what the calls make; the first is undone if the second fails.
        unsafe {
            check(libc::posix_spawnattr_init(&raw mut attributes))?;
            if let Err(error) = check(libc::posix_spawn_file_actions_init(&raw mut actions)) {
                libc::posix_spawnattr_destroy(&raw mut attributes);
                return Err(error);
            }
        }
        Ok(Self { attributes, actions })
    }

    /// Its own session, no signal blocked or ignored, every descriptor closed but those named.
    fn set(&mut self, descriptors: [(c_int, c_int); 4], inbox: u32) -> io::Result<()> {
        const SETSID: c_int = 0x0400;
        let flags = libc::POSIX_SPAWN_CLOEXEC_DEFAULT
            | libc::POSIX_SPAWN_SETSIGDEF
            | libc::POSIX_SPAWN_SETSIGMASK
            | SETSID;
        let flags = c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: initialised attributes and actions; signal sets that the calls before fill;
        // plain descriptor numbers.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigemptyset(&raw mut none);
            check(libc::posix_spawnattr_setsigdefault(&raw mut self.attributes, &raw const all))?;
            check(libc::posix_spawnattr_setsigmask(&raw mut self.attributes, &raw const none))?;
            check(libc::posix_spawnattr_setflags(&raw mut self.attributes, flags))?;
            let mut ports = [inbox];
            check(posix_spawnattr_set_registered_ports_np(
                &raw mut self.attributes,
                ports.as_mut_ptr(),
                1,
            ))?;
            for (from, to) in descriptors {
                check(libc::posix_spawn_file_actions_adddup2(&raw mut self.actions, from, to))?;
            }
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: both were initialised, and are not used afterwards.
        unsafe {
            libc::posix_spawnattr_destroy(&raw mut self.attributes);
            libc::posix_spawn_file_actions_destroy(&raw mut self.actions);
        }
    }
}

fn check(error: c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// There are no network namespaces here.
pub(crate) fn leave_network() {}

/// There are none.
pub(crate) fn has_left_network() -> bool {
    false
}

/// Starts a child.
pub(crate) fn spawn(start: &Start<'_>) -> Result<Process, SpawnError> {
    // Whether the child is isolated is for its profile to say.
    let (Isolation::Required | Isolation::Preferred) = start.isolation;
    let failed = |step| move |error| SpawnError::new(step, start.program, error);
    let null = null_device().map_err(failed(Step::NullDevice))?;
    // Out of the way of 0 to 3, so that moving one there does not close another.
    let above = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, 10)
            .map_err(|error| failed(Step::Duplicate)(error.into()))
    };
    let (null, stderr, tube) = (above(null.as_fd())?, above(start.stderr)?, above(start.tube)?);
    let words = Words::of(start).map_err(failed(Step::CommandLine))?;
    let mut plan = Plan::new().map_err(failed(Step::Attributes))?;
    let descriptors = [
        (null.as_raw_fd(), 0),
        (null.as_raw_fd(), 1),
        (stderr.as_raw_fd(), 2),
        (tube.as_raw_fd(), 3),
    ];
    plan.set(descriptors, start.inbox.port()).map_err(failed(Step::Attributes))?;
    let pid = run(&words, &plan).map_err(failed(Step::Run))?;
    // Not reaped by anybody but us, so the number stays its own.
    match watch(pid) {
        Ok(queue) => Ok(Process {
            pid,
            queue,
            reaped: parking_lot::Mutex::new(false),
            suspended: AtomicBool::new(false),
            ended: AtomicI32::new(NOT_ENDED),
        }),
        Err(error) => {
            // SAFETY: our own child, not reaped yet; plain numbers.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            Err(failed(Step::Watch)(error))
        }
    }
}

/// Makes the process and has it run its program, in one call.
fn run(words: &Words, plan: &Plan) -> io::Result<libc::pid_t> {
    let mutable = |strings| -> Vec<*mut c_char> {
        Words::null_terminated(strings).into_iter().map(<*const c_char>::cast_mut).collect()
    };
    let (arguments, environment) = (mutable(&words.arguments), mutable(&words.environment));
    let mut pid = 0;
    // SAFETY: strings that end in NUL and arrays that end in null, all alive through the call, which
    // does not change them; initialised attributes and actions.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            words.program.as_ptr(),
            &raw const plan.actions,
            &raw const plan.attributes,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    })?;
    Ok(pid)
}

/// What helps when `step` failed with `error`.
pub(crate) fn cure(step: Step, program: &Path, error: &io::Error) -> String {
    match step {
        Step::NullDevice => CURE_OF_NULL.to_owned(),
        // Making the process and running its program are one call.
        Step::Run if error.raw_os_error() == Some(libc::EAGAIN) => {
            "raise the limit of processes (ulimit -u)".to_owned()
        }
        Step::Run => cure_of_run(program, error).to_owned(),
        Step::Prepare | Step::Duplicate | Step::CommandLine | Step::Attributes | Step::Watch => {
            String::new()
        }
    }
}

/// A kernel queue that is readable once the process has ended, also when it has already.
fn watch(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, owned from here on.
    let queue = unsafe {
        let queue = libc::kqueue();
        if queue < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(queue)
    };
    rustix::io::fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
    let change = libc::kevent {
        ident: usize::try_from(pid).map_err(io::Error::other)?,
        filter: libc::EVFILT_PROC,
        flags: libc::EV_ADD,
        fflags: libc::NOTE_EXIT,
        data: 0,
        udata: std::ptr::null_mut(),
    };
    match register(&queue, change) {
        // A child that ended and was not reaped is none that can be watched: an event of our own
        // stands for its end.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            let own = libc::kevent { ident: 0, filter: libc::EVFILT_USER, fflags: 0, ..change };
            register(&queue, own)?;
            register(&queue, libc::kevent { flags: 0, fflags: libc::NOTE_TRIGGER, ..own })?;
        }
        registered => registered?,
    }
    Ok(queue)
}

/// One change of a queue.
fn register(queue: &OwnedFd, mut change: libc::kevent) -> io::Result<()> {
    change.flags |= libc::EV_RECEIPT;
    let mut receipt = change;
    // SAFETY: one change and room for one receipt; no timeout is needed, since EV_RECEIPT answers
    // at once.
    let received = unsafe {
        libc::kevent(queue.as_raw_fd(), &raw const change, 1, &raw mut receipt, 1, std::ptr::null())
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    match i32::try_from(receipt.data) {
        Ok(0) => Ok(()),
        Ok(error) => Err(io::Error::from_raw_os_error(error)),
        Err(error) => Err(io::Error::other(error)),
    }
}

impl Process {
    fn signal(&self, signal: c_int) {
        // Held while it is sent: whoever reaps meanwhile would free the number.
        let reaped = self.reaped.lock();
        if !*reaped {
            // SAFETY: our own child, which nobody has reaped: the number is its own. Plain numbers.
            unsafe { libc::kill(self.pid, signal) };
        }
    }
}

impl crate::child::Process for Process {
    fn pid(&self) -> u32 {
        u32::try_from(self.pid).unwrap_or(0)
    }

    fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    fn suspend(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// A stop is reported once, and remembered: nothing of ours continues a child.
    fn is_suspended(&self) -> bool {
        let reaped = self.reaped.lock();
        if *reaped || self.suspended.load(Ordering::Relaxed) {
            return !*reaped;
        }
        let mut status = 0;
        // SAFETY: our own child, not reaped yet, and a place for its status.
        let waited =
            unsafe { libc::waitpid(self.pid, &raw mut status, libc::WUNTRACED | libc::WNOHANG) };
        let stopped = waited == self.pid && libc::WIFSTOPPED(status);
        if stopped {
            self.suspended.store(true, Ordering::Relaxed);
        } else if waited == self.pid {
            // It ended, and this call took its status.
            self.ended.store(status, Ordering::Relaxed);
        }
        stopped
    }

    fn confinement(&self) -> Result<(), String> {
        // Held while it is asked about: its number is nobody else's until it is reaped.
        let reaped = self.reaped.lock();
        if *reaped {
            return Err("it has ended".to_owned());
        }
        unless_ended(confined::check(self.pid), || {
            poll::wait_readable(&self.queue, Deadline::now()).unwrap_or(false)
        })
    }

    /// Blocks only while it is still alive, so wait for its descriptor to become readable first.
    fn reap(&self) -> ExitStatus {
        let mut reaped = self.reaped.lock();
        let mut status = self.ended.load(Ordering::Relaxed);
        if status != NOT_ENDED {
            *reaped = true;
            return exit_status(status);
        }
        loop {
            // SAFETY: our own child and a place for its status.
            let waited = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                *reaped = true;
                return if waited == self.pid { exit_status(status) } else { ExitStatus::Unknown };
            }
        }
    }
}

/// What was said of a child's confinement, unless it ended: of one that is gone the system has no answers, and there
/// is nothing left to confine. Its end is found by whoever waits for it.
fn unless_ended(said: Result<(), String>, has_ended: impl FnOnce() -> bool) -> Result<(), String> {
    said.or_else(|why| if has_ended() { Ok(()) } else { Err(why) })
}

fn exit_status(status: c_int) -> ExitStatus {
    if libc::WIFEXITED(status) {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Unknown
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// A clock that never goes back.
pub(crate) fn coarse_now() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    std::time::Duration::try_from(now).unwrap_or_default()
}

/// A pipe for a child's standard error: the reading end, and the writing end, which does not block
/// the child when nobody reads.
pub(crate) fn stderr_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe()?;
    for end in [&read, &write] {
        rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
    }
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ended_while_it_was_asked_about_is_not_called_unconfined() {
        unless_ended(Err("no answer".to_owned()), || true).unwrap();
        let why = unless_ended(Err("allowed".to_owned()), || false).unwrap_err();
        assert_eq!(why, "allowed");
        unless_ended(Ok(()), || false).unwrap();
    }
}
