//! The filter, as a container's runtime would install it.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Runs a program that may not make these calls; comes back only when that fails.
pub(crate) fn run(calls: &[String], program: &str, arguments: &[String]) -> std::io::Error {
    seccompiler::apply_filter(&filter(calls)).unwrap();
    Command::new(program).args(arguments).exec()
}

/// Everything but these calls is allowed.
fn filter(calls: &[String]) -> BpfProgram {
    let rules: BTreeMap<i64, Vec<SeccompRule>> = calls.iter().map(|call| rule(call)).collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, architecture);
    filter.unwrap().try_into().unwrap()
}

fn rule(call: &str) -> (i64, Vec<SeccompRule>) {
    let number = match call {
        "user-namespace" => {
            let flag = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
            let masked = SeccompCmpOp::MaskedEq(flag);
            let with = SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, flag);
            return (libc::SYS_clone, vec![SeccompRule::new(vec![with.unwrap()]).unwrap()]);
        }
        "capset" => libc::SYS_capset,
        "close_range" => libc::SYS_close_range,
        "landlock" => libc::SYS_landlock_create_ruleset,
        "mount" => libc::SYS_mount,
        "pivot_root" => libc::SYS_pivot_root,
        "seccomp" => libc::SYS_seccomp,
        "unshare" => libc::SYS_unshare,
        other => panic!("{other} is none of the calls that can be filtered"),
    };
    (number, Vec::new())
}
