//! `cordon demo`: a simulated device with two functions, driven end to end as a VMM would.
//!
//! Each step either holds or ends the demo with one line and exit status 1. Every wait has a
//! deadline, so nothing that is killed meanwhile hangs it.

mod leftovers;
mod nvme;
mod probe;
mod simulator;
mod steps;
mod storage;

use std::path::PathBuf;

use clap::Args;

use crate::{Failure, Sandbox};

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
    /// Refuse to start a process without a layer of its sandbox, or say which are missing.
    #[arg(long, value_enum, default_value_t = Sandbox::Strict)]
    sandbox: Sandbox,
    /// The device-proc program; by default the one beside this program.
    #[arg(long, env = "CORDON_DEVICE_PROC")]
    device_proc: Option<PathBuf>,
    /// The dext-sim program; by default the one beside this program.
    #[arg(long, env = "CORDON_DEXT_SIM")]
    dext_sim: Option<PathBuf>,
    /// The sandbox-probe program; by default the one beside this program.
    #[arg(long, env = "CORDON_SANDBOX_PROBE")]
    sandbox_probe: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn run(options: &DemoOptions) -> Result<(), Failure> {
    steps::run(options)
}

/// Says what happens: text for people, or JSON lines.
pub(crate) struct Voice {
    json: bool,
    started: std::time::Instant,
}

impl Voice {
    fn new(json: bool) -> Self {
        Self { json, started: std::time::Instant::now() }
    }

    /// A step begins.
    fn step(&self, name: &str) {
        let ms = self.started.elapsed().as_millis();
        if self.json {
            self.line(&serde_json::json!({ "step": name, "ms": ms }));
        } else {
            println!("\n{:6.2} s  {name}", self.started.elapsed().as_secs_f64());
        }
    }

    /// Something that was seen in it.
    fn say(&self, text: &str) {
        if self.json {
            self.line(&serde_json::json!({ "say": text }));
        } else {
            println!("          {text}");
        }
    }

    /// Something for programs.
    fn data(&self, value: &serde_json::Value) {
        if self.json {
            self.line(value);
        }
    }

    fn line(&self, value: &serde_json::Value) {
        use std::io::Write as _;
        println!("{value}");
        // A reader of the lines wants them now, not when the buffer is full.
        let _ = std::io::stdout().flush();
    }
}
