//! DMA: buffers of the dext's, and regions of the client's memory.

use std::sync::Arc;

use ipc::wire::dext::{INTERRUPT_PAGE, IoReturn};
use ipc::{Access, SharedMemory};

use super::{Behind, Scalars, UserClient};
pub(crate) use crate::limits::MAX_BUFFER;
use crate::limits::MAX_CHUNKS;
use crate::limits::MAX_REGIONS;
use crate::memory::ClientMemory;

/// A region is split in chunks of this size.
const CHUNK: u64 = 3 << 29;

/// A registered region.
pub(super) struct Region {
    bus: u64,
    length: u64,
}

/// The buffer of AllocateDMABuffer.
pub(super) struct Buffer {
    bus: u64,
    pub(super) memory: SharedMemory,
}

impl UserClient {
    /// Selector AllocateDMABuffer. The buffer is one segment, registered under a key of its own.
    pub(super) fn allocate(&mut self, size: u64, alignment: u64) -> Scalars {
        self.function.open(self.id)?;
        let alignment = if alignment == 0 { 4096 } else { alignment };
        if size == 0 || size > MAX_BUFFER || !alignment.is_power_of_two() {
            return Err(IoReturn::BAD_ARGUMENT);
        }
        self.free_buffer();
        let backing = size.next_multiple_of(INTERRUPT_PAGE as u64);
        let memory = SharedMemory::create("dext-dma-buffer", backing);
        let memory = memory.map_err(|_| IoReturn::NO_MEMORY)?;
        let handle = memory.try_clone().map_err(|_| IoReturn::NO_MEMORY)?.into_fd();
        let budget = &self.function.buffers;
        let mapped = ClientMemory::map(&handle, backing, Access::ReadWrite, budget)
            .map_err(|_| IoReturn::NO_MEMORY)?;
        // The buffer's own bus address: far above any guest memory that identity mode could name.
        let key = (1 << 56) + (self.id << 32);
        let key = key.next_multiple_of(alignment);
        let dart = &self.function.hardware.dart;
        let mapped = dart.map(self.id, key, Arc::new(mapped), 0, size);
        let bus = mapped.map_err(|_| IoReturn::NO_SPACE)?;
        self.buffer = Some(Buffer { bus, memory });
        let class = self.function.identity.class.into();
        Ok(vec![size, 0, 1, bus, size, class])
    }

    pub(super) fn free_buffer(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.function.hardware.dart.unmap(self.id, buffer.bus);
        }
    }

    pub(super) fn register(
        &mut self,
        key: u64,
        address: u64,
        size: u64,
        behind: Behind,
    ) -> Scalars {
        self.function.open(self.id)?;
        if address == 0 || size == 0 || key.checked_add(size).is_none() {
            return Err(IoReturn::BAD_ARGUMENT);
        }
        if self.regions.contains_key(&key) {
            return Err(IoReturn::STILL_OPEN);
        }
        if self.regions.len() >= MAX_REGIONS || size.div_ceil(CHUNK) > MAX_CHUNKS {
            return Err(IoReturn::NO_SPACE);
        }
        // No memory at that address of the task.
        let (backing, fd) = behind.ok_or(IoReturn::BAD_ARGUMENT)?;
        let (range, budget) = ((backing.offset, size), &self.function.memory);
        let memory = self.files.find(&fd, range, backing.writable, budget)?;
        if self.function.faults.fragments() {
            return Err(IoReturn::NOT_ALIGNED);
        }
        let dart = &self.function.hardware.dart;
        let mapped = dart.map(self.id, key, memory, backing.offset, size);
        let bus = mapped.map_err(|_| IoReturn::NO_SPACE)?;
        self.regions.insert(key, Region { bus, length: size });
        Ok(vec![1, bus, size])
    }

    pub(super) fn unregister(&mut self, key: u64) -> Scalars {
        let region = self.regions.remove(&key).ok_or(IoReturn::NOT_FOUND)?;
        self.function.hardware.dart.unmap(self.id, region.bus);
        Ok(Vec::new())
    }

    pub(super) fn probe(&self, key: u64, offset: u64) -> Scalars {
        let region = self.regions.get(&key).ok_or(IoReturn::NOT_FOUND)?;
        if offset.checked_add(8).is_none_or(|end| end > region.length) {
            return Err(IoReturn::OVERRUN);
        }
        let mut bytes = [0; 8];
        let dart = &self.function.hardware.dart;
        // Its owner took the memory away.
        dart.read(region.bus + offset, &mut bytes).map_err(|_| IoReturn::NO_MEMORY)?;
        Ok(vec![u64::from_le_bytes(bytes)])
    }

    /// The end of the connection.
    pub(super) fn release_dma(&mut self) {
        for region in std::mem::take(&mut self.regions).into_values() {
            self.function.hardware.dart.unmap(self.id, region.bus);
        }
        self.free_buffer();
    }
}
