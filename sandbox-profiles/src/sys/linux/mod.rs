//! Linux: every layer, in order. See the crate's documentation.

mod cgroup;
mod landlock;
mod process;
mod root;
mod seccomp;
mod server;

use std::os::fd::RawFd;

pub use server::{User, confine_server};

use crate::{Collector, ConfineError, Given, Layer, LayerState, Mode, Report, Role, policy};

/// Confines the calling process for good. `keep` are the descriptors that it has open beside
/// 0, 1 and 2.
///
/// # Errors
/// [`ConfineError`] in strict mode; the process is partly confined then and must exit.
pub fn confine(
    role: Role,
    mode: Mode,
    keep: &[RawFd],
    given: Given,
) -> Result<Report, ConfineError> {
    let Given { later, network } = given;
    let mut layers = Collector::new(mode);
    // While there is a /proc to ask.
    let mapped = process::mapped();
    layers.add(Layer::Descriptors, process::descriptors(keep))?;
    layers.add(Layer::UserNamespace, process::user_namespace())?;
    layers.add(Layer::PidNamespace, process::pid_namespace())?;
    layers.add(Layer::ControlGroup, cgroup::group())?;
    for (layer, state) in root::namespaces(network) {
        layers.add(layer, state)?;
    }
    layers.add(Layer::EmptyRoot, root::empty())?;
    layers.add(Layer::ResourceLimits, process::limits(role))?;
    layers.add(Layer::AddressSpace, process::address_space(role, mapped, later))?;
    layers.add(Layer::Capabilities, process::capabilities())?;
    layers.add(Layer::NoNewPrivileges, process::no_new_privileges())?;
    layers.add(Layer::NotDumpable, process::not_dumpable())?;
    layers.add(Layer::DeathWithParent, process::death_with_parent())?;
    layers.add(Layer::Landlock, landlock::restrict(landlock::Signals::Inside))?;
    let syscalls = policy::count(role);
    let said = format!("{syscalls} system calls, default kill");
    layers.add(Layer::Seccomp, outcome(seccomp::install(role), &said, NO_FILTER))?;
    Ok(layers.report(syscalls))
}

/// Bytes of memory that this machine has, in all; 0 when it does not say.
#[must_use]
pub fn machine_memory() -> u64 {
    process::machine_memory()
}

/// A layer that is either in force or not; `cure` says what helps when it is not.
fn outcome<E: std::fmt::Display>(result: Result<(), E>, said: &str, cure: &str) -> LayerState {
    match result {
        Ok(()) => LayerState::Enforced(said.to_owned()),
        Err(error) => LayerState::Missing(format!("{error}; {cure}")),
    }
}

/// What helps when there can be no filter.
const NO_FILTER: &str = "a kernel with seccomp filters is needed, and no filter over this process that \
                         forbids another";

/// What helps against a refusal that the kernel alone would not give.
const FORBIDDEN: &str = "a seccomp filter or a security module over this process forbids it: change \
    its policy";
