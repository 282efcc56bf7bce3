//! The confined processes that talk to the backend: the dext, or whatever else gives them functions.
//!
//! | module | process | what |
//! | --- | --- | --- |
//! | [`connection`] | connection | claims, DMA registrations and BAR windows of one device |
//! | [`function`] | function | config space, trapped BAR access, interrupts, reset of one function |
//! | `in_process` | none | roles as threads, for tests of whoever starts processes |
//! | [`lister`] | lister | what the backend offers, for people |
//! | [`doctor`] | none | what this program says of its own confinement |
//! | [`log`] | all | lines on standard error |
//! | [`memory`] | connection, function | the table of guest memory |
//! | [`backends`] | all | which backends there are |
//! | [`hooks`] | connection, function | where a program for tests does wrong on purpose |
//! | [`program`] | all | the command line, and a role by it |
//! | [`start`] | all | the order of life: handshake, open, confine, report, serve |
//!
//! Each process distrusts the guest and every byte it is sent, exits at once when its VMM side is
//! gone, and does nothing after confinement that could open, run or signal anything. The crate is
//! a library so that the suites can run the same code; the product is the `device-proc` program.

pub mod backends;
pub mod budget;
pub mod connection;
pub mod doctor;
pub mod function;
pub mod hooks;
#[cfg(any(test, feature = "in-process"))]
pub mod in_process;

pub mod limits;
pub mod lister;
pub mod log;
pub mod memory;
pub mod options;
pub mod panics;
mod pci;
pub mod program;
mod reset;
pub mod start;
mod sys;
#[cfg(target_os = "linux")]
#[cfg(test)]
mod vfio_tests;

/// A failure of the backend's as it travels up: what kind it is for an errno, the code, one line.
pub(crate) fn failure(error: &cordon_backend::BackendError) -> ipc::wire::common::Failure {
    use cordon_backend::ErrorKind;
    use ipc::wire::common::{Failure, FailureKind};
    let kind = match error.kind {
        _ if error.is_fatal() => FailureKind::Lost,
        ErrorKind::Unreachable | ErrorKind::NoSuchDevice | ErrorKind::Invalid => {
            FailureKind::NoDevice
        }
        ErrorKind::Ambiguous => FailureKind::InvalidArgument,
        ErrorKind::Busy => FailureKind::Busy,
        ErrorKind::NoSpace => FailureKind::NoSpace,
        ErrorKind::Unsupported => FailureKind::NotSupported,
        _ => FailureKind::Io,
    };
    Failure { kind, code: error.code, message: error.to_string() }
}
