//! What suites ask of what ran in the machine.

use serde_json::Value;

use crate::machine::{Ran, RanStep};
use crate::script::Ending;

impl Ran {
    /// A step that ran.
    ///
    /// # Panics
    /// When there was none of that name.
    #[must_use]
    pub fn found(&self, name: &str) -> &RanStep {
        self.step(name).unwrap_or_else(|| panic!("no {name}: {self}"))
    }

    /// A step that exited with 0 and left no process.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn done(&self, name: &str) -> &RanStep {
        let step = self.found(name);
        assert!(step.succeeded() && step.left.is_empty(), "{step:#?}\n{:#?}", self.kernel);
        step
    }

    /// What a step of the demo's sums up, which was done and says so.
    ///
    /// # Panics
    /// When it was not, or says otherwise.
    #[must_use]
    pub fn summary(&self, name: &str) -> Value {
        let step = self.done(name);
        let last = step.output.last().and_then(|line| serde_json::from_str(line).ok());
        let summary: Value = last.unwrap_or_else(|| panic!("no summary: {step:#?}"));
        let says = (&summary["type"], &summary["ok"]);
        assert_eq!(says, (&"summary".into(), &true.into()), "{summary}");
        summary
    }

    /// That a step failed by itself, left no process, and said all of this.
    ///
    /// # Panics
    /// When it did not.
    pub fn assert_refused(&self, name: &str, parts: &[&str]) {
        let step = self.found(name);
        let failed = matches!(step.ending, Some(Ending::Exited(status)) if status != 0);
        let said = step.errors.join("\n");
        let missing: Vec<_> = parts.iter().filter(|part| !said.contains(**part)).collect();
        assert!(failed && step.left.is_empty() && missing.is_empty(), "no {missing:?}: {step:#?}");
    }

    /// That the kernel reported no fault of DMA by these functions.
    ///
    /// # Panics
    /// When it did.
    pub fn assert_no_faults(&self, functions: &[&str]) {
        let faults: Vec<_> = functions.iter().flat_map(|one| self.faults_of(one)).collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }

    /// What the kernel reported of DMA by a function that was stopped.
    #[must_use]
    pub fn faults_of(&self, function: &str) -> Vec<&String> {
        let short = function.trim_start_matches("0000:");
        let of_it = |line: &&String| line.contains("DMAR") && line.contains(short);
        self.kernel.iter().filter(of_it).collect()
    }

    /// The IOMMU group of a function.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn group(&self, address: &str) -> u32 {
        let group = self.function(address).and_then(|function| function.group);
        group.unwrap_or_else(|| panic!("{address} is in no group: {self}"))
    }
}

impl RanStep {
    /// What it printed, as one JSON object.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn said(&self) -> Value {
        let output = self.output.join("\n");
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// A number in an object.
///
/// # Panics
/// When it has none of that name.
#[must_use]
pub fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("no number {name}: {object}"))
}
