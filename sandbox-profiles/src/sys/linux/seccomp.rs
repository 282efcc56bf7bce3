//! The filter, made from the policy's tables.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::Role;
use crate::policy::{self, Condition, Syscall};

type Error = Box<dyn std::error::Error>;

/// Installs the role's filter: what is not on the list is not made and raises SIGSYS, which kills the process
/// unless it has a handler. `device-proc` has one that says which call it was and can run once; see
/// `report_faults` there. Nothing that a process may call installs another, since `rt_sigaction` is on no list.
/// A call of another architecture (the 32-bit entry of x86-64) kills without that.
pub(super) fn install(role: Role) -> Result<(), Error> {
    seccompiler::apply_filter(&program(role)?)?;
    Ok(())
}

/// Installs the server's filters: one that kills, one that says that a call is unknown, and the list of
/// what it may do. The kernel does the strictest that any of them says; once the last is there, there
/// can be no other.
pub(super) fn install_server() -> Result<(), Error> {
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let listed = |rows: &[Syscall], action| filter(rows.iter(), SeccompAction::Allow, action);
    let never = listed(policy::SERVER_NEVER, SeccompAction::KillProcess)?;
    let unknown = listed(policy::SERVER_UNKNOWN, errno(libc::ENOSYS))?;
    // What another filter answers for is let through here.
    let passed = policy::SERVER.iter().chain(policy::SERVER_UNKNOWN).chain(policy::SERVER_NEVER);
    let allowed = filter(passed, errno(libc::EPERM), SeccompAction::Allow)?;
    for program in [never, unknown, allowed] {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// The role's filter as the kernel takes it.
fn program(role: Role) -> Result<BpfProgram, Error> {
    let rows = policy::tables(role).iter().copied().flatten();
    filter(rows, SeccompAction::Trap, SeccompAction::Allow)
}

/// A filter that does `listed` for what one of `rows` matches.
fn filter<'r>(
    rows: impl Iterator<Item = &'r Syscall>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in rows {
        let chain = rules.entry(row.number).or_default();
        if !row.conditions.is_empty() {
            chain.push(SeccompRule::new(conditions(row)?)?);
        }
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()?)
}

fn conditions(row: &Syscall) -> Result<Vec<SeccompCondition>, Error> {
    let condition = |(argument, condition): &(u8, Condition)| {
        let (holds, value) = match *condition {
            Condition::Is(value) => (SeccompCmpOp::Eq, value),
            Condition::Below(value) => (SeccompCmpOp::Lt, value),
        };
        Ok(SeccompCondition::new(*argument, SeccompCmpArgLen::Qword, holds, value)?)
    };
    row.conditions.iter().map(condition).collect()
}
