//! The system-call policy of the confined processes, against what is installed and what is used: each row
//! allows what it says and nothing beside it, each row is needed, and how a process ends that a fault or a
//! forbidden call ended is told as what it was.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod faults;
mod needed;
mod rows;

use std::path::Path;
use std::sync::Arc;

use cordon_tests::{address, program};
use cordon_vmm::HostConfig;
use cordon_vmm::child::{ConnectionProtocol, Death, FunctionProtocol, ListerProtocol};
use cordon_vmm::supervisor::Supervisor;

/// The roles, by the words that start them.
const ROLES: [&str; 6] =
    ["connection", "function", "lister", "vfio-connection", "iommufd-connection", "vfio-function"];

/// What is tried in a role, by number.
fn tries(role: &str) -> Vec<String> {
    let mut list = std::process::Command::new(program("sandbox-probe"));
    let output = list.args([role, "--tries"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Tries one, in a process that is started and confined as one of that role; how it ended.
fn try_one(role: &str, number: usize) -> Arc<Death> {
    try_one_of(&program("sandbox-probe"), role, number)
}

/// [`try_one`] of another program that does the same.
fn try_one_of(probe: &Path, role: &str, number: usize) -> Arc<Death> {
    let by_iommufd = role.strip_prefix("iommufd-");
    let over_vfio = by_iommufd.or_else(|| role.strip_prefix("vfio-"));
    let dext = if over_vfio.is_some() { "vfio" } else { "sim:/nowhere" };
    let config = HostConfig::new(probe, dext);
    let mut spec = config.spec(Some(address("01:00.0")));
    spec.expendable = true;
    spec.arguments.push(format!("--try={number}").into());
    spec.arguments.extend(by_iommufd.map(|_| "--iommufd".into()));
    // It never says that it is ready: its end is all that there is of it.
    let death = match over_vfio.unwrap_or(role) {
        "connection" => Supervisor::<ConnectionProtocol>::start(&spec).err(),
        "function" => Supervisor::<FunctionProtocol>::start(&spec).err(),
        "lister" => Supervisor::<ListerProtocol>::start(&spec).err(),
        _ => panic!("{role}"),
    };
    death.expect("it served")
}
