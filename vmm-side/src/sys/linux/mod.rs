//! Linux: a child in namespaces of its own by `clone`, watched through its pidfd.
#![expect(unsafe_code, reason = "clone and exec with a closed descriptor set")]

mod cgroup;
mod child;
mod cure;

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::{CURE_OF_NULL, SpawnError, Step, Words, cure_of_run, null_device};
use crate::child::launch::Isolation;
use crate::child::{ExitStatus, Process as _, Start};
use cgroup::Group;
use child::Context;
pub(crate) use cure::cure;

/// A running child. Not reaped on drop: see [`Process::reap`].
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    /// Removed with it.
    _group: Option<Group>,
}

const STACK: usize = 64 * 1024;

/// Starts a child.
pub(crate) fn spawn(start: &Start<'_>) -> Result<Process, SpawnError> {
    let _ = start.inbox;
    let isolated = libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
    match clone(start, isolated) {
        Err(SpawnError { step: Step::Namespaces | Step::MapIds, .. })
            if start.isolation == Isolation::Preferred =>
        {
            clone(start, 0)
        }
        other => other,
    }
}

fn clone(start: &Start<'_>, namespaces: c_int) -> Result<Process, SpawnError> {
    let failed = |step| move |error| SpawnError::new(step, start.program, error);
    let null = null_device().map_err(failed(Step::NullDevice))?;
    // Out of the way of 0 to 3, so that moving one there does not close another.
    let above = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, 10)
            .map_err(|error| failed(Step::Duplicate)(error.into()))
    };
    let (null, stderr, tube) = (above(null.as_fd())?, above(start.stderr)?, above(start.tube)?);
    let words = Words::of(start).map_err(failed(Step::CommandLine))?;
    let mut context = Context {
        arguments: Words::null_terminated(&words.arguments),
        environment: Words::null_terminated(&words.environment),
        program: words.program.clone(),
        descriptors: [
            (null.as_raw_fd(), 0),
            (null.as_raw_fd(), 1),
            (stderr.as_raw_fd(), 2),
            (tube.as_raw_fd(), 3),
        ],
        maps: if namespaces == 0 { Vec::new() } else { maps().map_err(failed(Step::MapIds))? },
        failed: None,
    };
    let process = start_child(&mut context, namespaces).map_err(|error| {
        failed(if namespaces == 0 { Step::Clone } else { Step::Namespaces })(error)
    })?;
    match context.failed {
        None => Ok(process),
        Some((step, errno)) => {
            process.kill();
            let _ = process.reap();
            Err(failed(step)(io::Error::from_raw_os_error(errno)))
        }
    }
}

/// One id: root of the namespace, which is nobody anywhere else.
fn maps() -> io::Result<Vec<(CString, Vec<u8>)>> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let file = |name: &str| CString::new(name).map_err(io::Error::other);
    Ok(vec![
        (file("/proc/self/setgroups")?, b"deny".to_vec()),
        (file("/proc/self/uid_map")?, format!("0 {uid} 1").into_bytes()),
        (file("/proc/self/gid_map")?, format!("0 {gid} 1").into_bytes()),
    ])
}

fn start_child(context: &mut Context, namespaces: c_int) -> io::Result<Process> {
    let mut stack = vec![0u128; STACK / 16];
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD | namespaces;
    let argument: *mut c_void = std::ptr::from_mut(context).cast();
    let mut group = Group::new();
    // SAFETY: sigfillset initialises `all`; both masks live through the block, in which no signal
    // handler can run on this thread, nor in the child while it shares our memory.
    // clone: `stack.as_mut_ptr_range().end` is the 16-byte aligned top of a stack that nobody else
    // uses; CLONE_VFORK suspends this thread until the child has run exec or _exit, so `context`,
    // `stack` and `pidfd` outlive the child's use of them, and nothing is used from both sides.
    // clone_into: the same.
    let cloned = unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let entered = group.as_ref().and_then(|group| {
            let folder = group.folder();
            child::clone_into(folder, &mut stack, flags, argument, &raw mut pidfd).ok()
        });
        let cloned = entered.map(Ok).unwrap_or_else(|| {
            // It goes on without one, and says so.
            group = None;
            let top: *mut c_void = stack.as_mut_ptr_range().end.cast();
            match libc::clone(child::run, top, flags, argument, &raw mut pidfd) {
                pid if pid < 0 => Err(io::Error::last_os_error()),
                pid => Ok(pid),
            }
        });
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        cloned
    };
    let pid = u32::try_from(cloned?).unwrap_or(0);
    // SAFETY: the clone succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that we own.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Process { pid, pidfd, _group: group })
}

impl crate::child::Process for Process {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn suspend(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::STOP);
    }

    /// Looks and takes nothing: the stop is reported for as long as it lasts.
    fn is_suspended(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let waited = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
        waited.is_ok_and(|status| status.is_some_and(|status| status.stopped()))
    }

    /// Blocks only while it is still alive, so wait for its descriptor to become readable first.
    fn reap(&self) -> ExitStatus {
        loop {
            let waited =
                rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
            match waited {
                Ok(Some(status)) => {
                    return match (status.exit_status(), status.terminating_signal()) {
                        (Some(status), _) => ExitStatus::Code(status),
                        (None, Some(signal)) => ExitStatus::Signal(signal),
                        (None, None) => ExitStatus::Unknown,
                    };
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return ExitStatus::Unknown,
            }
        }
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A pipe for a child's standard error: the reading end, and the writing end, which does not block
/// the child when nobody reads.
pub(crate) fn stderr_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pipe::PipeFlags;
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
}
