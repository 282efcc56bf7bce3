//! The rows of the system-call policy against those that confined processes use.
//!
//! The suites below run once more with every system call of every confined process shown to a tracer
//! (`tests/src/trace`), which compares in both directions. Its verdict is about rows and calls alone: where each
//! call takes some ten times as long, a test may find that a deadline has passed, which is told. Whether the
//! suites hold is seen where they run untraced.

use std::time::Instant;

use console::say;

use crate::{Result, cargo, for_host, process, run, suites, target, times};

/// What all roles do: accesses and interrupts, every death of a process at every request, batches of a
/// companion, start and end.
const SUITES: [&str; 6] = ["companion", "death", "demo", "device", "kill_matrix", "recovery"];

/// Runs them, or `all` suites that can be traced.
pub(crate) fn check(all: bool) -> Result {
    let suites: Vec<&str> = if all { suites::traced().collect() } else { SUITES.to_vec() };
    let began = Instant::now();
    // Of the whole workspace, as the tests are: another selection of packages would have other features, and
    // build everything again.
    let programs = for_host(cargo(&["build", "--quiet", "--workspace", "--bins"]));
    run("building the programs", programs)?;
    let mut trace = std::process::Command::new(target().join("debug/policy-trace"));
    let tests = cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"]);
    trace.arg(tests.get_program()).args(tests.get_args());
    trace.args(suites.iter().flat_map(|name| ["--test", name]));
    trace.current_dir(crate::root()).env("CORDON_BIN_DIR", target().join("debug"));
    times::heading(&format!("system calls of confined processes: {}", suites.join(", ")))?;
    process::quiet("tracing", &mut trace)?;
    say!("policy trace: it took {} s", began.elapsed().as_secs())?;
    Ok(())
}
