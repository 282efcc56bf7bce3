//! Guest memory as a VMM describes it.

use ipc::SharedMemory;

/// A region of guest memory.
#[derive(Debug)]
pub struct GuestRegion {
    /// Guest address, which devices use as it is in direct mode.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The memory.
    pub memory: SharedMemory,
    /// Where in the memory the region begins.
    pub offset: u64,
    /// Whether devices may write it.
    pub writable: bool,
}
