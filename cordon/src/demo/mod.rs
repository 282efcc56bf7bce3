//! `cordon demo`: a simulated device with two functions, driven end to end as a VMM would.
//!
//! Each step either holds or ends the demo with one line and exit status 1. Every wait has a
//! deadline, so nothing that is killed meanwhile hangs it.

mod companion;
mod steps;
mod summary;

use std::path::PathBuf;

use clap::Args;

use crate::Failure;
use crate::rig::RigOptions;

/// What the demo is told.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Use this disk image for the NVMe function, and prove that what is read through the device
    /// equals the file. What is written back is what was read: the file does not change.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Print JSON lines instead of text; the last one sums up.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rig: RigOptions,
    /// The sandbox-probe program; by default the one beside this program.
    #[arg(long, env = "CORDON_SANDBOX_PROBE")]
    sandbox_probe: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn run(options: &DemoOptions) -> Result<(), Failure> {
    steps::run(options)
}
