//! What differs between systems: events, anonymous shared memory, and how a tube carries bytes.
//! One file per system, with identical signatures.
//!
//! Events and tubes are chosen by flavour: `--cfg cordon_portable` builds Linux with the pipes and
//! the STREAM tube that macOS has, so that they are driven by whole programs here too.

#[cfg(not(any(target_os = "macos", cordon_portable)))]
mod eventfds;
#[cfg(not(any(target_os = "macos", cordon_portable)))]
mod flavour {
    pub(crate) use super::eventfds::{EventPair, clear_event};
    pub(crate) use crate::tube::packet::PacketTransport as Transport;

    /// The kind of socket that carries tubes.
    pub(crate) const TUBE_SOCKET: rustix::net::SocketType = rustix::net::SocketType::SEQPACKET;
}
#[cfg(any(target_os = "macos", cordon_portable))]
mod pipes;
#[cfg(any(target_os = "macos", cordon_portable))]
mod flavour {
    pub(crate) use super::pipes::{EventPair, clear_event};
    pub(crate) use crate::tube::stream::StreamTransport as Transport;

    /// The kind of socket that carries tubes.
    pub(crate) const TUBE_SOCKET: rustix::net::SocketType = rustix::net::SocketType::STREAM;
}
pub(crate) use flavour::{EventPair, TUBE_SOCKET, Transport, clear_event};

mod interval;
pub(crate) use interval::{Interval, ticks};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(target_os = "linux")]
pub use linux::{MemoryEntry, MemoryInbox, MemoryPort};

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub(crate) use macos::*;
#[cfg(target_os = "macos")]
pub use macos::{MemoryEntry, MemoryInbox, MemoryPort};
