//! Linux: a child in namespaces of its own by `clone`, watched through its pidfd.
#![expect(unsafe_code, reason = "clone and exec with a closed descriptor set")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::Words;
use crate::child::launch::Isolation;
use crate::child::{ExitStatus, Process as _, Start};

/// A running child. Not reaped on drop: see [`Process::reap`].
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// Everything the child needs between clone and exec, made before: it shares this memory and may
/// not allocate.
struct Context {
    program: CString,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    descriptors: [(c_int, c_int); 4],
    /// Files to write first: the maps of the user namespace.
    maps: Vec<(CString, Vec<u8>)>,
    error: c_int,
}

const STACK: usize = 64 * 1024;

/// Starts a child.
pub(crate) fn spawn(start: &Start<'_>) -> io::Result<Process> {
    let _ = start.inbox;
    let isolated = libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
    match clone(start, isolated) {
        Err(_) if start.isolation == Isolation::Preferred => clone(start, 0),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSPC)) => {
            Err(io::Error::new(
                error.kind(),
                format!(
                    "no user namespace for the confined process: {error} (the system may forbid them \
                 to ordinary users: see user.max_user_namespaces and \
                 kernel.unprivileged_userns_clone; --sandbox=relaxed starts without)"
                ),
            ))
        }
        other => other,
    }
}

fn clone(start: &Start<'_>, namespaces: c_int) -> io::Result<Process> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    // Out of the way of 0 to 3, so that moving one there does not close another.
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 10);
    let (null, stderr, tube) = (above(null.as_fd())?, above(start.stderr)?, above(start.tube)?);
    let words = Words::of(start)?;
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
        maps: if namespaces == 0 { Vec::new() } else { maps()? },
        error: 0,
    };
    start_child(&mut context, namespaces)
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
    let pid;
    // SAFETY: sigfillset initialises `all`; both masks live through the block, in which no signal
    // handler can run on this thread, nor in the child while it shares our memory.
    // clone: `stack.as_mut_ptr_range().end` is the 16-byte aligned top of a stack that nobody else
    // uses; CLONE_VFORK suspends this thread until the child has run exec or _exit, so `context`,
    // `stack` and `pidfd` outlive the child's use of them, and nothing is used from both sides.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top: *mut c_void = stack.as_mut_ptr_range().end.cast();
        let argument: *mut c_void = std::ptr::from_mut(context).cast();
        pid = libc::clone(child, top, flags, argument, &raw mut pidfd);
        let cloned = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if pid < 0 {
            return Err(cloned);
        }
    }
    // SAFETY: clone succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that we own.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let process = Process { pid: u32::try_from(pid).unwrap_or(0), pidfd };
    if context.error != 0 {
        let error = io::Error::from_raw_os_error(context.error);
        process.kill();
        let _ = process.reap();
        let program = context.program.to_string_lossy();
        return Err(io::Error::new(error.kind(), format!("cannot run {program}: {error}")));
    }
    Ok(process)
}

/// The child between clone and exec. Only system calls; every failure ends it with the errno left
/// in the context, which the parent reads.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the context that `start_child` passed; the parent is suspended until
    // exec or _exit, so this is the only user. All pointers in it are to memory of the parent that
    // lives until then, and the pointer arrays end in null. The calls are async-signal-safe.
    unsafe {
        let context = &mut *argument.cast::<Context>();
        match prepare_and_exec(context) {
            0 => context.error = libc::EINVAL,
            error => context.error = error,
        }
        libc::_exit(127)
    }
}

/// # Safety
/// As in [`child`], which is its only caller.
unsafe fn prepare_and_exec(context: &Context) -> c_int {
    // SAFETY: errno's location is always valid.
    let errno = || unsafe { *libc::__errno_location() };
    for (file, content) in &context.maps {
        // SAFETY: a null-terminated path and a buffer of the length given.
        unsafe {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return errno();
            }
            if libc::write(fd, content.as_ptr().cast(), content.len()) < 0 {
                return errno();
            }
            libc::close(fd);
        }
    }
    for (from, to) in context.descriptors {
        // SAFETY: plain descriptor numbers; `from` is above 9, so CLOEXEC is cleared on `to`.
        if unsafe { libc::dup2(from, to) } < 0 {
            return errno();
        }
    }
    // SAFETY: plain numbers; an empty signal set is valid zeroed; exec gets null-terminated arrays
    // of null-terminated strings.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0) < 0 {
            return errno();
        }
        libc::setsid();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(
            context.program.as_ptr(),
            context.arguments.as_ptr(),
            context.environment.as_ptr(),
        );
    }
    errno()
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
