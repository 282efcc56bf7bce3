//! Every message type, data only: what two processes of the project, or a client and the
//! simulated dext, say to each other.
//!
//! Integers have fixed widths and enums have 32-bit tags in the order of declaration.
//! `tests/golden.rs` holds the bytes of each type for the version in [`handshake::VERSION`]; a change
//! there goes with a new version.

pub mod call;
pub mod common;
pub mod connection;
pub mod dext;
pub mod dma;
pub mod faults;
pub mod function;
pub mod handshake;
pub mod listing;
pub mod sandbox;
pub mod spawn;
