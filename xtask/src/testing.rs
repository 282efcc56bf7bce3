//! The tests of the workspace as a part of `cargo xtask test`, and its last lines.

use std::collections::BTreeMap;

use console::say;

use crate::outcome::{self, Settled};
use crate::{Result, cargo, firmware, for_host, free_gib, guest, target, times};

/// What some suites say of themselves in a line with this beginning, and what it is if none says it.
const VERDICTS: [(&str, &str); 3] = [
    ("vmm: ", "vmm: it did not say what it tried"),
    ("attacks: ", "attacks: it was not said what was tried"),
    ("events: ", "events: it was not said what was validated"),
];

/// Tests that run in machines of their own, by where they are: what the line that counts them is called.
const MACHINES: [(&str, &str); 2] =
    [("test arm64::", "arm64 guest"), ("test kernel_vfio::", "vfio guest")];

/// What is told of a run of the tests.
#[derive(Default)]
struct Told {
    verdicts: [Option<String>; VERDICTS.len()],
    machines: [Machine; MACHINES.len()],
}

#[derive(Default)]
struct Machine {
    /// Whether each test passed, by name: the last time, if it was run again.
    results: BTreeMap<String, bool>,
    figures: String,
}

impl Machine {
    /// How many passed or failed in the end.
    fn count(&self, passed: bool) -> usize {
        self.results.values().filter(|one| **one == passed).count()
    }
}

impl Told {
    fn take(&mut self, line: &str) {
        for (told, (begins, _)) in self.verdicts.iter_mut().zip(VERDICTS) {
            if line.starts_with(begins) {
                *told = Some(line.to_owned());
            }
        }
        for (machine, (begins, name)) in self.machines.iter_mut().zip(MACHINES) {
            if line.starts_with(begins) {
                // Of one that takes long there are other lines too.
                if let Some((test, result)) = line.rsplit_once(" ... ") {
                    machine.results.insert(test.to_owned(), result == "ok");
                }
            } else if let Some(figures) =
                line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "))
            {
                machine.figures.push_str("; ");
                machine.figures.push_str(figures);
            }
        }
    }

    fn tell(&self) -> Result {
        for (machine, (_, name)) in self.machines.iter().zip(MACHINES) {
            let (passed, failed) = (machine.count(true), machine.count(false));
            say!("{name}: {passed} passed, {failed} failed{}", machine.figures)?;
        }
        for (told, (_, otherwise)) in self.verdicts.iter().zip(VERDICTS) {
            say!("{}", told.as_deref().unwrap_or(otherwise))?;
        }
        Ok(())
    }
}

/// Runs the tests, passes their output on, and closes with the sum of all suites. `guide` is the guide's own line.
pub(crate) fn run(without_kvm: bool, guide: &str) -> Result {
    let mut environment = vec![
        ("CORDON_BIN_DIR", target().join("debug")),
        ("CORDON_WITHOUT_KVM", if without_kvm { "1" } else { "" }.into()),
    ];
    if !cfg!(target_os = "macos") {
        times::heading("QEMU and a guest")?;
        environment.push(("CORDON_GUEST_DIR", guest::folder()?));
        environment.push(("CORDON_FIRMWARE", firmware::build()?));
    }
    times::heading("tests")?;
    let mut told = Told::default();
    let command = |names: &[&str]| {
        let mut tests = for_host(cargo(&["test", "--workspace", "--no-fail-fast"]));
        tests.envs(environment.iter().map(|(name, value)| (name, value)));
        Ok(outcome::only(tests, names))
    };
    let settled = outcome::run("tests", command, |line| told.take(line))?;
    times::tell()?;
    say!("disk: {} GiB left\n", free_gib()?)?;
    settled.tell()?;
    told.tell()?;
    say!("{guide}")?;
    let Settled { holds, passed, failed, .. } = settled;
    say!("suites: {passed} passed, {failed} failed{}", settled.unsteady())?;
    match (holds, passed) {
        (true, 0) => Err("no test ran".into()),
        (true, _) => Ok(()),
        (false, _) => Err("tests failed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_tests_in_machines_only_results_are_counted() {
        let mut told = Told::default();
        for line in [
            "test kernel_vfio::a ... ok",
            "test kernel_vfio::b has been running for over 60 seconds",
            "test kernel_vfio::b ... FAILED",
            "vfio guest: 3 kills",
            "vmm: 7 passed",
        ] {
            told.take(line);
        }
        let machine = &told.machines[1];
        assert_eq!((machine.count(true), machine.count(false)), (1, 1));
        assert_eq!(machine.figures, "; 3 kills");
        assert_eq!(told.verdicts[0].as_deref(), Some("vmm: 7 passed"));
        // It was run again.
        told.take("test kernel_vfio::b ... ok");
        assert_eq!((told.machines[1].count(true), told.machines[1].count(false)), (2, 0));
    }
}
