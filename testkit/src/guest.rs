//! Guest memory that a device reaches.

use std::io;
use std::sync::Arc;

use cordon_vmm::container::GuestRegion;
use cordon_vmm::{Container, DmaMode, SharedMemory, Window};
use ipc::Access;

use crate::Error;

/// Guest RAM begins here, as on Apple silicon.
pub const RAM_BASE: u64 = 0x8000_0000;

/// A container with one region of `bytes` at [`RAM_BASE`], and the VMM's own mapping of it.
///
/// # Errors
/// [`Error::System`] without memory, [`Error::Device`] when it cannot be the container's.
pub fn memory(mode: DmaMode, bytes: u64) -> Result<(Arc<Container>, Window), Error> {
    let memory = SharedMemory::create("guest-ram", bytes)
        .map_err(Error::system("Guest memory cannot be made"))?;
    let ram = memory
        .map_all(Access::ReadWrite)
        .map_err(io::Error::other)
        .map_err(Error::system("Guest memory cannot be mapped"))?;
    let container = Arc::new(Container::new(mode));
    container.map(GuestRegion {
        iova: RAM_BASE,
        size: bytes,
        memory: memory.into(),
        offset: 0,
        writable: true,
    })?;
    Ok((container, ram))
}
