//! Every message type, data only: what two processes of the project, or a client and the
//! simulated dext, say to each other.
//!
//! Integers have fixed widths, enums have 32-bit tags in the order of declaration, and a change
//! to any of it is a new protocol version: `tests/golden.rs` holds the bytes of each type.

pub mod common;
pub mod connection;
pub mod dext;
pub mod dma;
pub mod faults;
pub mod function;
pub mod handshake;
pub mod listing;
pub mod sandbox;
