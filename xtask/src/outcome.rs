//! What suites say of their tests, read from what libtest prints; and tests that failed, run once more.
//!
//! A machine with two processors runs hundreds of processes of ours at once here, so a test may fail since everything
//! around it was late. One that failed is therefore run again, with only the others that failed. If it passes then,
//! the run goes on, and its last lines name it and say how it failed: it is a defect of the test or, worse, of what it
//! tests, and not to be lived with.

use std::process::Command;

use console::say;

use crate::{Result, process};

/// Most lines of what a failed test printed that are repeated at the end of a run.
const SAID: usize = 16;
/// Most characters of such a line.
const LONGEST: usize = 400;

/// A test that failed.
#[derive(Clone, Debug, PartialEq)]
struct Failure {
    /// As libtest names it in its suite.
    name: String,
    /// What it printed, its first lines: where it panicked and why.
    said: Vec<String>,
}

/// What one or more suites said.
#[derive(Debug, Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    /// How many suites began and have not come to their end.
    open: usize,
    failures: Vec<Failure>,
    /// Whether what comes is what the last of the failures printed.
    within: bool,
}

impl Outcome {
    /// Takes the next line that they print.
    fn take(&mut self, line: &str) {
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.failures.push(Failure { name: name.to_owned(), said: Vec::new() });
            self.within = true;
        } else if is_begin(line) {
            self.open += 1;
        } else if line == "failures:" {
            self.within = false;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.within = false;
            self.open = self.open.saturating_sub(1);
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some(failure) = self.failures.last_mut().filter(|_| self.within)
            && !line.trim().is_empty()
            && failure.said.len() < SAID
        {
            failure.said.push(line.chars().take(LONGEST).collect());
        }
    }

    /// The names of those that failed, each once; none unless each failure has one and every suite came to its end.
    fn names(&self) -> Vec<&str> {
        if self.open > 0 || self.failures.len() as u64 != self.failed {
            return Vec::new();
        }
        let mut names: Vec<_> = self.failures.iter().map(|failure| &*failure.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// What came of tests.
#[derive(Debug)]
pub(crate) struct Settled {
    /// Whether all passed, some of them perhaps only when they were run again.
    pub(crate) holds: bool,
    /// How many passed and failed in the end.
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    failures: Vec<Failure>,
}

impl Settled {
    /// Says which failed, how, and whether they passed when they were run again.
    pub(crate) fn tell(&self) -> Result {
        let how = if self.holds { "failed, and passed when run again" } else { "failed" };
        for Failure { name, said } in &self.failures {
            say!("{how}: {name}")?;
            said.iter().try_for_each(|line| say!("    {line}"))?;
        }
        Ok(())
    }

    /// How many failed and then passed, for a line of figures: nothing if none did.
    pub(crate) fn unsteady(&self) -> String {
        match self.failures.len() {
            count @ 1.. if self.holds => format!(", {count} of them only when run again"),
            _ => String::new(),
        }
    }
}

/// Runs tests, and those that failed once more. `command` runs tests of these names, or all of them if there are none.
/// Each line that they print is passed on, and to `seen`.
pub(crate) fn run(
    what: &str,
    command: impl Fn(&[&str]) -> Result<Command>,
    mut seen: impl FnMut(&str) + Send,
) -> Result<Settled> {
    settle(|names| {
        let mut outcome = Outcome::default();
        let status = process::lines(what, &mut command(names)?, |line| {
            outcome.take(line);
            seen(line);
            Ok(say!("{line}")?)
        })?;
        Ok((status.success(), outcome))
    })
}

/// A run of tests by Cargo, of these names only if there are some.
pub(crate) fn only(mut tests: Command, names: &[&str]) -> Command {
    if !names.is_empty() {
        tests.args(["--", "--exact"]).args(names);
    }
    tests
}

/// As [`run`]: `run` says whether that succeeded, and what came of it.
fn settle(mut run: impl FnMut(&[&str]) -> Result<(bool, Outcome)>) -> Result<Settled> {
    let (mut holds, first) = run(&[])?;
    let Outcome { mut passed, mut failed, .. } = first;
    let names = first.names();
    if !holds && !names.is_empty() {
        say!("\nrun again, since they failed: {}", names.join(", "))?;
        let (succeeded, second) = run(&names)?;
        holds = succeeded && second.failed == 0 && second.passed >= names.len() as u64;
        if holds {
            (passed, failed) = (passed + failed, 0);
        }
    }
    // A suite that ended without a result failed as a whole.
    let failed = if holds { failed } else { failed.max(1) };
    Ok(Settled { holds, passed, failed, failures: first.failures })
}

/// Whether a suite begins with this line, as "running 7 tests".
fn is_begin(line: &str) -> bool {
    let mut words = line.split(' ');
    words.next() == Some("running")
        && words.next().is_some_and(|number| number.parse::<u64>().is_ok())
        && matches!(words.next(), Some("test" | "tests"))
        && words.next().is_none()
}

/// The number before `word` in "ok. 7 passed; 0 failed; …".
pub(crate) fn count(counts: &str, word: &str) -> u64 {
    let parts = counts.split([';', '.']).map(str::trim);
    let number = parts.filter_map(|part| part.strip_suffix(word)).next();
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "
running 3 tests
test a::one ... ok
test two has been running for over 60 seconds
test two ... FAILED
test three ... FAILED

failures:

---- two stdout ----

thread 'two' (7) panicked at x.rs:1:2:
it was late
note: run with `RUST_BACKTRACE=1`

---- three stdout ----
thread 'three' (8) panicked at x.rs:3:4:
so was it

failures:
    three
    two

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s
";

    fn read(printed: &str) -> Outcome {
        let mut outcome = Outcome::default();
        printed.lines().for_each(|line| outcome.take(line));
        outcome
    }

    #[test]
    fn the_counts_of_a_suite_are_read() {
        let line = "FAILED. 73 passed; 2 failed; 0 ignored; 0 measured; finished in 1.20s";
        assert_eq!((count(line, "passed"), count(line, "failed")), (73, 2));
    }

    #[test]
    fn failures_are_read_with_what_they_say() {
        let outcome = read(PRINTED);
        assert_eq!((outcome.passed, outcome.failed, outcome.open), (1, 2, 0));
        assert_eq!(outcome.names(), ["three", "two"]);
        assert_eq!(outcome.failures[1].said[1], "so was it");
        assert_eq!(outcome.failures[0].said.len(), 3);
        let endless = format!("---- x stdout ----\n{}", "y\n".repeat(10_000));
        assert_eq!(read(&endless).failures[0].said.len(), SAID);
    }

    /// What comes of tests that print this at first, and that when they are run again.
    fn settled(first: &str, second: &str) -> (Settled, usize) {
        let mut runs = 0;
        let settled = settle(|names| {
            runs += 1;
            let printed = if names.is_empty() { first } else { second };
            assert!(runs == 1 || names == ["three", "two"], "{names:?}");
            Ok((printed.contains("result: ok"), read(printed)))
        });
        (settled.unwrap(), runs)
    }

    #[test]
    fn tests_that_pass_when_run_again_are_named_and_fail_nothing() {
        let (settled, _) = settled(PRINTED, "test result: ok. 2 passed; 0 failed;");
        assert!(settled.holds);
        assert_eq!((settled.passed, settled.failed), (3, 0));
        assert_eq!(settled.unsteady(), ", 2 of them only when run again");
    }

    #[test]
    fn tests_that_fail_again_or_are_not_found_again_have_failed() {
        let one = "test result: ok. 1 passed; 0 failed;";
        for second in ["test result: FAILED. 1 passed; 1 failed;", one, ""] {
            let (settled, runs) = settled(PRINTED, second);
            assert!(!settled.holds, "{second}");
            assert_eq!((settled.passed, settled.failed, runs), (1, 2, 2));
            assert_eq!(settled.unsteady(), "");
        }
    }

    #[test]
    fn a_suite_that_ended_without_a_result_is_not_run_again() {
        let cut = PRINTED.split("test result").next().unwrap();
        let another = format!("{PRINTED}\nrunning 1 test\n");
        for (first, failed) in [(cut, 1), (&another, 2), ("test one ... ok", 1)] {
            let (settled, runs) = settled(first, "test result: ok. 2 passed; 0 failed;");
            assert_eq!((settled.holds, settled.failed, runs), (false, failed, 1), "{first}");
        }
        let (settled, runs) = settled("test result: ok. 2 passed; 0 failed;", "");
        assert_eq!((settled.holds, settled.passed, settled.failed, runs), (true, 2, 0, 1));
    }
}
