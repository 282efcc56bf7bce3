//! This process's way to the kernel process: one connection that is the task's life, and one for each thread
//! that calls.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use cordon_ipc::{Deadline, Handles, Tube};

use crate::codes::{Code, kern};
use crate::fail;
use crate::wire::{Origin, Reply, Request};

/// Descriptors from here on are not the program's.
pub(crate) const FIRST_RESERVED: libc::c_int = darwin_abi::HIDDEN;

struct Process {
    /// Where the kernel is.
    kernel: String,
    task: u64,
    /// Which process this is of: a fork begins again.
    pid: u32,
    /// The task lives for as long as it is open: closed by the end of the process.
    life: Tube,
}

static PROCESS: Mutex<Option<Process>> = Mutex::new(None);
/// This is a fork of the process that began.
static FORKED: AtomicBool = AtomicBool::new(false);
/// The descriptor of [`Process::life`].
static LIFE: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    static CONNECTION: RefCell<Option<(u64, Tube)>> = const { RefCell::new(None) };
}

/// Moves a descriptor to where no program of ours has any.
pub(crate) fn reserved(fd: OwnedFd) -> OwnedFd {
    // SAFETY: a descriptor of ours, and plain numbers.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST_RESERVED) };
    if high < 0 {
        let error = std::io::Error::last_os_error();
        fail::not_simulated(&format!("a limit of descriptors below {FIRST_RESERVED} ({error})"));
    }
    // SAFETY: a new descriptor, owned from here on.
    unsafe { OwnedFd::from_raw_fd(high) }
}

fn connect(kernel: &str) -> Tube {
    match crate::server::connect(kernel) {
        Ok(socket) => Tube::from_fd(reserved(socket)),
        Err(error) => fail::not_simulated(&format!("going on without the kernel ({error})")),
    }
}

fn exchange(tube: &mut Tube, request: &Request, files: &[BorrowedFd<'_>]) -> (Reply, Handles) {
    let forever = Deadline::after(Duration::MAX);
    let sent = tube.send(1, request, files, forever);
    match sent.and_then(|()| tube.receive::<Reply>(forever)) {
        Ok(received) => (received.message, received.handles),
        Err(error) => fail::not_simulated(&format!("going on without the kernel ({error})")),
    }
}

fn begin(kernel: &str, origin: Origin) -> Process {
    let mut life = connect(kernel);
    let pid = std::process::id();
    match exchange(&mut life, &Request::Start { pid, origin }, &[]) {
        (Reply::Number(task), _) => {
            LIFE.store(life.as_fd().as_raw_fd(), Ordering::Relaxed);
            Process { kernel: kernel.to_owned(), task, pid, life }
        }
        (other, _) => fail::not_simulated(&format!("a task of no origin ({other:?})")),
    }
}

/// Runs in the copy of a fork, which must not keep the parent's task alive.
extern "C" fn forked() {
    FORKED.store(true, Ordering::Relaxed);
    let life = LIFE.swap(-1, Ordering::Relaxed);
    if life >= 0 {
        // SAFETY: the copy's own descriptor, which nobody uses any more: see `task`.
        unsafe { libc::close(life) };
    }
}

/// Begins as a task of the kernel called `kernel`.
pub(crate) fn start(kernel: &str, birth: Option<u64>) {
    let origin = birth.map_or(Origin::First, Origin::Birth);
    *PROCESS.lock().unwrap_or_else(PoisonError::into_inner) = Some(begin(kernel, origin));
    // SAFETY: a function that lives for good and only stores a flag.
    unsafe { libc::pthread_atfork(None, None, Some(forked)) };
}

/// The kernel's name.
pub(crate) fn kernel() -> String {
    let process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    match &*process {
        Some(process) => process.kernel.clone(),
        None => fail::not_simulated("a call of Mach's before the process began"),
    }
}

/// The kernel's name and this process's task, which is another one after a fork.
fn task() -> (String, u64) {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = &*process else {
        fail::not_simulated("a call of Mach's before the process began");
    };
    if FORKED.load(Ordering::Relaxed) && known.pid != std::process::id() {
        let new = begin(&known.kernel, Origin::Fork(known.task));
        if let Some(parents) = process.replace(new) {
            // `forked` closed its descriptor.
            std::mem::forget(parents.life);
        }
    }
    match &*process {
        Some(process) => (process.kernel.clone(), process.task),
        None => fail::not_simulated("a call of Mach's before the process began"),
    }
}

/// Asks the kernel, and ends as it says where it does.
pub(crate) fn ask_with(request: &Request, files: &[BorrowedFd<'_>]) -> (Reply, Handles) {
    let (kernel, task) = task();
    let fresh = || {
        let mut tube = connect(&kernel);
        exchange(&mut tube, &Request::Thread { task }, &[]);
        tube
    };
    let answered = CONNECTION.try_with(|connection| {
        let mut connection = connection.borrow_mut();
        if connection.as_ref().is_none_or(|(of, _)| *of != task) {
            *connection = Some((task, fresh()));
        }
        connection.as_mut().map(|(_, tube)| exchange(tube, request, files))
    });
    // A thread that is ending has no place of its own any more.
    let answered = answered.ok().flatten();
    let (reply, handles) = answered.unwrap_or_else(|| exchange(&mut fresh(), request, files));
    match reply {
        Reply::Guard(what) => fail::guard_exception(&what),
        Reply::NotSimulated(what) => fail::not_simulated(&what),
        reply => (reply, handles),
    }
}

/// As [`ask_with`], without descriptors.
pub(crate) fn ask(request: &Request) -> Reply {
    ask_with(request, &[]).0
}

/// The code of an answer that carries nothing else.
pub(crate) fn code(request: &Request) -> Code {
    match ask(request) {
        Reply::Code(code) => code,
        Reply::Done { .. } => kern::SUCCESS,
        other => fail::not_simulated(&format!("an answer to {request:?}: {other:?}")),
    }
}
