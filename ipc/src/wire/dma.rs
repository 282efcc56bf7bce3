//! Function process and connection process: DMA on demand, for the companion of a function.

use serde::{Deserialize, Serialize};

use super::common::FailureKind;
use super::connection::DmaEntry;
pub use crate::limits::MAX_BATCH;

/// What a function process asks for on behalf of its guest. `batch` is the number of the doorbell:
/// a doorbell that is carried out again, since its process died, repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Register ranges, at most [`MAX_BATCH`]. Answered by a [`Reply`].
    Map {
        /// Number of the doorbell.
        batch: u64,
        /// Milliseconds that it may take: what has not been begun by then fails.
        timeout_ms: u32,
        /// Ranges.
        entries: Vec<DmaEntry>,
    },
    /// Remove registrations, at most [`MAX_BATCH`]. Answered by a [`Reply`].
    Unmap {
        /// Number of the doorbell.
        batch: u64,
        /// Milliseconds that it may take: what has not been begun by then fails.
        timeout_ms: u32,
        /// Keys.
        keys: Vec<u64>,
    },
    /// The guest is told that the batch failed: what was carried out of it is undone, and what was
    /// not never is. Not answered, and the batch not any more.
    Abandon {
        /// Number of the doorbell.
        batch: u64,
    },
}

/// What became of one entry. No text: 4096 of them fit into one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Registered; the device reaches it here.
    Mapped {
        /// Bus address.
        bus_address: u64,
        /// Bytes.
        bus_length: u64,
    },
    /// Removed.
    Unmapped,
    /// Refused or failed; the other entries are not affected.
    Failed(FailureKind),
}

/// What the connection process answers to a batch, under the number of its message: one outcome for
/// each entry, in order, or why there is none.
pub type Reply = Result<Vec<Outcome>, FailureKind>;
