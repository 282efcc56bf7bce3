//! What the roles may do that map memory of others: connection and function processes.

use super::{Condition, READ_WRITE, Syscall};

const READ: u64 = libc::PROT_READ as u64;
const SHARED: u64 = libc::MAP_SHARED as u64;

/// Added to [`super::COMMON`].
pub const MEMORY: &[Syscall] = &[
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
        name: "fcntl",
        number: libc::SYS_fcntl,
        conditions: &[(1, Condition::Is(libc::F_GET_SEALS as u64))],
        needed_by: "shared memory from a peer: is it sealed against shrinking",
    },
    Syscall {
        name: "fstat",
        number: libc::SYS_fstat,
        conditions: &[],
        needed_by: "shared memory from a peer: how large is it",
    },
];
