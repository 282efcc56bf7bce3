//! In which ways a dext or its device ends, as a client sees it.
//!
//! Nothing hangs up on a Mac: the connection stays, and every call on it comes back with one code.
//! Which one depends on what went first: the device, its driver instance, or the dext's process.

use std::str::FromStr;

use ipc::wire::dext::IoReturn;

/// What every call answers from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The device does not answer any more.
    Offline,
    /// The device is gone.
    NoDevice,
    /// The service has stopped.
    NotReady,
    /// The kernel cannot reach the dext.
    IpcError,
    /// The connection's port is dead.
    PortDead,
}

impl Ending {
    /// All of them by name.
    pub(crate) const ALL: [(&str, Self); 5] = [
        ("offline", Self::Offline),
        ("no-device", Self::NoDevice),
        ("not-ready", Self::NotReady),
        ("ipc-error", Self::IpcError),
        ("port-dead", Self::PortDead),
    ];

    /// The code of every external method.
    pub(crate) fn code(self) -> IoReturn {
        match self {
            Self::Offline => IoReturn::OFFLINE,
            Self::NoDevice => IoReturn::NO_DEVICE,
            Self::NotReady => IoReturn::NOT_READY,
            Self::IpcError => IoReturn::IPC_ERROR,
            Self::PortDead => IoReturn::PORT_DEAD,
        }
    }
}

/// A way that nothing ends in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no way to end: {names}", names = Ending::ALL.map(|(name, _)| name).join(", "))]
pub(crate) struct EndingError(String);

impl FromStr for Ending {
    type Err = EndingError;

    fn from_str(text: &str) -> Result<Self, EndingError> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, ending)| ending).ok_or_else(|| EndingError(text.to_owned()))
    }
}
