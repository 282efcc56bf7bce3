//! Linux: every layer, in order. See the crate's documentation.

mod cgroup;
mod landlock;
mod process;
mod root;
mod seccomp;

use std::os::fd::RawFd;

use crate::{Collector, ConfineError, Mode, Report, Role, State, policy};

/// Confines the calling process for good. `keep` are the descriptors that it has open beside
/// 0, 1 and 2. `later` are the bytes of memory that it will be handed and map afterwards.
///
/// # Errors
/// [`ConfineError`] in strict mode; the process is partly confined then and must exit.
pub fn confine(role: Role, mode: Mode, keep: &[RawFd], later: u64) -> Result<Report, ConfineError> {
    let mut layers = Collector::new(mode);
    // While there is a /proc to ask.
    let mapped = process::mapped();
    layers.add("descriptors", process::descriptors(keep))?;
    layers.add("user namespace", process::user_namespace())?;
    layers.add("pid namespace", process::pid_namespace())?;
    layers.add("control group", cgroup::group())?;
    for (layer, state) in root::namespaces() {
        layers.add(layer, state)?;
    }
    layers.add("empty root", root::empty())?;
    layers.add("resource limits", process::limits(role))?;
    layers.add("address space", process::address_space(role, mapped, later))?;
    layers.add("capabilities", process::capabilities())?;
    layers.add("no new privileges", process::no_new_privileges())?;
    layers.add("not dumpable", process::not_dumpable())?;
    layers.add("death with parent", process::death_with_parent())?;
    layers.add("landlock", landlock::restrict())?;
    let syscalls = policy::count(role);
    let said = format!("{syscalls} system calls, default kill");
    let cure = "a kernel with seccomp filters is needed, and no filter over this process that forbids \
                another";
    layers.add("seccomp", outcome(seccomp::install(role), &said, cure))?;
    Ok(layers.report(syscalls))
}

/// Bytes of memory that this machine has, in all; 0 when it does not say.
#[must_use]
pub fn machine_memory() -> u64 {
    process::machine_memory()
}

/// A layer that is either in force or not; `cure` says what helps when it is not.
fn outcome<E: std::fmt::Display>(result: Result<(), E>, said: &str, cure: &str) -> State {
    match result {
        Ok(()) => State::Enforced(said.to_owned()),
        Err(error) => State::Missing(format!("{error}; {cure}")),
    }
}

/// What helps against a refusal that the kernel alone would not give.
const FORBIDDEN: &str = "a seccomp filter or a security module over this process forbids it: change \
    its policy";
