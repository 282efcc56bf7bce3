//! Faults from a command line.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use cordon_vmm::faults::{Fault, FaultPlan, Faults};

use crate::Failure;

/// What is to go wrong.
#[derive(Debug, Args)]
pub(crate) struct FaultOptions {
    /// A JSON file of faults: {"faults": [...]}, as ARCHITECTURE.md describes.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// A fault, as function,device=01:00.1,request=BarWrite,nth=3,when=during,kill; repeat it for
    /// several.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
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
