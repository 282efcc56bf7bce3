//! What a function process may do once it is confined.

use super::{Condition, Syscall};

const READ: u64 = libc::PROT_READ as u64;
const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const OWN: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const SHARED: u64 = libc::MAP_SHARED as u64;
const MAY_MOVE: u64 = libc::MREMAP_MAYMOVE as u64;

/// System calls of a function process (and of a lister, and the base of a connection process).
/// Not among them: anything that opens, creates, runs, signals or names another process; and
/// `sendmsg`, so that no descriptor can leave.
pub const FUNCTION: &[Syscall] = &[
    Syscall {
        name: "ppoll",
        number: libc::SYS_ppoll,
        conditions: &[],
        needed_by: "the one wait of the main loop: tube, lane, completion event, dext",
    },
    Syscall {
        name: "recvmsg",
        number: libc::SYS_recvmsg,
        conditions: &[],
        needed_by: "tube: requests with signallers beside them; simulated dext: replies",
    },
    Syscall {
        name: "sendto",
        number: libc::SYS_sendto,
        // No destination: only the connected peer can be written to.
        conditions: &[(4, Condition::Is(0))],
        needed_by: "tube: replies; simulated dext: calls. Cannot carry descriptors",
    },
    Syscall {
        name: "read",
        number: libc::SYS_read,
        conditions: &[],
        needed_by: "completion event and lane: taking the signal",
    },
    Syscall {
        name: "write",
        number: libc::SYS_write,
        conditions: &[],
        needed_by: "signallers: interrupts to the VMM, callers in the lane that sleep; standard error: log lines",
    },
    Syscall {
        name: "close",
        number: libc::SYS_close,
        conditions: &[],
        needed_by: "signallers that the VMM takes back; everything at the end",
    },
    // Each row is one way of mapping, whole: where the kernel likes, never executable (P7.6), and with
    // no flag beside the one that says what it is. So there is no memory that a limit does not count
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
        needed_by: "the allocator, for large blocks: counted by the limit of private memory",
    },
    Syscall {
        name: "mmap",
        number: libc::SYS_mmap,
        conditions: &[
            (0, Condition::Is(0)),
            (2, Condition::Is(READ_WRITE)),
            (3, Condition::Is(SHARED)),
        ],
        needed_by: "windows, of descriptors: guest memory, BARs, the interrupt page, the lane",
    },
    Syscall {
        name: "mmap",
        number: libc::SYS_mmap,
        conditions: &[(0, Condition::Is(0)), (2, Condition::Is(READ)), (3, Condition::Is(SHARED))],
        needed_by: "windows that are only read: guest memory that the device may not write",
    },
    Syscall {
        name: "munmap",
        number: libc::SYS_munmap,
        conditions: &[],
        needed_by: "the allocator; windows that are dropped",
    },
    Syscall {
        name: "mremap",
        number: libc::SYS_mremap,
        // Of a length: without one it would map shared memory a second time. To no chosen address,
        // and leaving nothing behind.
        conditions: &[(1, Condition::Not(0)), (3, Condition::Is(MAY_MOVE))],
        needed_by: "the allocator, growing large blocks; cannot change protection",
    },
    Syscall { name: "brk", number: libc::SYS_brk, conditions: &[], needed_by: "the allocator" },
    Syscall {
        name: "fcntl",
        number: libc::SYS_fcntl,
        conditions: &[(1, Condition::Is(libc::F_GET_SEALS as u64))],
        needed_by: "shared memory from a peer: is it sealed against shrinking",
    },
    Syscall {
        name: "fcntl",
        number: libc::SYS_fcntl,
        conditions: &[(1, Condition::Is(libc::F_GETFD as u64))],
        needed_by: "the runtime with debug assertions: is a descriptor open that it closes",
    },
    Syscall {
        name: "fstat",
        number: libc::SYS_fstat,
        conditions: &[],
        needed_by: "shared memory from a peer: how large is it",
    },
    Syscall {
        name: "clock_gettime",
        number: libc::SYS_clock_gettime,
        conditions: &[],
        needed_by: "deadlines, where the clock is not readable without a call",
    },
    Syscall {
        name: "restart_syscall",
        number: libc::SYS_restart_syscall,
        conditions: &[],
        needed_by: "ppoll, continued after a stop signal",
    },
    Syscall {
        name: "rt_sigreturn",
        number: libc::SYS_rt_sigreturn,
        conditions: &[],
        needed_by: "the runtime's handler for stack overflow; the one that interrupts signals that wait",
    },
    Syscall {
        name: "timer_settime",
        number: libc::SYS_timer_settime,
        conditions: &[],
        needed_by: "signallers: a VMM's event that is full holds nobody up. Makes no timer",
    },
    Syscall {
        name: "timer_delete",
        number: libc::SYS_timer_delete,
        conditions: &[],
        needed_by: "the timer of the row above, at the end",
    },
    Syscall {
        name: "rt_sigaction",
        number: libc::SYS_rt_sigaction,
        conditions: &[(0, Condition::Is(libc::SIGSEGV as u64))],
        needed_by: "the runtime's handler for stack overflow, stepping aside for other faults",
    },
    Syscall {
        name: "sigaltstack",
        number: libc::SYS_sigaltstack,
        conditions: &[],
        needed_by: "the runtime, taking down its signal stack at exit",
    },
    Syscall {
        name: "exit_group",
        number: libc::SYS_exit_group,
        conditions: &[],
        needed_by: "ending the process, in order or not",
    },
];
