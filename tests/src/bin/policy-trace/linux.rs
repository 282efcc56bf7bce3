//! The comparison.

use std::process::{Command, ExitCode};

use cordon_tests::trace::{Clock, Tracer};
use cordon_tests::{announce, bin_dir};

/// Runs the command, and says what was seen.
pub(crate) fn run(command: &mut Command) -> ExitCode {
    let tracer = Tracer::start(bin_dir(), Clock::AsItIs);
    let status = command.env("CORDON_BIN_DIR", tracer.folder()).status().unwrap();
    let seen = tracer.seen();
    let compared = seen.compare();
    for row in &compared.unneeded {
        announce(&format!("policy trace: nobody needs {row}"));
    }
    for call in &compared.forbidden {
        announce(&format!("policy trace: needed and not allowed: {call}"));
    }
    announce(&format!(
        "policy trace: of {} rows {} were used and {} are by tests of their own, {} by nobody; {} calls of {} \
         confined processes, {} of them by no row",
        compared.rows,
        compared.used,
        compared.elsewhere,
        compared.unneeded.len(),
        seen.calls,
        seen.processes,
        compared.forbidden.len()
    ));
    if !status.success() {
        announce(&format!(
            "policy trace: what ran under the tracer did not pass throughout: {status}"
        ));
    }
    let holds = compared.unneeded.is_empty() && compared.forbidden.is_empty();
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
