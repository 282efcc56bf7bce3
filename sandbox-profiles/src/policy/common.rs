//! What every role may do once it is confined.

use super::{Condition, READ_WRITE, Syscall};

/// Private memory, as an allocator asks for it.
const OWN: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
/// How everything is received, and how everything is sent: without waiting, without a signal when the
/// peer is gone.
const RECEIVE: u64 = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
pub(super) const SEND: u64 = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;

/// System calls of every role.
///
/// What is not among them for a reason of its own, beside anything that opens, creates, runs, signals or
/// names another process:
///
/// - `restart_syscall`: the only wait is `ppoll`, which the kernel restarts as itself after a stop signal, on
///   every architecture;
/// - `rt_sigaction`: the handlers for faults were installed before, so that the kernel takes them away when it
///   calls them (SA_RESETHAND);
/// - `mremap`: an allocator calls it to grow or shrink a block that is a mapping of its own, of 128 KiB and
///   more (glibc, musl). No role has such a block that is resized: the longest message is that long, its
///   buffer is made once, and all that is kept by number is kept in trees;
/// - `rt_sigprocmask` and `tgkill`, by which `abort` ends a process: a panic ends it by `exit_group`.
pub const COMMON: &[Syscall] = &[
    Syscall {
        name: "ppoll",
        number: libc::SYS_ppoll,
        // No change of which signals are blocked.
        conditions: &[(3, Condition::Is(0))],
        needed_by: "the one wait of the main loop: tube, lane, completion event, dext",
    },
    Syscall {
        name: "recvmsg",
        number: libc::SYS_recvmsg,
        conditions: &[(2, Condition::Is(RECEIVE))],
        needed_by: "tube: requests with signallers beside them; simulated dext: replies",
    },
    Syscall {
        name: "sendto",
        number: libc::SYS_sendto,
        // No destination: only the connected peer can be written to.
        conditions: &[(3, Condition::Is(SEND)), (4, Condition::Is(0)), (5, Condition::Is(0))],
        needed_by: "tube: replies; simulated dext: calls. Cannot carry descriptors",
    },
    Syscall {
        name: "write",
        number: libc::SYS_write,
        conditions: &[],
        needed_by: "standard error: log lines, last words; signallers: interrupts to the VMM, callers in the \
                    lane that sleep",
    },
    Syscall {
        name: "close",
        number: libc::SYS_close,
        conditions: &[],
        needed_by: "descriptors that are taken back; everything at the end",
    },
    // Each row of mmap is one way of mapping, whole: where the kernel likes, never executable (P7.6), and
    // with no flag beside the one that says what it is. So there is no memory that a limit does not count
    // (MAP_SHARED with MAP_ANONYMOUS, MAP_GROWSDOWN), none that is taken at once (MAP_POPULATE,
    // MAP_LOCKED, MAP_HUGETLB), and no choice of addresses, which would spread page tables.
    Syscall {
        name: "mmap",
        number: libc::SYS_mmap,
        conditions: &[
            (0, Condition::Is(0)),
            (2, Condition::Is(READ_WRITE)),
            (3, Condition::Is(OWN)),
        ],
        needed_by: "the allocator, for large blocks and where brk finds no room: counted by the limit of \
                    private memory",
    },
    Syscall {
        name: "munmap",
        number: libc::SYS_munmap,
        conditions: &[],
        needed_by: "the allocator; windows that are dropped; the runtime's signal stack at the end",
    },
    Syscall {
        name: "brk",
        number: libc::SYS_brk,
        conditions: &[],
        needed_by: "the allocator, of glibc and of musl: counted by the limit of private memory",
    },
    // A build with debug assertions only: one without has no such call, and no such row.
    #[cfg(debug_assertions)]
    Syscall {
        name: "fcntl",
        number: libc::SYS_fcntl,
        conditions: &[(1, Condition::Is(libc::F_GETFD as u64))],
        needed_by: "the runtime with debug assertions: is a descriptor open that it closes",
    },
    Syscall {
        name: "clock_gettime",
        number: libc::SYS_clock_gettime,
        conditions: &[(0, Condition::Is(libc::CLOCK_MONOTONIC as u64))],
        needed_by: "deadlines, where the vDSO cannot read the clock: a time stamp counter that the kernel \
                    does not trust (x86-64), a timer with an erratum (arm64), a libc that finds no vDSO",
    },
    Syscall {
        name: "rt_sigreturn",
        number: libc::SYS_rt_sigreturn,
        conditions: &[],
        needed_by: "every handler, when it returns: of the timer that interrupts signals that wait (function \
                    process), and of a fault, which is told and then made again. By the restorer of the libc \
                    on x86-64, by the vDSO's on arm64",
    },
    Syscall {
        name: "sigaltstack",
        number: libc::SYS_sigaltstack,
        // The old one is not asked for.
        conditions: &[(1, Condition::Is(0))],
        needed_by: "the runtime, taking down its signal stack at exit",
    },
    Syscall {
        name: "exit_group",
        number: libc::SYS_exit_group,
        conditions: &[],
        needed_by: "ending the process, in order or not",
    },
];
