//! What `cordon serve` may do once it is confined.
//!
//! It is not a role's list: the server has threads, takes clients and makes memory and events, so the list
//! is longer. And its end would take every client's device away, so what is not on a list is refused with
//! `EPERM`, which costs a library that asks for something unforeseen no more than that. What nothing in
//! the program ever asks for, and an attacker would, kills: [`SERVER_NEVER`].

use super::{Condition, Syscall};

const NONE: u64 = libc::PROT_NONE as u64;
const READ: u64 = libc::PROT_READ as u64;
const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
/// How the C library makes a thread, and nothing else: neither a process nor a namespace.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// A row without conditions.
const fn any(name: &'static str, number: i64, needed_by: &'static str) -> Syscall {
    Syscall { name, number, conditions: &[], needed_by }
}

/// A row with conditions.
const fn if_(
    name: &'static str,
    number: i64,
    conditions: &'static [(u8, Condition)],
    needed_by: &'static str,
) -> Syscall {
    Syscall { name, number, conditions, needed_by }
}

/// System calls of `cordon serve`. Not among them: anything that opens a file, makes a socket that is
/// not a pair, connects, runs a program, makes a process or names one.
pub const SERVER: &[Syscall] = &[
    // Waiting.
    any("ppoll", libc::SYS_ppoll, "every thread's one wait"),
    #[cfg(target_arch = "x86_64")]
    any("poll", libc::SYS_poll, "the wait of what was taken from libraries"),
    any("futex", libc::SYS_futex, "locks, conditions and channels between threads"),
    any("clock_nanosleep", libc::SYS_clock_nanosleep, "pauses between two attempts"),
    any("nanosleep", libc::SYS_nanosleep, "pauses, of an older C library"),
    any("sched_yield", libc::SYS_sched_yield, "a caller that looks for its answer"),
    any(
        "clock_gettime",
        libc::SYS_clock_gettime,
        "deadlines, where no page of the kernel's has it",
    ),
    any("restart_syscall", libc::SYS_restart_syscall, "a wait that goes on after a stop signal"),
    // Clients, tubes, and the spawner.
    any("accept4", libc::SYS_accept4, "the next client of a listening socket"),
    any("recvmsg", libc::SYS_recvmsg, "clients, device processes, the spawner"),
    any("sendmsg", libc::SYS_sendmsg, "clients, device processes, the spawner: descriptors beside"),
    any("recvfrom", libc::SYS_recvfrom, "clients: bytes without descriptors"),
    if_(
        "sendto",
        libc::SYS_sendto,
        // No destination: only the connected peer can be written to.
        &[(4, Condition::Is(0))],
        "clients and device processes: bytes without descriptors",
    ),
    any("read", libc::SYS_read, "events, standard error of device processes"),
    any("readv", libc::SYS_readv, "clients: a message in parts"),
    any("write", libc::SYS_write, "events, the log, the control socket"),
    any("writev", libc::SYS_writev, "lines of the log in parts"),
    any("pwrite64", libc::SYS_pwrite64, "what a keeper has of a function: its record, in place"),
    if_(
        "splice",
        libc::SYS_splice,
        // From where they are: nothing has a position that could be changed.
        &[
            (1, Condition::Is(0)),
            (3, Condition::Is(0)),
            (5, Condition::Is(libc::SPLICE_F_NONBLOCK as u64)),
        ],
        "an answer, from the pipe that a keeper has too into its client's socket",
    ),
    if_(
        "kcmp",
        libc::SYS_kcmp,
        // KCMP_FILE.
        &[(2, Condition::Is(0))],
        "events of a client that is kept: is one of them that of another vector too",
    ),
    any("close", libc::SYS_close, "whatever is dropped"),
    any("shutdown", libc::SYS_shutdown, "a client that is sent away"),
    if_(
        "socketpair",
        libc::SYS_socketpair,
        &[(0, Condition::Is(libc::AF_UNIX as u64))],
        "the tube of a device process, and of what waits for signals",
    ),
    any("getsockopt", libc::SYS_getsockopt, "what kind of socket a client passed"),
    any(
        "setsockopt",
        libc::SYS_setsockopt,
        "timeouts of the control socket; looks into a client's",
    ),
    // Descriptors.
    any(
        "pipe2",
        libc::SYS_pipe2,
        "standard error of device processes; answers to clients that are kept",
    ),
    #[cfg(all(cordon_portable, target_arch = "x86_64"))]
    any("pipe", libc::SYS_pipe, "events between threads and processes, where they are pipes"),
    any("eventfd2", libc::SYS_eventfd2, "events between threads and processes"),
    any("memfd_create", libc::SYS_memfd_create, "the page of a lane"),
    any("ftruncate", libc::SYS_ftruncate, "the size of such a page"),
    any("fstat", libc::SYS_fstat, "what kind of descriptor a client passed, and its size"),
    if_(
        "newfstatat",
        libc::SYS_newfstatat,
        &[(3, Condition::Is(libc::AT_EMPTY_PATH as u64))],
        "the same, as an older C library asks",
    ),
    if_(
        "ioctl",
        libc::SYS_ioctl,
        &[(1, Condition::Is(libc::FIONBIO))],
        "sockets and events that must not block",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_DUPFD_CLOEXEC as u64))],
        "signallers: another descriptor of the same event",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_GETFD as u64))],
        "the runtime with debug assertions: is a descriptor open that it closes",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_SETFD as u64))],
        "what wakes whoever waits for signals: closed on exec",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_GETFL as u64))],
        "whether what a client passed would block, or may be written",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_SETFL as u64))],
        "sockets and events that must not block",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_GET_SEALS as u64))],
        "memory that a client passed: is it sealed against shrinking",
    ),
    if_(
        "fcntl",
        libc::SYS_fcntl,
        &[(1, Condition::Is(libc::F_ADD_SEALS as u64))],
        "the page of a lane, sealed before it is passed on",
    ),
    // Memory: nothing is ever executable, whoever it is of.
    if_("mmap", libc::SYS_mmap, &[(2, Condition::Is(NONE))], "stacks and heaps, reserved"),
    if_("mmap", libc::SYS_mmap, &[(2, Condition::Is(READ))], "windows that are only read"),
    if_("mmap", libc::SYS_mmap, &[(2, Condition::Is(READ_WRITE))], "heaps, windows, lanes"),
    if_("mprotect", libc::SYS_mprotect, &[(2, Condition::Is(NONE))], "guard pages of stacks"),
    if_("mprotect", libc::SYS_mprotect, &[(2, Condition::Is(READ))], "the heap, given back"),
    if_(
        "mprotect",
        libc::SYS_mprotect,
        &[(2, Condition::Is(READ_WRITE))],
        "stacks and heaps, taken",
    ),
    any("munmap", libc::SYS_munmap, "whatever is dropped"),
    any("madvise", libc::SYS_madvise, "the allocator and stacks of threads that ended"),
    any("brk", libc::SYS_brk, "the allocator"),
    // Threads.
    if_("clone", libc::SYS_clone, &[(0, Condition::Is(THREAD))], "a thread"),
    any("set_robust_list", libc::SYS_set_robust_list, "a thread that begins"),
    any("rseq", libc::SYS_rseq, "a thread that begins"),
    any("sched_getaffinity", libc::SYS_sched_getaffinity, "how many processors there are"),
    any("gettid", libc::SYS_gettid, "which thread a timer is for"),
    any("getpid", libc::SYS_getpid, "this process's number, in what it says of itself"),
    any("getrandom", libc::SYS_getrandom, "the seed of hash maps"),
    any("exit", libc::SYS_exit, "a thread that ends"),
    any("exit_group", libc::SYS_exit_group, "the end of the server"),
    if_(
        "prctl",
        libc::SYS_prctl,
        &[(0, Condition::Is(libc::PR_SET_NAME as u64))],
        "the name of a thread",
    ),
    if_(
        "prctl",
        libc::SYS_prctl,
        &[(0, Condition::Is(0x4155_5856))],
        "PR_GET_AUXV: how large a page is, asked once",
    ),
    if_(
        "prlimit64",
        libc::SYS_prlimit64,
        // Of this process, and no new one.
        &[(0, Condition::Is(0)), (2, Condition::Is(0))],
        "how many descriptors there may be, to share them out",
    ),
    // Signals and timers of its own.
    any("rt_sigaction", libc::SYS_rt_sigaction, "signals that end it, caught"),
    any("rt_sigprocmask", libc::SYS_rt_sigprocmask, "a thread that begins"),
    any("rt_sigreturn", libc::SYS_rt_sigreturn, "the end of a handler"),
    any("sigaltstack", libc::SYS_sigaltstack, "the runtime's handler for stack overflow"),
    any("timer_create", libc::SYS_timer_create, "events of clients that must hold nobody up"),
    any("timer_settime", libc::SYS_timer_settime, "the same"),
    any("timer_delete", libc::SYS_timer_delete, "the same, when its thread ends"),
    // Its children, by descriptors that the spawner passes.
    any("waitid", libc::SYS_waitid, "the end of a device process, and whether one was stopped"),
    any("pidfd_send_signal", libc::SYS_pidfd_send_signal, "a device process that is to end"),
];

/// What kills: each is the step that an attack would take next, and none is a library's to take unasked.
/// Opening a file is not among them, since libraries try that and go on without; it is refused.
pub const SERVER_NEVER: &[Syscall] = &[
    any("execve", libc::SYS_execve, "nobody: no program is run"),
    any("execveat", libc::SYS_execveat, "nobody: no program is run"),
    any("ptrace", libc::SYS_ptrace, "nobody: no process is traced"),
    any(
        "process_vm_readv",
        libc::SYS_process_vm_readv,
        "nobody: memory is read where it is shared",
    ),
    any("process_vm_writev", libc::SYS_process_vm_writev, "nobody: memory of others is theirs"),
    any("pidfd_open", libc::SYS_pidfd_open, "nobody: the spawner passes them"),
    any("pidfd_getfd", libc::SYS_pidfd_getfd, "nobody: descriptors are sent, not taken"),
    any("bpf", libc::SYS_bpf, "nobody: no programs for the kernel"),
    any("perf_event_open", libc::SYS_perf_event_open, "nobody: nothing is measured here"),
    any("userfaultfd", libc::SYS_userfaultfd, "nobody: no fault is held up"),
    any("io_uring_setup", libc::SYS_io_uring_setup, "nobody: it would get past this list"),
    any("unshare", libc::SYS_unshare, "nobody: namespaces were made before"),
    any("setns", libc::SYS_setns, "nobody: namespaces were made before"),
    any("mount", libc::SYS_mount, "nobody: the root is empty and stays so"),
    any("umount2", libc::SYS_umount2, "nobody: the root is empty and stays so"),
    any("pivot_root", libc::SYS_pivot_root, "nobody: the root is empty and stays so"),
    any("chroot", libc::SYS_chroot, "nobody: the root is empty and stays so"),
    any("open_by_handle_at", libc::SYS_open_by_handle_at, "nobody: no file is opened"),
    any("keyctl", libc::SYS_keyctl, "nobody: no keys"),
    any("add_key", libc::SYS_add_key, "nobody: no keys"),
    any("init_module", libc::SYS_init_module, "nobody: no modules of the kernel"),
    any("finit_module", libc::SYS_finit_module, "nobody: no modules of the kernel"),
    any("kexec_load", libc::SYS_kexec_load, "nobody: no other kernel"),
    any("setuid", libc::SYS_setuid, "nobody: it is who it is"),
    any("setresuid", libc::SYS_setresuid, "nobody: it is who it is"),
    any("personality", libc::SYS_personality, "nobody: it would make memory executable"),
];

/// What is answered as by a kernel that does not know it: the C library then makes threads by `clone`, whose
/// flags are in a register and not in memory, where no filter sees them.
pub const SERVER_UNKNOWN: &[Syscall] =
    &[any("clone3", libc::SYS_clone3, "the C library, which goes on without")];
