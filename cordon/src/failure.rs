//! Why a command failed, and the exit status that says so.

use std::error::Error;

use console::{Interrupted, OutputError, exit};

/// Why a command failed: one line for people.
pub(crate) type Failure = Box<dyn Error>;

/// How `cordon serve` ends other than by failing or in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServeEnd {
    /// Every function was given up, or its server failed.
    #[error("Every function was given up: nothing is left to serve")]
    NothingLeft,
    /// It did not stop in order in time.
    #[error("Stopping took too long: child processes were killed")]
    Forced,
}

/// The exit status for a failure, and whether people need to be told anything else.
pub(crate) fn status(failure: &(dyn Error + 'static)) -> (u8, bool) {
    if failure.is::<OutputError>() {
        return (exit::UNWRITTEN, false);
    }
    if let Some(Interrupted(signal)) = failure.downcast_ref() {
        return (signal.status(), true);
    }
    match failure.downcast_ref() {
        Some(ServeEnd::NothingLeft) => (exit::NOTHING_LEFT, true),
        Some(ServeEnd::Forced) => (exit::FORCED, true),
        None => (exit::FAILED, true),
    }
}
