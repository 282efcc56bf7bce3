//! The filter, made from the policy's tables.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::Role;
use crate::policy::{self, Condition, Syscall};

type Error = Box<dyn std::error::Error>;

/// Installs the role's filter: what is not on the list kills the process.
pub(super) fn install(role: Role) -> Result<(), Error> {
    seccompiler::apply_filter(&program(role)?)?;
    Ok(())
}

/// The role's filter as the kernel takes it.
fn program(role: Role) -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in policy::tables(role).iter().copied().flatten() {
        let chain = rules.entry(row.number).or_default();
        if !row.conditions.is_empty() {
            chain.push(SeccompRule::new(conditions(row)?)?);
        }
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    Ok(SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()?)
}

fn conditions(row: &Syscall) -> Result<Vec<SeccompCondition>, Error> {
    let condition = |(argument, condition): &(u8, Condition)| {
        let (operator, value) = match *condition {
            Condition::Is(value) => (SeccompCmpOp::Eq, value),
            Condition::Not(value) => (SeccompCmpOp::Ne, value),
        };
        Ok(SeccompCondition::new(*argument, SeccompCmpArgLen::Qword, operator, value)?)
    };
    row.conditions.iter().map(condition).collect()
}
