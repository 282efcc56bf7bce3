//! Where there is no sandbox to attack from that a suite could look at.

/// Attacks nobody.
pub(crate) fn run() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
