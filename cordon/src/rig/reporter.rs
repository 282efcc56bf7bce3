//! Tells what a run does: text for people, or JSON lines.

use std::time::Instant;

use console::{Interrupt, Interrupted, Output, OutputError};
use serde_json::{Value, json};

use crate::Failure;

/// Where a run says what it does. A reader that does not read holds it up only until it is
/// interrupted.
pub(crate) struct Reporter {
    json: bool,
    started: Instant,
    output: Output,
    interrupt: Interrupt,
}

impl Reporter {
    pub(crate) fn new(json: bool, interrupt: Interrupt) -> Self {
        let output = Output::interruptible(interrupt.clone());
        Self { json, started: Instant::now(), output, interrupt }
    }

    /// A step begins, unless the run was interrupted.
    pub(crate) fn step(&self, name: &str) -> Result<(), Failure> {
        self.check()?;
        Ok(self.heading(name)?)
    }

    /// A step begins in any case.
    pub(crate) fn heading(&self, name: &str) -> Result<(), OutputError> {
        let elapsed = self.started.elapsed();
        if self.json {
            let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            self.output.line(json!({ "type": "step", "step": name, "ms": ms }))
        } else {
            self.output.line(format_args!("\n{:6.2} s  {name}", elapsed.as_secs_f64()))
        }
    }

    /// Something that was seen in it.
    pub(crate) fn say(&self, text: &str) -> Result<(), OutputError> {
        if self.json {
            self.output.line(json!({ "type": "say", "say": text }))
        } else {
            self.output.line(format_args!("          {text}"))
        }
    }

    /// Something for programs: an object of this type.
    pub(crate) fn data(&self, kind: &str, mut value: Value) -> Result<(), OutputError> {
        value["type"] = kind.into();
        if self.json { self.output.line(value) } else { Ok(()) }
    }

    /// Goes on only while the run was not interrupted.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        self.interrupt.check()
    }
}
