//! What travels between Cordon's processes, and how.
//!
//! | module | what |
//! | --- | --- |
//! | [`tube`] | the message channel: typed requests and replies with descriptors beside them |
//! | [`wire`] | every message type, data only |
//! | [`codec`] | the one file that knows bincode |
//! | [`lane`] | hot small requests of several threads, in shared memory beside the tube |
//! | [`event`] | a wake-up that crosses processes (eventfd; on macOS a pipe) |
//! | [`rights`] | bytes with descriptors beside them, over a local socket |
//! | [`spin`] | how long to look before sleeping |
//! | [`shm`] | shared memory that a distrusted peer cannot shrink |
//! | [`peer_memory`] | memory that its owner may shorten, for device models |
//! | [`window`] | checked volatile access to shared memory |
//! | [`socket_file`] | sockets in the file system: binding, replacing and removing their files |
//! | `vfio_file` | Linux: which file of VFIO's a descriptor is |
//! | [`poll`] | the one blocking wait, over tokens, always with a deadline |
//!
//! Every process of the project runs this code, and each side distrusts the other: lengths and
//! counts are compared with a named constant before anything is allocated, and a peer's death is
//! a value ([`tube::TubeError::Disconnected`]), never a hang.

pub mod address;
mod chain;
pub mod codec;
pub mod deadline;
mod device_memory;
pub mod event;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod handles;
pub mod lane;
pub mod limits;
mod numbers;
pub mod peer_memory;
pub mod poll;
pub mod rights;
pub mod root_bridge;
pub mod shm;
pub mod socket_file;
pub mod spin;
mod sys;
pub mod tube;
#[cfg(target_os = "linux")]
pub mod vfio_file;
pub mod window;
pub mod wire;

pub use address::PciAddress;
pub use chain::chain;
pub use deadline::Deadline;
pub use device_memory::DeviceMemory;
pub use event::Event;
pub use handles::Handles;
pub use numbers::numbered;
pub use peer_memory::{PeerMemory, PeerMemoryError};
pub use root_bridge::RootBridge;
pub use shm::SharedMemory;
pub use socket_file::{SocketFile, SocketFileError};
pub use sys::{MemoryEntry, MemoryInbox, MemoryPort};
pub use tube::{Tube, TubeError};
pub use window::{Access, Window, WindowError};

/// The example of README.md is tried like one of these pages.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
