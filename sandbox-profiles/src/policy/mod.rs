//! The Linux policy as data: which system calls each role may make, with which arguments, and who
//! needs them. The filter that is installed is made from these tables and nothing else. The program
//! `sandbox-probe` tries from inside what no row allows.

mod connection;
mod function;

pub use connection::CONNECTION;
pub use function::FUNCTION;

use crate::Role;

/// A condition on one argument of a system call, compared as 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The argument is exactly this.
    Is(u64),
    /// The argument is anything but this.
    Not(u64),
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

/// The tables of a role: every row of every table is allowed.
#[must_use]
pub fn tables(role: Role) -> &'static [&'static [Syscall]] {
    match role {
        Role::Connection => &[FUNCTION, CONNECTION],
        // The lister reads, reports and exits: what a function process may do is enough.
        Role::Function | Role::Lister => &[FUNCTION],
    }
}

/// How many system calls a role may make; several rows of one call count once.
#[must_use]
pub fn count(role: Role) -> usize {
    let rows = tables(role).iter().copied().flatten();
    let mut numbers: Vec<i64> = rows.map(|row| row.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

/// Open descriptors that a role may have: its tube, its dext connections, a signaller for each of
/// 2048 vectors (the function process), guest RAM regions (the connection process).
pub const MAX_DESCRIPTORS: u64 = 4096;

/// Bytes of private writable memory that a role may have: its heap. Windows are shared memory and do
/// not count, nor does the stack. A function process uses less than 1 MiB, and a few more while a
/// companion's largest batch is in its hands; a connection process about 100 bytes for each of the
/// 65,536 registrations that each of eight functions may have.
#[must_use]
pub fn private_memory(role: Role) -> u64 {
    match role {
        Role::Connection => 128 << 20,
        Role::Function | Role::Lister => 32 << 20,
    }
}

/// Bytes that the stack may grow to.
pub const MAX_STACK: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_role_has_at_most_24_system_calls() {
        assert!(count(Role::Function) <= 24, "{}", count(Role::Function));
    }

    #[test]
    fn every_row_says_who_needs_it() {
        for role in [Role::Connection, Role::Function, Role::Lister] {
            for row in tables(role).iter().copied().flatten() {
                assert!(row.needed_by.len() > 10, "{}", row.name);
            }
        }
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
            libc::SYS_ioctl,
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
        for role in [Role::Connection, Role::Function, Role::Lister] {
            for row in tables(role).iter().copied().flatten() {
                assert!(!never.contains(&row.number), "{}", row.name);
            }
        }
    }
}
