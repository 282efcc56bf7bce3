//! Linux: a child in namespaces of its own by `clone`, watched through its pidfd.
//!
//! A spawner makes *siblings*: their parent is its own parent, which reaps them, and whose end is
//! theirs. Where they are to end up as another user, two ids are mapped in their user namespace, which
//! only the spawner may do: its own, which opens what is to be opened, and the other.
#![expect(unsafe_code, reason = "clone and exec with a closed descriptor set")]

mod cgroup;
mod child;
mod cure;
mod passed;
mod syscalls;

use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use ipc::Deadline;
use ipc::wire::spawn::User;
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::{CURE_OF_NULL, SpawnError, Step, Words, cure_of_run, null_device};
use crate::child::launch::Isolation;
use crate::child::{ExitStatus, Process as _, Start};
use cgroup::Group;
pub(crate) use cgroup::try_one as control_group;
use child::Context;
pub(crate) use cure::cure;
pub(crate) use passed::{keeper_socket, passed_on};
pub(crate) use syscalls::call_name;

thread_local! {
    static NETWORK_IS_EMPTY: Cell<bool> = const { Cell::new(false) };
}

/// Moves the calling thread, which starts children, into an empty network namespace, which they inherit, if
/// this process may do that. If it may not, each child makes one of its own.
pub(crate) fn leave_network() {
    // SAFETY: unsafe because unsharing the descriptor table surprises other threads; this flag does not.
    let left = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    NETWORK_IS_EMPTY.set(left.is_ok());
}

/// Whether a child of this thread finds an empty network namespace.
pub(crate) fn has_left_network() -> bool {
    NETWORK_IS_EMPTY.get()
}

/// A running child. Not reaped on drop: see [`Process::reap`].
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    /// Removed with it.
    group: Option<Group>,
}

const STACK: usize = 64 * 1024;
/// How long a child may take from its birth to its program, where nobody has to wait for it.
const BIRTH: Duration = Duration::from_secs(5);

/// Whose child is made, and who it ends up as.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Birth<'b> {
    /// It is a sibling of this process, not a child.
    pub(crate) sibling: bool,
    /// Another user, which this process must be allowed to map.
    pub(crate) user: Option<User>,
    /// The file that is run, where it is not run by its path.
    pub(crate) file: Option<BorrowedFd<'b>>,
}

/// Starts a child.
pub(crate) fn spawn(start: &Start<'_>) -> Result<Process, SpawnError> {
    // It reaps its own.
    spawn_as(start, Birth::default(), &mut Vec::new())
}

/// Starts a process. Siblings that were made and did not come to run are put in `strays`: their parent
/// must reap them.
pub(crate) fn spawn_as(
    start: &Start<'_>,
    birth: Birth<'_>,
    strays: &mut Vec<OwnedFd>,
) -> Result<Process, SpawnError> {
    let _ = start.inbox;
    let isolated = libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
    match clone(start, isolated, birth, strays) {
        // One that is to be another user is not started as this one.
        Err(SpawnError { step: Step::Namespaces | Step::MapIds, .. })
            if start.isolation == Isolation::Preferred && birth.user.is_none() =>
        {
            clone(start, 0, birth, strays)
        }
        other => other,
    }
}

/// Starts a child in a user namespace, and perhaps a pid namespace, or in none, and in no others.
pub(crate) fn spawn_in(start: &Start<'_>, user: bool, pid: bool) -> Result<Process, SpawnError> {
    let flag = |is: bool, flag| if is { flag } else { 0 };
    let namespaces = flag(user, libc::CLONE_NEWUSER) | flag(pid, libc::CLONE_NEWPID);
    clone(start, namespaces, Birth::default(), &mut Vec::new())
}

/// A process that another one started as a child of this one.
pub(crate) fn adopt(pid: u32, pidfd: OwnedFd) -> Process {
    Process { pid, pidfd, group: None }
}

fn clone(
    start: &Start<'_>,
    namespaces: c_int,
    birth: Birth<'_>,
    strays: &mut Vec<OwnedFd>,
) -> Result<Process, SpawnError> {
    let failed = |step| move |error| SpawnError::new(step, start.program, error);
    let null = null_device().map_err(failed(Step::NullDevice))?;
    // Out of the way of 0 to 3, so that moving one there does not close another.
    let above = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, 10)
            .map_err(|error| failed(Step::Duplicate)(error.into()))
    };
    let (null, stderr, tube) = (above(null.as_fd())?, above(start.stderr)?, above(start.tube)?);
    let file = birth.file.map(above).transpose()?;
    let words = Words::of(start).map_err(failed(Step::CommandLine))?;
    let gate = birth.user.map(|user| Gate::new(user).map_err(failed(Step::Prepare))).transpose()?;
    let own_maps = namespaces != 0 && gate.is_none();
    let mut context = Context {
        arguments: Words::null_terminated(&words.arguments),
        environment: Words::null_terminated(&words.environment),
        program: words.program.clone(),
        file: file.as_ref().map(|file| file.as_raw_fd()),
        descriptors: [
            (null.as_raw_fd(), 0),
            (null.as_raw_fd(), 1),
            (stderr.as_raw_fd(), 2),
            (tube.as_raw_fd(), 3),
        ],
        maps: if own_maps { maps().map_err(failed(Step::MapIds))? } else { Vec::new() },
        gate: gate.as_ref().map(|gate| (gate.opens.0.as_raw_fd(), gate.opens.1.as_raw_fd())),
        failed: None,
    };
    let parent = if birth.sibling { libc::CLONE_PARENT } else { 0 };
    let process = start_child(&mut context, namespaces | parent, gate).map_err(|error| {
        failed(if namespaces == 0 { Step::Clone } else { Step::Namespaces })(error)
    })?;
    match context.failed {
        None => Ok(process),
        Some((step, errno)) => {
            process.kill();
            if birth.sibling {
                strays.push(process.pidfd);
            } else {
                let _ = process.reap();
            }
            Err(failed(step)(io::Error::from_raw_os_error(errno)))
        }
    }
}

/// What holds a child until its parent has mapped its ids, and tells when its program runs: such a
/// child cannot have its parent wait as others do.
struct Gate {
    user: User,
    /// Written to when the ids are mapped.
    opens: (OwnedFd, OwnedFd),
    /// Closed by exec, or by its end.
    runs: (OwnedFd, OwnedFd),
}

impl Gate {
    fn new(user: User) -> io::Result<Self> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            // As with everything that the child has before it puts its descriptors in place.
            let above = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 10);
            Ok((above(read)?, above(write)?))
        };
        Ok(Self { user, opens: pipe()?, runs: pipe()? })
    }

    /// Maps the ids of `process`, lets it go on, and waits until it shares this memory no more. One
    /// that takes too long is killed.
    fn open(self, process: &Process) {
        let Self { user, opens: (read, open), runs: (runs, running) } = self;
        drop((read, running));
        // The end of the pipe is for a child whose parent has died.
        let mapped = map_two(process.pid, user).is_ok();
        let _ = rustix::io::write(&open, &[u8::from(mapped)]);
        if !ipc::poll::wait_readable(&runs, Deadline::after(BIRTH)).unwrap_or(false) {
            crate::child::Process::kill(process);
            let _ = ipc::poll::wait(&[ipc::poll::Source::readable(&runs, ())], None);
        }
    }
}

/// Two ids: this process's own as the root of the namespace, and the user that it ends up as.
fn map_two(pid: u32, user: User) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let write = |name: &str, text: String| std::fs::write(format!("/proc/{pid}/{name}"), text);
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1\n1 {} 1\n", user.uid))?;
    write("gid_map", format!("0 {gid} 1\n1 {} 1\n", user.gid))
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

fn start_child(context: &mut Context, more: c_int, gate: Option<Gate>) -> io::Result<Process> {
    let mut stack = vec![0u128; STACK / 16];
    let mut pidfd: c_int = -1;
    let waits = if gate.is_none() { libc::CLONE_VFORK } else { 0 };
    let flags = libc::CLONE_VM | waits | libc::CLONE_PIDFD | libc::SIGCHLD | more;
    let argument: *mut c_void = std::ptr::from_mut(context).cast();
    let mut group = Group::new();
    // SAFETY: sigfillset initialises `all`; both masks live through the block, in which no signal
    // handler can run on this thread, nor in the child while it shares our memory.
    // clone: `stack.as_mut_ptr_range().end` is the 16-byte aligned top of a stack that nobody else
    // uses; CLONE_VFORK suspends this thread until the child has run exec or _exit, so `context`,
    // `stack` and `pidfd` outlive the child's use of them, and nothing is used from both sides. Without
    // it, where there is a gate, this thread waits in `Gate::open` below for as long: until then the
    // child waits for it, or it for the child, so that they never use the thread's errno at once.
    // clone_into: the same.
    unsafe {
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
        let made = cloned.map(|pid| {
            // SAFETY: the clone succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor of ours.
            let pidfd = OwnedFd::from_raw_fd(pidfd);
            let process = Process { pid: u32::try_from(pid).unwrap_or(0), pidfd, group };
            if let Some(gate) = gate {
                gate.open(&process);
            }
            process
        });
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        made
    }
}

/// The control group of a child that another process looks after; removed on drop.
pub(crate) struct ChildGroup {
    _group: Option<Group>,
}

/// Has the calling process, which has one thread, be a spawner: a session of its own, so that what is
/// meant for the one of a terminal is not for it; no signal but those that cannot be blocked; no core; no
/// privileges by exec; killed with its parent.
pub(crate) fn become_spawner() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit};
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"cordon-spawner");
    // SAFETY: sigfillset initialises the set that is passed on; the old one is not asked for.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Gives up supplementary groups, which every child would have, and is `user` as far as others may signal
/// it: the kernel kills a process for the end of its parent only if the parent might have.
pub(crate) fn be_killed_by(user: User) -> io::Result<()> {
    use rustix::process::{Gid, Uid, getegid, geteuid};
    let (uid, gid) = (geteuid(), getegid());
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::from_raw(user.gid), gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(Uid::from_raw(user.uid), uid, uid)?)
}

impl Process {
    /// What is left of it here when another process is to look after it: its number and descriptor,
    /// and what is to be dropped once it has ended.
    pub(crate) fn give_up(self) -> (u32, OwnedFd, ChildGroup) {
        (self.pid, self.pidfd, ChildGroup { _group: self.group })
    }
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

/// A clock that never goes back, to within some milliseconds: the cheapest there is.
pub(crate) fn coarse_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    Duration::try_from(now).unwrap_or_default()
}

/// A pipe for a child's standard error: the reading end, and the writing end, which does not block
/// the child when nobody reads.
pub(crate) fn stderr_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pipe::PipeFlags;
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
}
