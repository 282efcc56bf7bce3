#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

pub mod bar;
mod bytes;
pub mod capabilities;
mod command;
pub mod decode;
pub mod header;
mod intx;
pub mod limits;
mod message;
mod msi;
mod msix;
pub mod permission;
pub mod placement;
mod power;
pub mod registers;
pub mod reset;
#[cfg(test)]
mod sample;
mod space;

pub use bar::{Bar, BarKind, BarSet, Bars};
pub use capabilities::{Capability, CapabilityId, MsiCapability, MsixCapability};
pub use command::CommandState;
pub use intx::{Intx, LineChange};
pub use message::{Message, VectorState};
pub use msi::Msi;
pub use msix::{Msix, MsixRegion};
pub use power::PowerState;
pub use space::{
    ConfigError, ConfigSpace, Delivery, Description, Effects, InterruptChanges, InterruptMode,
    InterruptPolicy, Options, ResetCause,
};
