//! What a function process may do once it is confined.

use super::{Condition, Syscall};

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// System calls of a function process (and of a lister, and the base of a connection process).
/// Not among them: anything that opens, creates, runs, signals or names another process; and
/// `sendmsg`, so that no descriptor can leave.
pub const FUNCTION: &[Syscall] = &[
    Syscall {
        name: "ppoll",
        number: libc::SYS_ppoll,
        conditions: &[],
        needed_by: "the one wait of the main loop: tube, completion event, dext",
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
        needed_by: "completion event: taking the signal",
    },
    Syscall {
        name: "write",
        number: libc::SYS_write,
        conditions: &[],
        needed_by: "signallers: interrupts to the VMM; standard error: log lines",
    },
    Syscall {
        name: "close",
        number: libc::SYS_close,
        conditions: &[],
        needed_by: "signallers that the VMM takes back; everything at the end",
    },
    Syscall {
        name: "mmap",
        number: libc::SYS_mmap,
        conditions: &[(2, Condition::Without(PROT_EXEC))],
        needed_by: "the allocator; windows. Never executable (P7.6)",
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
        conditions: &[],
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
