//! The Mach-O suites, executed on Linux: by `tests/macos`, a runner for arm64 Linux that loads them and gives them
//! Darwin's libSystem and Mach kernel. On a machine that is no arm64 one it runs under qemu-aarch64.
//!
//! The runner is built by the compiler that builds for macOS, and linked with Debian's arm64 C library. None of this
//! says how a Mac behaves where neither the kernel's sources nor the runner do.

use std::path::{Path, PathBuf};
use std::process::Command;

use console::say;
use serde_json::Value;

use crate::apt::{self, Apt, Bundle, make, write};
use crate::{Result, macos, outcome, process, root, run as run_command, seen, target, times};

pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Changes when what is fetched changes.
const STAMP: &str = "1";
const SYSROOT: Bundle =
    Bundle { name: "sysroot", suites: &["bookworm"], prefer: "bookworm", foreign: Some("arm64") };
const PACKAGES: [&str; 2] = ["libc6-dev:arm64", "libgcc-12-dev:arm64"];
const EMULATOR: &str = "qemu-user-static";
/// How long one suite may take, in seconds, on a busy machine with two processors.
const LONGEST: &str = "1200";
/// Suites that drive the programs from outside, which are Mach-O then as well. They are run a second time over IOKit,
/// whose registry shows the simulated dext.
const DRIVING: [&str; 7] =
    ["abi_conformance", "attach", "companion", "death", "device", "doctor", "recovery"];
/// The suite of the rules themselves.
const RULES: &str = "darwin-rules";

/// What is not run under the emulator, and why: package, test.
const NOT_EMULATED: [(&str, &str, &str); 4] = [
    (
        "cordon-ipc",
        "spin::tests::what_comes_at_last_is_looked_for_as_long_as_anything_again",
        "it tells 100 us from 500 us, which the emulator's translation takes too",
    ),
    (
        "cordon-tests",
        "c5_3_a_limit_fails_its_entries_and_unmapping_makes_room",
        "4096 registrations take longer than the 2.5 s of a batch; batches of 128 are run by the others",
    ),
    (
        "cordon-tests",
        "callers_never_see_the_death_of_the_process",
        "20 starts in a row take longer than the 3 s of a caller; the other suites of deaths take one at a time",
    ),
    (
        "cordon-tests",
        "kills_at_any_moment_of_many_batches_map_nothing_twice_and_leak_nothing",
        "starts in a row, as above; a batch whose process dies is run by `c5_2`",
    ),
];
/// What is not run over IOKit, and why: suite, test.
const NOT_OVER_IOKIT: [(&str, &str, &str); 1] = [(
    "abi_conformance",
    "garbage_ends_or_refuses_the_connection_and_nobody_elses",
    "it writes to the simulated dext's socket, which is the kernel's there",
)];
/// Suites that start processes: so many of their tests at once, under the emulator.
const AT_ONCE: &str = "--test-threads=2";

/// A suite that Cargo linked.
#[derive(Debug, PartialEq)]
pub(crate) struct Suite {
    package: String,
    name: String,
    folder: PathBuf,
    file: PathBuf,
}

/// The unit suite of a library or program that a line of Cargo's messages is about, or one of [`DRIVING`].
pub(crate) fn suite(line: &str) -> Result<Option<Suite>> {
    let message: Value = serde_json::from_str(line).map_err(|error| format!("cargo: {error}"))?;
    let is =
        |pointer: &str, value: &str| message.pointer(pointer).is_some_and(|found| found == value);
    let unit = is("/target/kind/0", "lib") || is("/target/kind/0", "bin");
    let drives =
        is("/target/kind/0", "test") && DRIVING.iter().any(|name| is("/target/name", name));
    let test = message.pointer("/profile/test").is_some_and(|test| test == true);
    if !is("/reason", "compiler-artifact") || !test || !(unit || drives) {
        return Ok(None);
    }
    let (Some(file), Some(manifest)) =
        (message["executable"].as_str(), message["manifest_path"].as_str())
    else {
        return Ok(None);
    };
    let folder = Path::new(manifest).parent().ok_or("a manifest without a folder")?.to_owned();
    let text = std::fs::read_to_string(manifest).map_err(|error| format!("{manifest}: {error}"))?;
    let manifest: toml::Table = text.parse().map_err(|error| format!("{manifest}: {error}"))?;
    let package = manifest["package"]["name"].as_str().unwrap_or_default().to_owned();
    let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(Some(Suite { package, name, folder, file: file.into() }))
}

/// The executable that a line of Cargo's messages says was linked.
pub(crate) fn executable(line: &str) -> Result<Option<PathBuf>> {
    let message: Value = serde_json::from_str(line).map_err(|error| format!("cargo: {error}"))?;
    Ok(message["executable"].as_str().map(PathBuf::from))
}

/// Builds the runner, checks that it implements all that is imported, and runs the suites.
pub(crate) fn run(
    toolchain: &Path,
    built: &Path,
    executables: &[PathBuf],
    suites: &[Suite],
) -> Result {
    let sysroot = sysroot()?;
    let runner = build(toolchain, &sysroot)?;
    times::heading("Mach-O suites on Linux")?;
    let mut check = command(&sysroot, &runner);
    check.arg("--imports").args(executables);
    process::quiet("the runner, which must implement every import,", &mut check)?;
    let machine = Machine { sysroot: &sysroot, runner: &runner, built, seen: seen::file()? };
    let (mut total, mut rules) = (Count::default(), 0);
    for suite in suites {
        let counted = machine.suite(suite, None)?;
        total += counted;
        if suite.package == RULES {
            rules += counted.passed;
        }
    }
    times::heading("the same over IOKit")?;
    let mut over_iokit = Count::default();
    let folder = tempfile::tempdir()?;
    // What the runner's IOKit speaks to is a Linux program: built with all others, as the suites want it.
    run_command("building the programs for Linux", crate::programs())?;
    for suite in suites.iter().filter(|suite| DRIVING.contains(&&*suite.name)) {
        over_iokit += machine.suite(suite, Some(folder.path()))?;
    }
    total += over_iokit;
    let Count { passed, failed } = total;
    let demo = machine.demo()?;
    seen::compare(&machine.seen)?;
    say!("\ndarwin rules: {rules}")?;
    say!("of the suites below over IOKit: {over_iokit}")?;
    say!("mach-o suites: {passed} passed, {failed} failed")?;
    say!("mach-o demo: {}", if demo { "every step held" } else { "a step did not hold" })?;
    match (failed, rules) {
        _ if !demo => Err("the demo failed as Mach-O".into()),
        (0, 1..) => Ok(()),
        (0, 0) => Err("no rule of Darwin's was tested".into()),
        _ => Err(format!("{failed} tests failed as Mach-O").into()),
    }
}

/// The tests of a suite that are not run, each with where that is and why.
fn left_out(suite: &Suite, over_iokit: bool) -> Vec<(&'static str, &'static str, &'static str)> {
    let over_iokit = NOT_OVER_IOKIT.iter().filter(|(of, ..)| over_iokit && *of == suite.name);
    let emulated = NOT_EMULATED.iter().filter(|(of, ..)| !is_native() && *of == suite.package);
    let over_iokit = over_iokit.map(|(_, test, why)| (*test, "over IOKit", *why));
    over_iokit.chain(emulated.map(|(_, test, why)| (*test, "under the emulator", *why))).collect()
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Default)]
struct Count {
    passed: u64,
    failed: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What runs Mach-O programs.
struct Machine<'a> {
    sysroot: &'a Path,
    runner: &'a Path,
    /// Where the programs are.
    built: &'a Path,
    /// Where the runner notes the calls of confined processes.
    seen: PathBuf,
}

impl Machine<'_> {
    /// Runs a suite; over IOKit if `iokit` is the folder of the simulated dext that it shows.
    fn suite(&self, suite: &Suite, iokit: Option<&Path>) -> Result<Count> {
        let over = if iokit.is_some() { ", over IOKit" } else { "" };
        say!("\n{}: {}{over}", suite.package, suite.name)?;
        let left_out = left_out(suite, iokit.is_some());
        left_out
            .iter()
            .try_for_each(|(test, where_, why)| say!("not run {where_}: {test}: {why}"))?;
        let command = |names: &[&str]| {
            let mut command = self.limited();
            command.arg(&suite.file).current_dir(&suite.folder);
            command.env("CARGO_MANIFEST_DIR", &suite.folder).env("CORDON_BIN_DIR", self.built);
            if let Some(folder) = iokit {
                command.env("CORDON_TESTS_IOKIT", folder);
                command.env("MACHO_RUNNER_DEXT", folder.join("dext"));
                command.env("CORDON_TESTS_IOKIT_SIMULATOR", target().join("debug/dext-sim"));
                // It shows one at a time.
                command.arg("--test-threads=1");
            } else if suite.package == "cordon-tests" && !is_native() {
                command.arg(AT_ONCE);
            }
            command.args(left_out.iter().flat_map(|(test, ..)| ["--skip", test]));
            if !names.is_empty() {
                command.arg("--exact").args(names);
            }
            Ok(command)
        };
        let settled = outcome::run(&suite.name, command, |_| ())?;
        settled.tell()?;
        Ok(Count { passed: settled.passed, failed: settled.failed })
    }

    /// Whether `cordon demo` goes from start to end, with all its programs Mach-O.
    fn demo(&self) -> Result<bool> {
        times::heading("cordon demo as Mach-O")?;
        let mut command = self.limited();
        command.arg(self.built.join("cordon")).arg("demo");
        let mut whole = false;
        let status = process::lines("cordon demo", &mut command, |line| {
            say!("{line}")?;
            whole |= line.contains("every step held");
            Ok(())
        })?;
        Ok(status.success() && whole)
    }

    /// A run that ends after the longest time.
    fn limited(&self) -> Command {
        let mut command = limited(&command(self.sysroot, self.runner));
        command.env("MACHO_RUNNER_SEEN", &self.seen);
        command
    }
}

/// A command that ends after the longest time.
fn limited(inner: &Command) -> Command {
    process::through(&["timeout", "--kill-after=10", LONGEST], inner)
}

/// What the runner is linked with, and the emulator: fetched unless it is there.
pub(crate) fn sysroot() -> Result<PathBuf> {
    let folder = target().join("macho-sysroot");
    let stamp = folder.join("stamp");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == STAMP) {
        return Ok(folder);
    }
    times::heading(&format!("preparing what runs Mach-O programs in {} (once)", folder.display()))?;
    let _ = std::fs::remove_dir_all(&folder);
    let apt = Apt::new(&folder, &SYSROOT, &SYSROOT.sources(&apt::mirror("")?), None)?;
    let emulator = (!is_native()).then_some(EMULATOR);
    // Neither is installed, so what they depend on is not needed.
    let packages = PACKAGES.into_iter().chain(emulator);
    let arguments: Vec<&str> = ["-q", "download"].into_iter().chain(packages).collect();
    apt.run("apt-get", &arguments)?;
    let into = folder.join("root");
    make(&into)?;
    apt.unpack(&into)?;
    write(&stamp, STAMP)?;
    Ok(folder)
}

fn is_native() -> bool {
    std::env::consts::ARCH == "aarch64"
}

/// The compiler that builds for macOS, for static programs of arm64 Linux.
pub(crate) fn cargo(toolchain: &Path, sysroot: &Path, into: &Path) -> Result<Command> {
    let usr = sysroot.join("root/usr/lib");
    let (libc, gcc) = (usr.join("aarch64-linux-gnu"), usr.join("gcc/aarch64-linux-gnu/12"));
    let (libc, gcc) = (libc.display(), gcc.display());
    let lld = toolchain.join("root/usr/lib/llvm-19/bin/ld.lld");
    let script = sysroot.join("ld");
    macos::script(
        &script,
        &format!(
            "LD_LIBRARY_PATH={} exec {} -static {libc}/crt1.o {libc}/crti.o {gcc}/crtbeginT.o \
             -L{libc} -L{gcc} \"$@\" --start-group -lgcc -lgcc_eh -lc --end-group {gcc}/crtend.o \
             {libc}/crtn.o",
            macos::libraries(toolchain),
            lld.display(),
        ),
    )?;
    let mut command = macos::cargo(toolchain)?;
    command
        .env("CARGO_TARGET_DIR", into)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", &script)
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-Clinker-flavor=ld -Ctarget-feature=+crt-static -Crelocation-model=static",
        );
    Ok(command)
}

/// Builds the runner, which links statically.
fn build(toolchain: &Path, sysroot: &Path) -> Result<PathBuf> {
    let into = target().join("macho-runner");
    let cargo = |task: &[&str]| -> Result<Command> {
        let mut command = cargo(toolchain, sysroot, &into)?;
        command
            .args(task)
            .args(["--locked", "--quiet", "--target", TARGET])
            .arg("-Zbuild-std=std,panic_abort,test")
            .current_dir(root().join("tests/macos"));
        if !is_native() {
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", emulator(sysroot));
        }
        Ok(command)
    };
    let mut lint = cargo(&["clippy", "--workspace"])?;
    lint.args(["--", "-D", "warnings"]);
    run_command("lints of the runner of Mach-O programs", lint)?;
    run_command("building the runner of Mach-O programs", cargo(&["build"])?)?;
    // Tests that abort need no standard library of their own.
    let own = ["test", "-Zpanic-abort-tests", "--package=macho-runner", "--package=darwin-abi"];
    let mut own = cargo(&own)?;
    // Nothing starts a program for arm64 by itself.
    own.args(["--", "-Zunstable-options", "--force-run-in-process"]);
    run_command("the runner's own tests", own)?;
    Ok(into.join(TARGET).join("debug/macho-runner"))
}

fn emulator(sysroot: &Path) -> PathBuf {
    sysroot.join("root/usr/bin/qemu-aarch64-static")
}

/// A run of the runner.
fn command(sysroot: &Path, runner: &Path) -> Command {
    if is_native() {
        return Command::new(runner);
    }
    let emulator = emulator(sysroot);
    let mut command = Command::new(&emulator);
    command.arg(runner).env("MACHO_RUNNER_EMULATOR", emulator);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_suites_are_found_in_cargos_messages() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let message = |kind: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": manifest,
                "target": { "kind": [kind], "name": "suite" },
                "profile": { "test": test },
                "executable": "/x/suite-1",
            })
            .to_string()
        };
        let found = suite(&message("lib", true)).unwrap().unwrap();
        let Suite { package, name, file, .. } = found;
        assert_eq!((&*package, &*name, &*file), ("xtask", "suite", Path::new("/x/suite-1")));
        assert_eq!(suite(&message("test", true)).unwrap(), None);
        assert_eq!(executable(&message("bin", false)).unwrap(), Some("/x/suite-1".into()));
        assert_eq!(executable(r#"{"executable":null}"#).unwrap(), None);
        assert_eq!(suite(&message("bin", false)).unwrap(), None);
        assert!(suite("no message").is_err());
    }
}
