//! Faults from a command line.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use cordon_vmm::faults::{Fault, FaultPlan, Faults, GRAMMAR};

use crate::Failure;

/// What is to go wrong.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct FaultOptions {
    /// A JSON file of faults: {"faults": [{"process": "function", "request": "BarWrite", "nth": 3,
    /// "when": "during", "what": "kill"}]}; its words are those of --fault.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// A fault, as function,request=BarWrite,nth=3,when=during,kill; repeat it for
    /// several.
    #[arg(long = "fault", value_name = "FAULT", long_help = fault_help())]
    faults: Vec<Fault>,
}

/// What a fault is, with the grammar that its parser has.
fn fault_help() -> String {
    let short =
        "A fault, as function,request=BarWrite,nth=3,when=during,kill; repeat it for several.";
    format!("{short}\n\n{GRAMMAR}")
}

impl FaultOptions {
    /// Whether anything is to go wrong.
    pub(crate) fn any(&self) -> bool {
        self.plan.is_some() || !self.faults.is_empty()
    }

    /// Arms them all.
    pub(crate) fn arm(&self) -> Result<Arc<Faults>, Failure> {
        let mut all = FaultPlan::default();
        if let Some(path) = &self.plan {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            all = serde_json::from_str(&text)
                .map_err(|error| format!("{} is no fault plan: {error}", path.display()))?;
        }
        all.faults.extend(self.faults.iter().cloned());
        Ok(Faults::new(all)?)
    }
}
