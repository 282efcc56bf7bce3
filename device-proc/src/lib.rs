//! The confined processes that talk to the dext.
//!
//! | module | process | what |
//! | --- | --- | --- |
//! | [`connection`] | connection | claims, DMA registrations and BAR windows of one device |
//! | [`function`] | function | config space, trapped BAR access, interrupts, reset of one function |
//! | [`lister`] | lister | what the dext offers, for people |
//! | [`dext`] | all | the dext's interface: a crate of its own |
//! | [`doctor`] | none | what this program says of its own confinement |
//! | [`memory`] | connection, function | the table of guest memory |
//! | [`misbehave`] | connection, function | wrong on purpose, where a test asks for it |
//! | [`start`] | all | the order of life: handshake, open, confine, report, serve |
//!
//! Each process distrusts the guest and every byte it is sent, exits at once when its VMM side is
//! gone, and does nothing after confinement that could open, run or signal anything. The crate is
//! a library so that the suites can run the same code; the product is the `device-proc` program.

pub mod capabilities;
pub mod connection;
pub mod doctor;
pub mod function;
pub mod lister;
pub mod memory;
pub mod misbehave;
pub mod options;
pub mod start;
mod sys;

pub use dext_client as dext;

/// A failure of the dext's as it travels up: what kind it is for an errno, the code, one line.
pub(crate) fn failure(error: &dext::DextError) -> ipc::wire::common::Failure {
    use ipc::wire::common::{Failure, FailureKind};
    use ipc::wire::dext::IoReturn;
    let kind = match error.code() {
        None => FailureKind::NoDevice,
        Some(_) if error.is_lost() => FailureKind::NoDevice,
        Some(IoReturn::NO_SPACE | IoReturn::NO_MEMORY) => FailureKind::NoSpace,
        Some(IoReturn::STILL_OPEN) => FailureKind::Busy,
        Some(_) => FailureKind::Io,
    };
    Failure { kind, code: error.code().map(|code| code.0), message: error.to_string() }
}
