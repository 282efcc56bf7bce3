//! Memory of a client of the dext, registered without a process between.

use dext_client::{Behind, Client};
use ipc::SharedMemory;
use ipc::wire::dext::IoReturn;
use rustix::fs::MemfdFlags;

/// Memory whose owner can shorten it, and of which nothing is there until it is touched.
///
/// # Panics
/// When the system has none.
#[must_use]
pub fn unsealed(size: u64) -> SharedMemory {
    let file = rustix::fs::memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, size).unwrap();
    SharedMemory::from_trusted(file, size).unwrap()
}

/// Registers `size` bytes of `memory`, writable, under `key`; the bus address.
///
/// # Errors
/// The dext's code.
///
/// # Panics
/// When there is no dext any more.
pub fn register(
    client: &mut Client,
    key: u64,
    memory: &SharedMemory,
    size: u64,
) -> Result<u64, IoReturn> {
    let behind = Behind { memory, offset: 0, writable: true };
    let registered = client.register_dma(key, 0x1000, size, behind);
    registered.map(|(bus, _)| bus).map_err(|error| error.code().unwrap())
}
