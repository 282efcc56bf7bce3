//! What goes wrong in a test before what it tests does.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cordon_vmm::child::Death;
use cordon_vmm::faults::FaultError;
use cordon_vmm::{AttachError, DeviceError};

use crate::simulator::Held;

/// Why a rig cannot do what it was told, or what did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program is nowhere.
    #[error("The program {name} is not at {}", listed(looked))]
    NoProgram {
        /// Which.
        name: String,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// A program cannot be run.
    #[error("Cannot run {}", program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A program did not get ready; what it has to say is on standard error.
    #[error("{} did not get ready: it said {said:?}", program.display())]
    NotReady {
        /// Which.
        program: PathBuf,
        /// What it said instead.
        said: String,
    },
    /// A program does not answer.
    #[error("{what} does not answer")]
    Silent {
        /// Which.
        what: String,
        /// What came instead.
        #[source]
        error: io::Error,
    },
    /// A program refused what it was told.
    #[error("{what}: {why}")]
    Refused {
        /// What it was told.
        what: String,
        /// What it answered.
        why: String,
    },
    /// No such function, or no address.
    #[error("'{0}' is no address of a function: BB:DD.F is")]
    Address(String),
    /// A fault makes no sense.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// A function cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Guest memory cannot be given to the device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Files, memory or processes of this one.
    #[error("{what}")]
    System {
        /// What was done.
        what: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// What was waited for did not happen.
    #[error("{what} within {} s", time.as_secs())]
    Overdue {
        /// What did not happen.
        what: String,
        /// In which time.
        time: Duration,
    },
    /// A function is served no more.
    #[error("Given up: {0}")]
    GivenUp(Arc<Death>),
    /// The dext still has something of clients that are gone.
    #[error("The dext still has, of {}", joined(.0))]
    Left(Vec<Held>),
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { what, error }
    }
}

fn listed(looked: &[PathBuf]) -> String {
    let all: Vec<String> = looked.iter().map(|path| path.display().to_string()).collect();
    format!(
        "{} (build all programs, or name their folder by {})",
        all.join(", "),
        crate::programs::FOLDER_VARIABLE
    )
}

fn joined(held: &[Held]) -> String {
    let all: Vec<String> = held.iter().map(ToString::to_string).collect();
    all.join("; ")
}
