//! Each row of the system-call policy, tried against the filter that is installed: the call that it allows
//! works, and each neighbour of it is refused. What is tried is made from the rows: each condition is
//! violated alone, by values beside what is allowed, with other flags, and in the high half of the register;
//! each number has its neighbours, and the numbers of other entries.

use std::ffi::{c_int, c_long, c_void};
use std::fmt;
use std::io;

use cordon_device_proc::options::Common;
use cordon_device_proc::start;
use sandbox_profiles::Role;
use sandbox_profiles::policy::{self, Condition, Syscall};

use super::things::Things;
use crate::{REFUSED, SUCCEEDED};

/// Of x86-64's numbers, those of x32, which the same entry takes.
const X32: i64 = 0x4000_0000;
/// Bits that are turned over in a value that is asked for: among the flags of each call, at the end of the
/// half that the call looks at, and in the other one.
const BITS: [u32; 8] = [0, 1, 4, 6, 15, 31, 32, 63];

/// Something to try.
enum Try {
    /// The call of a row works.
    Works(&'static Syscall),
    /// The call of a row, but for one argument.
    Argument(&'static Syscall, u8, u64),
    /// A number that no row has.
    Number(i64),
    /// A number of a row, by the entry for 32-bit programs.
    OtherEntry(i64),
    /// Memory is mapped past the end of what is mapped, and read there.
    PastTheEnd,
    /// The stack has no end.
    Overflow,
}

/// What is to come of it, and what it is.
impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works(row) => write!(f, "works: {row}"),
            Self::Argument(row, at, value) => {
                write!(f, "refused: {row} with {value:#x} in argument {at}")
            }
            Self::Number(number) => write!(f, "refused: system call {number:#x}"),
            Self::OtherEntry(number) => write!(f, "refused: system call {number} by 32-bit entry"),
            Self::PastTheEnd => f.write_str("bus: past the end of mapped memory"),
            Self::Overflow => f.write_str("fault: a stack without end"),
        }
    }
}

fn rows(role: Role) -> impl Iterator<Item = &'static Syscall> {
    policy::tables(role).iter().copied().flatten()
}

fn tries(role: Role) -> Vec<Try> {
    let mut tries = vec![Try::PastTheEnd, Try::Overflow];
    tries.extend(rows(role).map(Try::Works));
    for row in rows(role) {
        for (at, condition) in row.conditions {
            let beside = neighbours(*condition).into_iter();
            let beside = beside.filter(|value| !is_allowed(role, row, *at, *value));
            tries.extend(beside.map(|value| Try::Argument(row, *at, value)));
        }
    }
    let listed = |number: i64| rows(role).any(|row| row.number == number);
    let mut numbers: Vec<i64> = rows(role).map(|row| row.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut beside: Vec<i64> = numbers.iter().flat_map(|number| [number - 1, number + 1]).collect();
    beside.retain(|number| *number >= 0 && !listed(*number));
    beside.sort_unstable();
    beside.dedup();
    tries.extend(beside.into_iter().map(Try::Number));
    if cfg!(target_arch = "x86_64") {
        tries.extend(numbers.iter().map(|number| Try::Number(number | X32)));
        tries.extend(numbers.iter().map(|number| Try::OtherEntry(*number)));
    }
    tries
}

/// Values beside those that a condition holds of, on both sides.
fn neighbours(condition: Condition) -> Vec<u64> {
    let mut values = match condition {
        Condition::Is(value) => {
            let mut values = vec![value.wrapping_sub(1), value.wrapping_add(1)];
            values.extend(BITS.map(|bit| value ^ (1 << bit)));
            values
        }
        Condition::Below(value) => vec![value, value + 1, value << 1, u64::MAX],
    };
    values.sort_unstable();
    values.dedup();
    values
}

/// Whether some row allows the call of `row` with another value in one argument.
fn is_allowed(role: Role, row: &Syscall, at: u8, value: u64) -> bool {
    let mut arguments = asked_for(row);
    if let Some(argument) = arguments.get_mut(usize::from(at)) {
        *argument = value;
    }
    rows(role).any(|other| other.takes(row.number, &arguments))
}

/// The arguments that a row's conditions name, and 0.
fn asked_for(row: &Syscall) -> [u64; 6] {
    let mut arguments = [0; 6];
    for (at, condition) in row.conditions {
        if let (Condition::Is(value), Some(argument)) =
            (condition, arguments.get_mut(usize::from(*at)))
        {
            *argument = *value;
        }
    }
    arguments
}

/// Lists what is tried in a role, by number.
pub(crate) fn list(role: Role) -> Vec<String> {
    tries(role).iter().map(ToString::to_string).collect()
}

/// Confines itself as `role`, says so, and tries.
pub(crate) fn confine_and_try(role: Role, common: &Common, number: usize) -> ! {
    let tried = tries(role).into_iter().nth(number);
    let prepared = tried.zip(Things::new(common.tube_fd).ok());
    let Some((tried, things)) = prepared else { std::process::exit(crate::UNKNOWN) };
    if start::confine(common.confinement(), role, &things.descriptors(), 0).is_err() {
        std::process::exit(1)
    }
    // What comes after this line came of the try.
    let said = format!("confined, and tries: {tried}\n");
    let _ = rustix::io::write(things.stderr(), said.as_bytes());
    let code = match tried {
        Try::Works(row) => works(row, &things),
        Try::Argument(row, at, value) => {
            let mut arguments = things.arguments(row, asked_for(row)).unwrap_or_default();
            if let Some(argument) = arguments.get_mut(usize::from(at)) {
                *argument = value;
            }
            raw(row.number, &arguments)
        }
        Try::Number(number) => raw(number, &[0; 6]),
        Try::OtherEntry(number) => super::other_entry(number),
        Try::PastTheEnd => things.read_past_the_end(),
        Try::Overflow => overflow(&[0; 4096]).into(),
    };
    let code = if code < 0 { REFUSED } else { SUCCEEDED };
    // SAFETY: ends the process, with no clean-up: a try may have left it in any state.
    unsafe { libc::_exit(code) }
}

/// Makes the call of a row as its owner does; negative when it does not work.
fn works(row: &Syscall, things: &Things) -> c_long {
    let Some(arguments) = things.arguments(row, asked_for(row)) else {
        // There is no way to try this row: a new one needs one.
        return -1;
    };
    if !row.takes(row.number, &arguments) {
        return -1;
    }
    if row.number == libc::SYS_rt_sigreturn {
        // By a handler that comes back.
        return things.wait_for_handler();
    }
    let done = raw(row.number, &arguments);
    if row.number == libc::SYS_ioctl
        && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY)
    {
        // It came to the kernel, which says of memory that it is none of its devices.
        return 0;
    }
    done
}

/// The call, whole registers.
fn raw(number: i64, arguments: &[u64; 6]) -> c_long {
    let [a, b, c, d, e, f] = *arguments;
    // SAFETY: what is allowed is called with memory and descriptors that are there; the rest is refused
    // before it is carried out, or is a hole, in a process that ends next.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// Never comes back.
#[expect(unconditional_recursion, reason = "that is what is tried")]
fn overflow(before: &[u8; 4096]) -> c_int {
    let mut own = *before;
    own[0] = own[0].wrapping_add(std::hint::black_box(1));
    overflow(std::hint::black_box(&own)) + c_int::from(own[0])
}

/// A pointer as an argument.
pub(super) fn pointer<T>(to: *const T) -> u64 {
    to.cast::<c_void>().expose_provenance() as u64
}
