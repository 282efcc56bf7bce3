//! The portable flavour on Linux: pipes in place of eventfds and the STREAM tube in place of SEQPACKET,
//! which is what macOS has, in every process of the suites that start programs.
//!
//! It is built with `--cfg cordon_portable` in a target folder of its own: nothing that is built otherwise
//! is of it by accident.

use std::process::Command;
use std::time::Instant;

use console::say;

use crate::{Result, cargo, outcome, run, suites, target, times, yielding};

const FLAG: &str = "--cfg cordon_portable";
/// Crates whose programs the suites start.
const PROGRAMS: [&str; 4] = ["cordon-cli", "cordon-device-proc", "cordon-dext-sim", "cordon-tests"];

fn portable(arguments: &[&str]) -> Command {
    let folder = target().join("portable");
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut command = cargo(arguments);
    command.env("RUSTFLAGS", format!("{given} {FLAG}").trim());
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("CORDON_BIN_DIR", folder.join("debug")).env("CARGO_TARGET_DIR", folder);
    // No debugger reads it.
    command.env("CARGO_PROFILE_DEV_DEBUG", "none");
    command
}

/// The suites that run.
fn names() -> Vec<&'static str> {
    ["no_wait"].into_iter().chain(suites::portable()).collect()
}

/// In one call: another selection of packages would have other features, and build everything again.
fn tests() -> Command {
    let mut tests = portable(&["test", "--quiet", "--no-fail-fast"]);
    tests.args(["-p", "cordon-ipc", "-p", "cordon-tests", "--lib"]);
    tests.args(names().iter().flat_map(|name| ["--test", name]));
    tests
}

/// Builds it, with its suites.
pub(crate) fn build() -> Result {
    let packages = PROGRAMS.iter().flat_map(|package| ["-p", package]);
    let mut build = portable(&["build", "--quiet", "--bins"]);
    build.args(packages);
    run("building the portable flavour", yielding(build))?;
    let mut suites = tests();
    suites.arg("--no-run");
    run("building the suites of the portable flavour", yielding(suites))
}

/// Builds it, and runs the suites of `ipc` and those that start programs.
pub(crate) fn check() -> Result {
    let began = Instant::now();
    build()?;
    let names = names();
    times::heading(&format!("portable flavour: unit suite of ipc, {}", names.join(", ")))?;
    let command = |names: &[&str]| Ok(outcome::only(tests(), names));
    let settled = outcome::run("portable flavour", command, |_| ())?;
    settled.tell()?;
    if !settled.holds {
        return Err(format!("{} tests of the portable flavour failed", settled.failed).into());
    }
    say!("portable flavour: {} suites hold, {} s", names.len() + 1, began.elapsed().as_secs())?;
    Ok(())
}
