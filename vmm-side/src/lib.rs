//! What a VMM links to pass PCI functions through Cordon's confined processes.
//!
//! | module | what |
//! | --- | --- |
//! | [`device`] | [`PassthroughDevice`], the trait that VMM authors see, and its errors |
//! | [`faults`] | faults on purpose, as data |
//! | [`host`] | attach and detach: processes started, claim taken, everything undone in reverse |
//! | [`proxy`] | the trait, carried out by a function process |
//! | [`container`] | guest memory and DMA of the functions of one guest |
//! | [`slot`] | a function and the process that serves it, replaced when it dies |
//! | [`recovery`] | whether and how dead processes are replaced |
//! | [`supervisor`] | one thread for each child process: spawn, handshake, requests, death |
//! | [`companion`] | the DMA companion device |
//! | [`connection`] | the VMM side of a connection process |
//! | [`registry`] | who owns which host function |
//! | [`text`] | text of a distrusted process, fit for people |
//! | [`listing`] | what the dext offers, read by a confined process |
//!
//! Everything here runs in the VMM. It distrusts every process below it: what they send is
//! checked, what they do not answer in time ends them, and their death is a value
//! ([`DeviceError::Gone`]) that reads as all ones.

pub mod companion;
pub mod connection;
pub mod container;
pub mod device;
pub mod faults;
pub mod host;
pub mod listing;
mod memory;
pub mod proxy;
pub mod recovery;
pub mod registry;
pub mod slot;
pub mod supervisor;
mod sys;
pub mod text;
mod windows;

pub use companion::{Companion, CompanionConfig};
pub use container::{Container, DmaMode};
pub use device::{DeviceError, PassthroughDevice};
pub use host::{Host, HostConfig, WindowRoute};
pub use proxy::Proxy;
pub use recovery::Recovery;
pub use slot::Presence;
