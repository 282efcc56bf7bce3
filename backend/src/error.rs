//! The one error of every backend: a plain kind, and who, what and why for people.

use std::fmt;

/// What kind of failure it is: what a caller can decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The backend is not there, or this build cannot talk to it.
    Unreachable,
    /// The backend has no such function.
    NoSuchDevice,
    /// What was asked for is there more than once.
    Ambiguous,
    /// The function went away after it was found: for good, as far as whoever has it open can know. If
    /// it comes back it must be opened anew.
    Gone,
    /// The backend, the device or the way to it is gone or out of step: nothing works any more.
    Lost,
    /// Somebody else has it, or it is there already.
    Busy,
    /// A limit of the platform's is reached.
    NoSpace,
    /// The platform cannot give a device this memory as one range.
    Fragmented,
    /// This backend has nothing of the kind.
    Unsupported,
    /// The backend gave an answer that cannot be.
    Invalid,
    /// The backend refused; its code says why.
    Refused,
}

/// Why a backend did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// The object, as a sentence begins: "Function 01:00.0".
    pub subject: String,
    /// What was asked of it, in the backend's own words.
    pub operation: &'static str,
    /// The platform's code, when it was the platform that refused: an IOReturn, an errno.
    pub code: Option<u32>,
    /// Why, on one line.
    pub text: String,
}

impl BackendError {
    /// An error without a code.
    #[must_use]
    pub fn new(
        kind: ErrorKind,
        subject: impl Into<String>,
        operation: &'static str,
        text: impl Into<String>,
    ) -> Self {
        Self { kind, subject: subject.into(), operation, code: None, text: text.into() }
    }

    /// The same with the platform's code.
    #[must_use]
    pub fn with_code(self, code: Option<u32>) -> Self {
        Self { code, ..self }
    }

    /// Whether there is no point in going on.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.kind, ErrorKind::Gone | ErrorKind::Lost)
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, subject, operation, text, .. } = self;
        match kind {
            ErrorKind::Unreachable => write!(f, "No {subject}: {text}"),
            ErrorKind::NoSuchDevice => write!(f, "No such device: {text}"),
            _ => write!(f, "{subject}: {operation} failed: {text}"),
        }
    }
}

impl std::error::Error for BackendError {}
