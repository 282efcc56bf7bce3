//! Guest memory as a VMM describes it.

use std::sync::Arc;

use ipc::{Deadline, SharedMemory};

use crate::error::DeviceError;

/// A region of guest memory.
#[derive(Debug)]
pub struct GuestRegion {
    /// Guest address, which devices use as it is in direct mode.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The memory. Regions of one file share it, and with it its descriptor.
    pub memory: Arc<SharedMemory>,
    /// Where in the memory the region begins.
    pub offset: u64,
    /// Whether devices may write it.
    pub writable: bool,
}

impl GuestRegion {
    /// Whether it is the same part of the same memory, by another handle or the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let place = |one: &Self| (one.iova, one.size, one.offset, one.writable);
        place(self) == place(other) && self.memory.is_same_as(&other.memory)
    }
}

/// Whoever reads a guest's rings: it is given guest RAM as it comes, and has it taken away.
pub(crate) trait RingReader: Send + Sync {
    /// Gives it a region.
    ///
    /// # Errors
    /// [`DeviceError`]; it does not have it then.
    fn give(&self, region: Arc<GuestRegion>, deadline: Deadline) -> Result<(), DeviceError>;

    /// Takes the region at `base` away.
    fn take(&self, base: u64, deadline: Deadline);
}
