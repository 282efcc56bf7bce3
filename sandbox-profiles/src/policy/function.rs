//! What a function process may do beyond what is common.

use super::{Condition, Syscall};

/// Added to [`super::COMMON`] and [`super::MEMORY`]. Not among them: `sendmsg`, so that no descriptor can
/// leave.
pub const FUNCTION: &[Syscall] = &[
    Syscall {
        name: "read",
        number: libc::SYS_read,
        conditions: &[],
        needed_by: "completion event and lane: taking the signal",
    },
    Syscall {
        name: "timer_settime",
        number: libc::SYS_timer_settime,
        // From now on, not until a time of day; the old setting is not asked for.
        conditions: &[(1, Condition::Is(0)), (3, Condition::Is(0))],
        needed_by: "signallers: a VMM's event that is full holds nobody up. Makes no timer",
    },
    Syscall {
        name: "timer_delete",
        number: libc::SYS_timer_delete,
        conditions: &[],
        needed_by: "the timer of the row above, at the end",
    },
];
