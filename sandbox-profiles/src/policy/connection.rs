//! What a connection process may do beyond what is common.

use super::common::SEND;
use super::{Condition, Syscall};

/// Added to [`super::COMMON`] and [`super::MEMORY`].
pub const CONNECTION: &[Syscall] = &[
    Syscall {
        name: "sendmsg",
        number: libc::SYS_sendmsg,
        conditions: &[(2, Condition::Is(SEND))],
        needed_by: "tube: BAR windows to the VMM; simulated dext: the memory behind a registration",
    },
    #[cfg(cordon_portable)]
    Syscall {
        name: "fcntl",
        number: libc::SYS_fcntl,
        conditions: &[
            (1, Condition::Is(libc::F_DUPFD_CLOEXEC as u64)),
            // The lowest number that it may have: above the standard streams.
            (2, Condition::Is(3)),
        ],
        needed_by: "tube over STREAM: a descriptor is kept until the receiver has it",
    },
];
