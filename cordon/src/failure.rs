//! Why a command failed, and the exit status that says so.

use std::error::Error;

use console::{Interrupted, OutputError, exit};

use crate::control::AskError;

/// Why a command failed: one line for people.
pub(crate) type Failure = Box<dyn Error>;

/// How `cordon serve` ends other than by failing or in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServeEnd {
    /// Every function was given up, or its server failed.
    #[error("Every function was given up: nothing is left to serve")]
    NothingLeft,
    /// The process that starts others ended, so that none could be replaced any more.
    #[error("The process that starts device processes ended: none could be replaced any more")]
    SpawnerLost,
    /// It did not stop in order in time.
    #[error("Stopping took too long: child processes were killed")]
    Forced,
}

/// The command line makes no sense, which shows only when all of it is looked at.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// The exit status for a failure, and whether people need to be told anything else.
pub(crate) fn status(failure: &(dyn Error + 'static)) -> (u8, bool) {
    if failure.is::<OutputError>() {
        return (exit::UNWRITTEN, false);
    }
    if let Some(Interrupted(signal)) = failure.downcast_ref() {
        return (signal.status(), true);
    }
    if failure.is::<crate::doctor::Unknown>() {
        return (crate::doctor::Unknown::STATUS, true);
    }
    if let Some(crate::run::VmmEnded(status)) = failure.downcast_ref() {
        return (*status, false);
    }
    if failure.is::<Usage>() {
        return (exit::USAGE, true);
    }
    if let Some(AskError::NoServer { .. }) = failure.downcast_ref() {
        return (exit::NO_SERVER, true);
    }
    match failure.downcast_ref() {
        Some(ServeEnd::NothingLeft) => (exit::NOTHING_LEFT, true),
        Some(ServeEnd::Forced) => (exit::FORCED, true),
        Some(ServeEnd::SpawnerLost) | None => (exit::FAILED, true),
    }
}
