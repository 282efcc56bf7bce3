//! The Linux policy as data: which system calls each role may make, with which arguments, and who
//! needs them. The filter that is installed is made from these tables and nothing else. Each row and what is
//! beside it is tried against that filter (`tests/tests/policy/main.rs`, a part of `cargo xtask test`). Which rows
//! are used is compared with which there are by `cargo xtask trace`, which is no part of it.

mod common;
mod connection;
mod function;
mod memory;
mod server;
pub mod vfio;

pub use common::COMMON;
pub use connection::CONNECTION;
pub use function::FUNCTION;
pub use memory::MEMORY;
pub use server::{SERVER, SERVER_NEVER, SERVER_UNKNOWN};

use std::fmt;

use self::vfio::{IOMMUFD_CONNECTION, VFIO, VFIO_CONNECTION, VFIO_FUNCTION};
use crate::Role;
pub use crate::limits::MAX_DESCRIPTORS;
pub use crate::limits::MAX_STACK;

const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;

/// A condition on one argument of a system call, compared as 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The argument is exactly this.
    Is(u64),
    /// The argument is smaller than this.
    Below(u64),
}

/// A system call that a role may make.
#[derive(Clone, Copy, Debug)]
pub struct Syscall {
    /// Its name, for people.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: i64,
    /// Conditions that must all hold: argument 0..=5 and what it must be.
    pub conditions: &'static [(u8, Condition)],
    /// Who needs it.
    pub needed_by: &'static str,
}

impl Condition {
    /// Whether it holds of an argument.
    #[must_use]
    pub fn holds(self, argument: u64) -> bool {
        match self {
            Self::Is(value) => argument == value,
            Self::Below(value) => argument < value,
        }
    }
}

impl Syscall {
    /// Whether this row allows a call, as the installed filter has it.
    #[must_use]
    pub fn takes(&self, number: i64, arguments: &[u64; 6]) -> bool {
        let holds = |(at, condition): &(u8, Condition)| {
            arguments.get(usize::from(*at)).is_some_and(|argument| condition.holds(*argument))
        };
        number == self.number && self.conditions.iter().all(holds)
    }
}

/// "mmap(0 is 0x0, 2 is 0x3, 3 is 0x22)": arguments are counted from 0.
impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        for (number, (argument, condition)) in self.conditions.iter().enumerate() {
            let before = if number == 0 { "" } else { ", " };
            match condition {
                Condition::Is(value) => write!(f, "{before}{argument} is {value:#x}")?,
                Condition::Below(value) => write!(f, "{before}{argument} is below {value:#x}")?,
            }
        }
        f.write_str(")")
    }
}

/// The tables of a role: every row of every table is allowed.
#[must_use]
pub fn tables(role: Role) -> &'static [&'static [Syscall]] {
    match role {
        Role::Connection => &[COMMON, MEMORY, CONNECTION],
        Role::Function => &[COMMON, MEMORY, FUNCTION],
        Role::Lister => &[COMMON],
        Role::VfioConnection => &[COMMON, MEMORY, CONNECTION, VFIO, VFIO_CONNECTION],
        Role::IommufdConnection => &[COMMON, MEMORY, CONNECTION, VFIO, IOMMUFD_CONNECTION],
        Role::VfioFunction => &[COMMON, MEMORY, FUNCTION, VFIO, VFIO_FUNCTION],
    }
}

/// How many system calls a role may make; several rows of one call count once.
#[must_use]
pub fn count(role: Role) -> usize {
    let rows: Vec<Syscall> = tables(role).iter().copied().flatten().copied().collect();
    distinct(&rows)
}

/// How many system calls these rows are about.
#[must_use]
pub fn distinct(rows: &[Syscall]) -> usize {
    let mut numbers: Vec<i64> = rows.iter().map(|row| row.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

/// Bytes of private writable memory that a role may have: its heap. Windows are shared memory and do
/// not count, nor does the stack. A function process uses less than 1 MiB, and a few more while a
/// companion's largest batch is in its hands; a connection process about 100 bytes for each of the
/// 65,536 registrations that each of eight functions may have.
#[must_use]
pub fn private_memory(role: Role) -> u64 {
    match role {
        Role::Connection | Role::VfioConnection | Role::IommufdConnection => {
            crate::limits::MAX_CONNECTION_MEMORY
        }
        Role::Function | Role::Lister | Role::VfioFunction => crate::limits::MAX_FUNCTION_MEMORY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_has_more_system_calls_than_the_documents_say() {
        let counts = Role::ALL.map(count);
        // A build with debug assertions has no call more: fcntl is on the list for seals too, except of a lister.
        let lister = if cfg!(debug_assertions) { 13 } else { 12 };
        assert_eq!(counts, [15, 17, lister, 18, 18, 20]);
    }

    #[test]
    fn a_row_takes_its_own_call_and_no_other() {
        let row = &Syscall {
            name: "x",
            number: 7,
            conditions: &[(0, Condition::Is(1)), (4, Condition::Below(10)), (5, Condition::Is(2))],
            needed_by: "",
        };
        let arguments = [1, 9, 9, 9, 9, 2];
        assert!(!row.takes(7, &[1, 9, 9, 9, 10, 2]) && !row.takes(7, &[1, 9, 9, 9, u64::MAX, 2]));
        assert!(row.takes(7, &arguments) && !row.takes(8, &arguments));
        assert!(!row.takes(7, &[1 | 1 << 32, 9, 9, 9, 9, 2]) && !row.takes(7, &[1, 9, 9, 9, 9, 3]));
        assert_eq!(row.to_string(), "x(0 is 0x1, 4 is below 0xa, 5 is 0x2)");
    }

    #[test]
    fn no_call_has_a_row_without_conditions_beside_others() {
        // They would be one chain of rules in the filter, in which the row without conditions is lost.
        for role in Role::ALL {
            let rows: Vec<&Syscall> = tables(role).iter().copied().flatten().collect();
            for row in rows.iter().filter(|row| row.conditions.is_empty()) {
                assert_eq!(rows.iter().filter(|other| other.number == row.number).count(), 1);
            }
        }
    }

    #[test]
    fn every_row_says_who_needs_it() {
        for role in Role::ALL {
            for row in tables(role).iter().copied().flatten() {
                assert!(row.needed_by.len() > 10, "{}", row.name);
            }
        }
    }

    #[test]
    fn what_kills_a_server_is_on_no_list_of_what_it_may_do() {
        for row in SERVER_NEVER.iter().chain(SERVER_UNKNOWN) {
            assert!(SERVER.iter().all(|allowed| allowed.number != row.number), "{}", row.name);
        }
        for row in SERVER.iter().chain(SERVER_NEVER).chain(SERVER_UNKNOWN) {
            assert!(row.needed_by.len() > 7, "{}", row.name);
        }
        let never = [
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_unlinkat,
            libc::SYS_pkey_mprotect,
            libc::SYS_seccomp,
        ];
        for row in SERVER {
            assert!(!never.contains(&row.number), "{}", row.name);
        }
        let executable = |row: &Syscall| {
            let mut conditions = row.conditions.iter();
            !conditions.any(|(at, is)| {
                *at == 2 && matches!(is, Condition::Is(prot) if prot & libc::PROT_EXEC as u64 == 0)
            })
        };
        let maps = |row: &&Syscall| [libc::SYS_mmap, libc::SYS_mprotect].contains(&row.number);
        assert!(!SERVER.iter().filter(maps).any(executable));
    }

    #[test]
    fn nothing_that_opens_runs_or_signals_is_on_a_list() {
        let never = [
            libc::SYS_openat,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_ptrace,
            libc::SYS_mprotect,
            libc::SYS_pkey_mprotect,
            libc::SYS_memfd_create,
            libc::SYS_prctl,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_seccomp,
        ];
        for role in Role::ALL {
            for row in tables(role).iter().copied().flatten() {
                assert!(!never.contains(&row.number), "{}", row.name);
            }
        }
    }

    #[test]
    fn requests_to_drivers_are_named_one_by_one_and_made_over_vfio_only() {
        let requests = |role| {
            let rows = tables(role).iter().copied().flatten();
            let requests = rows.filter(|row| row.number == libc::SYS_ioctl);
            let request = |row: &Syscall| {
                let named = row.conditions.iter().find(|(at, _)| *at == 1);
                let Some((_, Condition::Is(number))) = named else {
                    panic!("a request without its number")
                };
                *number
            };
            requests.map(request).collect::<Vec<_>>()
        };
        for role in [Role::Connection, Role::Function, Role::Lister] {
            assert_eq!(requests(role), [0; 0]);
        }
        assert_eq!(requests(Role::VfioConnection), [vfio::RESET, vfio::MAP_DMA, vfio::UNMAP_DMA]);
        let iommufd =
            [vfio::RESET, vfio::RESET_BUS, vfio::MAP_FILE_IOAS, vfio::MAP_IOAS, vfio::UNMAP_IOAS];
        assert_eq!(requests(Role::IommufdConnection), iommufd);
        assert_eq!(requests(Role::VfioFunction), [vfio::RESET, vfio::SET_INTERRUPTS]);
    }
}
