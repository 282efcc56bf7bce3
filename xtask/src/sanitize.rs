//! The suites that run in one process, under AddressSanitizer and under ThreadSanitizer.
//!
//! AddressSanitizer works with the project's own toolchain, which has its runtime, as a stable compiler that is told to
//! take unstable options. The standard library is not instrumented: what it does out of bounds itself is not seen, what
//! is done with its memory is.
//!
//! ThreadSanitizer has to see what the locks and channels of the standard library order, so that is instrumented too.
//! Its sources come with the compiler that is fetched for macOS (`macos.rs`), which therefore builds everything; that
//! one has no runtime, so it is linked with the one of the project's own toolchain.

use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;
use console::say;

use crate::outcome::count;
use crate::{Result, cargo, macos, process, target, times};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Memory out of bounds, used after it was freed, or leaked.
    Address,
    /// Data races.
    Thread,
}

/// Packages whose own tests run in the process of the suite.
const PACKAGES: [&str; 10] = [
    "cordon-backend",
    "cordon-device-proc",
    "cordon-dext-client",
    "cordon-dext-sim",
    "cordon-ipc",
    "cordon-pci",
    "cordon-sandbox-profiles",
    "cordon-vfio-client",
    "cordon-vfio-user",
    "cordon-vmm",
];

/// What is not run, and why.
const LEFT_OUT: [(&str, &str); 2] = [
    (
        "the suites of tests/ other than in_process",
        "they start programs that confine themselves: the sanitizer's shadow memory is more than a confined \
         process may address, and it makes system calls that end it",
    ),
    (
        "the examples of the documentation",
        "each is a program of its own, and what it calls is called by the suites",
    ),
];

/// A test that cannot be run.
struct Skipped {
    test: &'static str,
    why: &'static str,
    /// By one of them only.
    by: Option<Sanitizer>,
}

impl Skipped {
    fn is_by(&self, sanitizer: Sanitizer) -> bool {
        self.by.is_none_or(|by| by == sanitizer)
    }
}

/// Why what starts a child on a stack of its own is not run.
const CLONE: &str = "ThreadSanitizer's runtime takes a child that borrows the memory of its parent until it runs a program, \
                     as these are started, for a fork of its own, and ends the parent";

/// All of these.
const SKIPPED: &[Skipped] = &[
    Skipped {
        test: "lane::protocol::model::no_interleaving_loses_a_wake_up_or_an_answer",
        why: LOOM,
        by: None,
    },
    Skipped {
        test: "lane::protocol::model::no_interleaving_of_two_callers_loses_a_wake_up_or_an_answer",
        why: LOOM,
        by: None,
    },
    Skipped {
        test: "lane::protocol::model::a_server_that_does_not_look_again_is_found_out",
        why: LOOM,
        by: None,
    },
    Skipped {
        test: "diagnosis::trial::tests::of_what_a_child_says_only_so_much_is_looked_at",
        why: CLONE,
        by: Some(Sanitizer::Thread),
    },
    Skipped {
        test: "sys::tests::a_program_that_cannot_be_run_is_named_with_its_step_and_cure",
        why: CLONE,
        by: Some(Sanitizer::Thread),
    },
];

/// Why loom's models are not run.
const LOOM: &str = "loom runs its threads as coroutines on stacks that it switches by itself, which the runtime \
                    does not know, and never frees the first of them";

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    /// Tests that failed.
    failed: u64,
    /// Tests that were not run.
    left_out: u64,
    /// Suites that began and did not come to their end.
    unfinished: u64,
    /// What the sanitizer found.
    reports: usize,
}

impl Tally {
    /// Takes note of a line that a suite printed.
    fn read(&mut self, line: &str) {
        if is_beginning(line) {
            self.unfinished += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.unfinished = self.unfinished.saturating_sub(1);
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.left_out += count(counts, "filtered out");
        }
    }

    /// Everything that speaks against the code.
    fn bad(&self) -> u64 {
        self.failed + self.unfinished + u64::try_from(self.reports).unwrap_or(u64::MAX)
    }

    fn text(&self) -> String {
        let Self { passed, failed, unfinished, reports, .. } = self;
        let mut text = format!("{passed} passed, {failed} failed");
        if *unfinished > 0 {
            text.push_str(&format!(", {unfinished} suites cut short"));
        }
        if *reports > 0 {
            text.push_str(&format!(", {reports} reports"));
        }
        text
    }
}

/// Whether a suite begins with this line: "running 12 tests".
fn is_beginning(line: &str) -> bool {
    let number = line.strip_prefix("running ").and_then(|rest| rest.split_once(" test"));
    number.is_some_and(|(number, _)| number.parse::<u64>().is_ok())
}

impl Sanitizer {
    /// As the compiler calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    /// What it is built in.
    fn folder(self) -> PathBuf {
        target().join("sanitize").join(self.name())
    }

    /// Where reports are written: a suite keeps what its tests print to itself.
    fn reports(self) -> PathBuf {
        self.folder().join("reports")
    }

    /// `cargo test` with it.
    fn instrumented(self) -> Result<Command> {
        let log = self.reports().join("report");
        let log = log.display();
        let mut command = match self {
            Self::Address => {
                let mut command = cargo(&["test"]);
                command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
                let options =
                    "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1";
                command.env("ASAN_OPTIONS", format!("log_path={log}:{options}"));
                command
            }
            Self::Thread => {
                let (linker, runtime) = linked_with()?;
                let mut command = macos::cargo(&macos::toolchain()?)?;
                command.args(["test", "-Zbuild-std=std,panic_unwind,test"]);
                // All of the runtime, which replaces functions of the C library, and what it asks for beyond what
                // stands before it.
                let flags = format!(
                    "-Zsanitizer=thread -Zexternal-clangrt -Clink-arg=-B{} -Clink-arg=-fuse-ld=lld \
                     -Clink-arg=-Wl,--whole-archive,{},--no-whole-archive -Clink-arg=-lm -Clink-arg=-lc",
                    linker.display(),
                    runtime.display()
                );
                command.env("RUSTFLAGS", flags);
                command.env("TSAN_OPTIONS", format!("log_path={log}:history_size=4"));
                command
            }
        };
        command.args(["--locked", "--quiet", "--no-fail-fast"]);
        // With a target named, build scripts and macros are built without it.
        command.args(["--target", &triple()]).arg("--target-dir").arg(self.folder());
        Ok(command)
    }

    /// Whether a line begins a report.
    fn begins_report(self, line: &str) -> bool {
        match self {
            Self::Address => {
                line.contains("ERROR: AddressSanitizer") || line.contains("ERROR: LeakSanitizer")
            }
            Self::Thread => line.contains("WARNING: ThreadSanitizer"),
        }
    }
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The linker of the toolchain that runs this, since others refuse old versions of symbols that the runtime names, and
/// its runtime of ThreadSanitizer.
fn linked_with() -> Result<(PathBuf, PathBuf)> {
    let output = Command::new("rustc").args(["--print", "target-libdir"]).output()?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let folder = libraries.parent().ok_or("rustc does not say where its libraries are")?;
    let (linker, runtime) =
        (folder.join("bin/gcc-ld"), libraries.join("librustc-stable_rt.tsan.a"));
    for part in [&linker, &runtime] {
        if !part.exists() {
            return Err(format!("this toolchain has no {}", part.display()).into());
        }
    }
    Ok((linker, runtime))
}

/// Runs the suites under one sanitizer, or under each.
pub(crate) fn run(only: Option<Sanitizer>) -> Result {
    if !cfg!(target_os = "linux") {
        return Err("the sanitizers are run on Linux only".into());
    }
    let mut tallies = Vec::new();
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        if only.is_none_or(|only| only == sanitizer) {
            tallies.push((sanitizer, under(sanitizer)?));
        }
    }
    let skipped = SKIPPED.iter().map(|skipped| (skipped.test, skipped.why));
    for (what, why) in skipped.chain(LEFT_OUT) {
        say!("left out: {what}: {why}")?;
    }
    let mut bad = 0;
    for (sanitizer, tally) in tallies {
        say!("sanitize {}: {}", sanitizer.name(), tally.text())?;
        bad += tally.bad();
    }
    if bad == 0 { Ok(()) } else { Err("something was found: see above".into()) }
}

/// Runs the suites under one of them.
fn under(sanitizer: Sanitizer) -> Result<Tally> {
    let what = format!("suites under the {} sanitizer", sanitizer.name());
    times::heading(&what)?;
    let _ = std::fs::remove_dir_all(sanitizer.reports());
    crate::apt::make(&sanitizer.reports())?;
    let mut units = sanitizer.instrumented()?;
    units.args(["--lib", "--tests"]);
    units.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let mut in_process = sanitizer.instrumented()?;
    in_process.args(["--package", "cordon-tests", "--test", "in_process"]);

    let skipped = || SKIPPED.iter().filter(|skipped| skipped.is_by(sanitizer));
    let mut tally = Tally::default();
    for mut tests in [units, in_process] {
        tests.args(["--", "--exact"]);
        tests.args(skipped().flat_map(|skipped| ["--skip", skipped.test]));
        let before = tally.bad();
        let status = process::lines(&what, &mut tests, |line| {
            tally.read(line);
            Ok(say!("{line}")?)
        })?;
        tally.reports += tell(sanitizer)?;
        if !status.success() && tally.bad() == before {
            return Err(format!("{what} cannot be built or run: {status}").into());
        }
    }
    if tally.passed == 0 {
        return Err("no test ran".into());
    }
    let listed = skipped().count();
    if tally.left_out != u64::try_from(listed)? {
        let left_out = tally.left_out;
        return Err(format!("{left_out} tests were left out, {listed} are listed").into());
    }
    Ok(tally)
}

/// Prints the reports that there are and puts them away; how many.
fn tell(sanitizer: Sanitizer) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir(sanitizer.reports())? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        say!("{}:\n{text}", path.display())?;
        found += reports_in(sanitizer, &text);
        std::fs::remove_file(&path)?;
    }
    Ok(found)
}

/// How many reports a text is.
///
/// A process that is cloned onto a stack of its own and replaces itself by a program has the runtime remark that it does
/// not know the stack, which is no finding. Whatever else is said without a report's first line is one.
fn reports_in(sanitizer: Sanitizer, text: &str) -> usize {
    let first = |line: &&str| sanitizer.begins_report(line);
    let known = |line: &&str| {
        line.contains("WARNING: ASan is ignoring requested __asan_handle_no_return")
            || *line == "False positive error reports may follow"
            || line.starts_with("For details see ")
            || line.trim().is_empty()
    };
    let reports = text.lines().filter(first).count();
    reports.max(usize::from(!text.lines().all(|line| known(&line))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_one_and_what_is_left_out_has_a_reason() {
        for package in PACKAGES {
            let known = crate::policy::published().unwrap();
            assert!(known.contains(&package.to_owned()), "{package}");
        }
        let reasons = LEFT_OUT.map(|(_, why)| why).into_iter();
        let reasons = reasons.chain(SKIPPED.iter().map(|skipped| skipped.why));
        reasons.for_each(|why| assert!(why.len() > 20, "{why}"));
    }

    #[test]
    fn a_suite_without_an_end_and_a_report_speak_against_the_code() {
        let mut tally = Tally::default();
        tally.read("running 12 tests");
        tally.read("running late");
        assert_eq!(tally.bad(), 1);
        tally.read("test result: ok. 11 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 1s");
        assert_eq!((tally.bad(), tally.left_out), (0, 1));
        assert_eq!(tally.text(), "11 passed, 0 failed");
        tally.read("running 1 test");
        let leaks = "==7==ERROR: LeakSanitizer: detected memory leaks\n  Direct leak\n";
        tally.reports =
            reports_in(Sanitizer::Address, &leaks.repeat(2)) + reports_in(Sanitizer::Thread, "cut");
        assert_eq!(tally.bad(), 4);
        assert_eq!(tally.text(), "11 passed, 0 failed, 1 suites cut short, 3 reports");
        let remark = "==1==WARNING: ASan is ignoring requested __asan_handle_no_return: stack type: default\n\
                      False positive error reports may follow\nFor details see https://example.invalid\n";
        assert_eq!(reports_in(Sanitizer::Address, remark), 0);
        assert_eq!(
            reports_in(
                Sanitizer::Address,
                &format!("{remark}\n==1==ERROR: AddressSanitizer: heap-use-after-free\n")
            ),
            1
        );
    }
}
