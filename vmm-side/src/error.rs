//! Why a device, a container or an attach did not do what it was asked: a plain kind, the dext's code
//! where there is one, and one line of text that names the object and the operation.

use std::fmt;
use std::sync::Arc;

use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::dext::IoReturn;

use crate::child::{CallError, Death};
use crate::text::printable;

/// What kind of error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense: an index, range or width that is not there (EINVAL).
    InvalidArgument,
    /// The dext failed, or the request ended the process that carried it out (EIO).
    Io,
    /// There is no device, or no connection to it (ENODEV).
    NoDevice,
    /// This device or container does not do that (ENOTTY).
    NotSupported,
    /// Somebody else has it, or it is there already (EBUSY).
    Busy,
    /// A limit of the dext, of the platform or of this process is reached (ENOSPC).
    NoSpace,
    /// The caller's deadline passed first (ETIMEDOUT).
    TimedOut,
    /// Nobody serves it, for now or for good: reads are all ones, writes are dropped (ENODEV).
    Gone,
}

/// Why a device did not do what it was asked.
#[derive(Clone, Debug)]
pub struct DeviceError {
    kind: ErrorKind,
    code: Option<IoReturn>,
    message: String,
    death: Option<Arc<Death>>,
}

impl DeviceError {
    /// An error of `kind`; `message` is one line that names the object and the operation.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, code: None, message: message.into(), death: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn io(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message)
    }

    pub(crate) fn no_space(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NoSpace, message)
    }

    pub(crate) fn not_supported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotSupported, message)
    }

    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, message)
    }

    pub(crate) fn no_device(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NoDevice, message)
    }

    /// Nobody serves it, since this process died.
    pub(crate) fn gone(death: Arc<Death>) -> Self {
        Self { kind: ErrorKind::Gone, code: None, message: death.to_string(), death: Some(death) }
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The dext's code, where it was the dext that refused.
    #[must_use]
    pub fn code(&self) -> Option<IoReturn> {
        self.code
    }

    /// The death that it is the consequence of, if it is one.
    #[must_use]
    pub fn death(&self) -> Option<&Arc<Death>> {
        self.death.as_ref()
    }

    /// The errno of a front end that speaks in those.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self.kind {
            ErrorKind::InvalidArgument => libc::EINVAL,
            ErrorKind::Io => libc::EIO,
            ErrorKind::NoDevice | ErrorKind::Gone => libc::ENODEV,
            ErrorKind::NotSupported => libc::ENOTTY,
            ErrorKind::Busy => libc::EBUSY,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::TimedOut => libc::ETIMEDOUT,
        }
    }

    /// Whether nobody answers for the device: on a bus, reads of all ones and writes that go nowhere.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.kind, ErrorKind::Gone | ErrorKind::NoDevice)
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeviceError {}

/// Whether somebody answered for the device; [`DeviceError::is_absent`] is no error on a bus.
///
/// # Errors
/// Any other.
pub fn answered(done: Result<(), DeviceError>) -> Result<bool, DeviceError> {
    match done {
        Err(error) if error.is_absent() => Ok(false),
        other => other.map(|()| true),
    }
}

impl From<Failure> for DeviceError {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::InvalidArgument => ErrorKind::InvalidArgument,
            FailureKind::Io => ErrorKind::Io,
            FailureKind::NoDevice => ErrorKind::NoDevice,
            FailureKind::NotSupported => ErrorKind::NotSupported,
            FailureKind::Busy => ErrorKind::Busy,
            FailureKind::NoSpace => ErrorKind::NoSpace,
            FailureKind::Lost => ErrorKind::Gone,
        };
        let message = printable(&failure.message);
        Self { kind, code: failure.code.map(IoReturn), message, death: None }
    }
}

impl From<CallError> for DeviceError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(failure) => failure.into(),
            CallError::Dead(death) => Self::gone(death),
            CallError::TimedOut { .. } => Self::new(ErrorKind::TimedOut, error.to_string()),
        }
    }
}
