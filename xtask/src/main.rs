//! `cargo xtask`: set-up, demo and every check, in one place.
//!
//! `demo` and `test` work on a fresh Debian 12 machine with a Rust toolchain, as root and as an
//! ordinary user. Nothing is installed by hand.

mod apt;
mod guest;
mod licences;
mod macos;
mod package;
mod policy;
mod process;
mod regressions;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use console::{Interrupted, OutputError, complain, exit, say};

#[derive(Parser)]
#[command(about = "Set-up, demo and every check of the project", after_help = exit::HELP)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the programs and run `cordon demo` on the simulated dext.
    Demo {
        /// Passed on: --image FILE, --json, --sandbox relaxed.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Boot a guest in stock QEMU with an NVMe and a probe function, and a prompt on this terminal.
    Guest {
        /// Only prepare what the guest suites need, and print where it is.
        #[arg(long)]
        prepare: bool,
    },
    /// Only what needs no program: licences, the crate graph, packages.
    Policy,
    /// Lint and link everything for macOS (aarch64-apple-darwin), with a toolchain that is fetched.
    Macos,
    /// Measure what an access, a recovery and a client's command cost, beside baselines in the same run.
    Bench {
        /// Passed on: --json, --quick, --only THEME, --svg FILE.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything CI runs: format, lints, dependency policy, documentation, packages, macOS, demo,
    /// tests.
    Test,
}

/// Why a task failed.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T = ()> = std::result::Result<T, Failure>;

fn carry_out(task: Task) -> Result {
    process::catch_signals()?;
    match task {
        Task::Demo { arguments } => demo(&arguments),
        Task::Guest { prepare: true } => Ok(say!("{}", guest::folder()?.display())?),
        Task::Guest { prepare: false } => guest::interactive(),
        Task::Policy => policy().and_then(|()| package::check()),
        Task::Macos => macos::check(),
        Task::Bench { arguments } => bench(&arguments),
        Task::Test => test(),
    }
}

fn main() -> ExitCode {
    let options = match console::parse::<Options>() {
        Ok(options) => options,
        Err(status) => return status,
    };
    let Err(error) = carry_out(options.task) else { return ExitCode::SUCCESS };
    if error.is::<OutputError>() {
        return ExitCode::from(exit::UNWRITTEN);
    }
    complain(format_args!("xtask: {error}"));
    let interrupted = error.downcast_ref::<Interrupted>();
    ExitCode::from(interrupted.map_or(exit::FAILED, |interrupted| interrupted.0.status()))
}

/// The workspace's root folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where Cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

fn run(what: &str, mut command: Command) -> Result {
    say!("\n== {what}")?;
    let status = process::status(what, &mut command)?;
    if status.success() { Ok(()) } else { Err(format!("{what} failed: {status}").into()) }
}

fn demo(arguments: &[String]) -> Result {
    run(
        "building the programs",
        cargo(&["build", "--release", "--quiet", "--workspace", "--bins"]),
    )?;
    let mut command = Command::new(target().join("release/cordon"));
    command.arg("demo").args(arguments);
    run("cordon demo", command)
}

/// Prints nothing of its own: with `--json` the output is the benches'.
fn bench(arguments: &[String]) -> Result {
    let mut build = cargo(&["build", "--release", "--quiet", "--workspace", "--bins"]);
    let built = process::status("building the programs", &mut build)?;
    if !built.success() {
        return Err(format!("building the programs failed: {built}").into());
    }
    let programs = target().join("release");
    let mut command = Command::new(programs.join("bench"));
    command.args(arguments).env("CORDON_BIN_DIR", &programs);
    let status = process::status("bench", &mut command)?;
    if status.success() { Ok(()) } else { Err(format!("bench failed: {status}").into()) }
}

fn test() -> Result {
    run("format", cargo(&["fmt", "--all", "--check"]))?;
    let mut lint =
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
    // missing_docs warns while one writes and is an error here.
    lint.args(["-D", "missing_docs"]);
    run("lints", lint)?;
    policy()?;
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    run("documentation", docs)?;
    package::check()?;
    macos::check()?;
    run("building the programs", cargo(&["build", "--workspace", "--bins", "--quiet"]))?;
    demo(&["--json".to_owned()])?;
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    say!("\n== QEMU and a guest")?;
    tests.env("CORDON_GUEST_DIR", guest::folder()?);
    tests.env("CORDON_BIN_DIR", target().join("debug"));
    run_tests(tests)
}

fn policy() -> Result {
    say!("\n== dependency policy")?;
    policy::check(&root())
}

/// Runs the tests, passes their output on, and closes with the sum of all suites.
fn run_tests(mut tests: Command) -> Result {
    say!("\n== tests")?;
    let (mut passed, mut failed) = (0, 0);
    let status = process::lines("tests", &mut tests, |line| {
        say!("{line}")?;
        if let Some(counts) = line.strip_prefix("test result: ") {
            passed += count(counts, "passed");
            failed += count(counts, "failed");
        }
        Ok(())
    })?;
    say!("\n== what was wrong once, and the tests that hold it")?;
    for line in regressions::lines(&root())? {
        say!("{line}")?;
    }
    say!("\nsuites: {passed} passed, {failed} failed")?;
    match (status.success(), passed) {
        (true, 0) => Err("no test ran".into()),
        (true, _) => Ok(()),
        (false, _) => Err(format!("tests failed: {status}").into()),
    }
}

/// The number before `word` in "ok. 7 passed; 0 failed; …".
fn count(counts: &str, word: &str) -> u64 {
    let parts = counts.split([';', '.']).map(str::trim);
    let number = parts.filter_map(|part| part.strip_suffix(word)).next();
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_a_suite_are_read() {
        let line = "FAILED. 73 passed; 2 failed; 0 ignored; 0 measured; finished in 1.20s";
        assert_eq!((count(line, "passed"), count(line, "failed")), (73, 2));
    }
}
