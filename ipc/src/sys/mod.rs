//! What differs between systems: events, anonymous shared memory, and how a tube carries bytes.
//! One file per system, with identical signatures.

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
