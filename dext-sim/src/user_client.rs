//! One `io_connect_t`: the external methods, number for number.
//!
//! Runs in the thread of its connection. It distrusts the client: every scalar is checked, and
//! what the client leaves behind is released in the dext's order when the value is dropped.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::event::Signaller;
use ipc::wire::dext::{Backing, INTERRUPT_PAGE, IoReturn, MAX_VECTORS, memory, selector};
use ipc::{SharedMemory, Window};

use crate::dart::MemoryCache;
use crate::faults::Verdict;
use crate::function::Function;
use crate::interrupts::ClientId;
use crate::methods;

/// Most DMA regions of one connection.
const MAX_REGIONS: usize = 65_536;
/// A region is split in chunks of this size.
const CHUNK: u64 = 3 << 29;
/// Most chunks of one region.
const MAX_CHUNKS: u64 = 128;
/// Largest buffer of AllocateDMABuffer.
const MAX_BUFFER: u64 = 3 << 29;

struct Region {
    bus: u64,
    length: u64,
}

struct Buffer {
    bus: u64,
    memory: SharedMemory,
}

/// The memory that a client's address means.
pub(crate) type Behind = Option<(Backing, OwnedFd)>;

/// One connection to one function.
pub(crate) struct UserClient {
    id: ClientId,
    function: Arc<Function>,
    cache: Arc<MemoryCache>,
    completion: Signaller,
    regions: BTreeMap<u64, Region>,
    buffer: Option<Buffer>,
}

type Scalars = Result<Vec<u64>, IoReturn>;

impl UserClient {
    pub(crate) fn new(
        id: ClientId,
        function: Arc<Function>,
        cache: Arc<MemoryCache>,
        completion: Signaller,
    ) -> Self {
        Self { id, function, cache, completion, regions: BTreeMap::new(), buffer: None }
    }

    /// IOConnectCallMethod.
    pub(crate) fn call(
        &mut self,
        number: u32,
        inputs: &[u64],
        room: usize,
        behind: Behind,
    ) -> Scalars {
        let method = methods::find(number).ok_or(IoReturn::UNSUPPORTED)?;
        if inputs.len() < method.takes || room < method.gives {
            return Err(IoReturn::BAD_ARGUMENT);
        }
        self.function.attached()?;
        match self.function.faults.at_call(number) {
            Verdict::Proceed => {}
            Verdict::Fail(code) => return Err(code),
            Verdict::Delay(time) => std::thread::sleep(time),
            Verdict::Die => {
                tracing::warn!(selector = number, "dying as the fault plan says");
                std::process::abort();
            }
        }
        self.dispatch(number, inputs, behind)
    }

    /// IOConnectCallAsyncScalarMethod: only WaitInterrupt has an asynchronous form.
    pub(crate) fn call_async(&mut self, number: u32, inputs: &[u64]) -> Scalars {
        self.call(number, inputs, 0, None)
    }

    fn dispatch(&mut self, number: u32, inputs: &[u64], behind: Behind) -> Scalars {
        match (number, inputs) {
            (selector::GET_IDENTITY, _) => Ok(self.identity()),
            (selector::CLAIM, _) => {
                self.function.claim(self.id);
                Ok(Vec::new())
            }
            (selector::TERMINATE, _) => {
                self.function.terminate();
                Ok(Vec::new())
            }
            (selector::ALLOCATE_DMA_BUFFER, &[size, alignment, ..]) => {
                self.allocate(size, alignment)
            }
            (selector::FREE_DMA_BUFFER, _) => {
                self.free_buffer();
                Ok(Vec::new())
            }
            (selector::REGISTER_DMA_REGION, &[key, address, size, ..]) => {
                self.register(key, address, size, behind)
            }
            (selector::UNREGISTER_DMA_REGION, &[key, ..]) => self.unregister(key),
            (selector::PROBE_DMA_REGION, &[key, offset, ..]) => self.probe(key, offset),
            (selector::CONFIG_READ, &[offset, width, ..]) => self.config_read(offset, width),
            (selector::CONFIG_WRITE, &[offset, width, value, ..]) => {
                self.config_write(offset, width, value)
            }
            (selector::GET_BAR_INFO, &[bar, ..]) => self.bar_info(bar),
            (selector::MMIO_READ, &[index, offset, width, ..]) => {
                self.mmio_read(index, offset, width)
            }
            (selector::MMIO_WRITE, &[index, offset, width, value, ..]) => {
                self.mmio_write(index, offset, width, value)
            }
            (selector::SETUP_INTERRUPTS, _) => self.set_up_interrupts(),
            (selector::CHECK_INTERRUPT, _) => {
                self.function.hardware.interrupts.check(self.id).map(Vec::from)
            }
            (selector::WAIT_INTERRUPT, _) => {
                self.function.hardware.interrupts.arm(self.id).map(|()| Vec::new())
            }
            (selector::SET_IRQ_MASK, &[a, b, c, d, ..]) => self
                .function
                .hardware
                .interrupts
                .set_mask(self.id, [a, b, c, d])
                .map(|()| Vec::new()),
            (selector::RESET_DEVICE, _) => {
                self.function.open()?;
                self.function.function_level_reset();
                Ok(Vec::new())
            }
            _ => Err(IoReturn::UNSUPPORTED),
        }
    }

    fn identity(&self) -> Vec<u64> {
        let identity = &self.function.identity;
        let address = identity.address;
        vec![
            address.bus().into(),
            address.device().into(),
            address.function().into(),
            identity.vendor.into(),
            identity.device.into(),
            identity.class.into(),
        ]
    }

    /// Selector AllocateDMABuffer. The buffer is one segment, registered under a key of its own.
    fn allocate(&mut self, size: u64, alignment: u64) -> Scalars {
        self.function.open()?;
        let alignment = if alignment == 0 { 4096 } else { alignment };
        if size == 0 || size > MAX_BUFFER || !alignment.is_power_of_two() {
            return Err(IoReturn::BAD_ARGUMENT);
        }
        self.free_buffer();
        let backing = size.next_multiple_of(INTERRUPT_PAGE as u64);
        let memory = SharedMemory::create("dext-dma-buffer", backing);
        let memory = memory.map_err(|_| IoReturn::NO_MEMORY)?;
        let handle = memory.try_clone().map_err(|_| IoReturn::NO_MEMORY)?.into_fd();
        let mapped = self.cache.map(handle, true).ok_or(IoReturn::NO_MEMORY)?;
        // The buffer's own bus address: far above any guest memory that identity mode could name.
        let key = (1 << 56) + (self.id << 32);
        let key = key.next_multiple_of(alignment);
        let dart = &self.function.hardware.dart;
        let bus = dart.map(key, mapped, 0, size).map_err(|_| IoReturn::NO_SPACE)?;
        self.buffer = Some(Buffer { bus, memory });
        let class = self.function.identity.class.into();
        Ok(vec![size, 0, 1, bus, size, class])
    }

    fn free_buffer(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.function.hardware.dart.unmap(buffer.bus);
        }
    }

    fn register(&mut self, key: u64, address: u64, size: u64, behind: Behind) -> Scalars {
        self.function.open()?;
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
        let memory = self.cache.map(fd, backing.writable).ok_or(IoReturn::BAD_ARGUMENT)?;
        if !memory.holds(backing.offset, size) {
            return Err(IoReturn::BAD_ARGUMENT);
        }
        if self.function.faults.fragments() {
            return Err(IoReturn::NOT_ALIGNED);
        }
        let dart = &self.function.hardware.dart;
        let mapped = dart.map(key, memory, backing.offset, size);
        let bus = mapped.map_err(|_| IoReturn::NO_SPACE)?;
        self.regions.insert(key, Region { bus, length: size });
        Ok(vec![1, bus, size])
    }

    fn unregister(&mut self, key: u64) -> Scalars {
        let region = self.regions.remove(&key).ok_or(IoReturn::NOT_FOUND)?;
        self.function.hardware.dart.unmap(region.bus);
        Ok(Vec::new())
    }

    fn probe(&self, key: u64, offset: u64) -> Scalars {
        let region = self.regions.get(&key).ok_or(IoReturn::NOT_FOUND)?;
        if offset.checked_add(8).is_none_or(|end| end > region.length) {
            return Err(IoReturn::OVERRUN);
        }
        let mut bytes = [0; 8];
        let dart = &self.function.hardware.dart;
        dart.read(region.bus + offset, &mut bytes).map_err(|_| IoReturn::OVERRUN)?;
        Ok(vec![u64::from_le_bytes(bytes)])
    }

    fn config_read(&self, offset: u64, width: u64) -> Scalars {
        let width = config_width(width)?;
        let value = self.function.hardware.config().read(offset, width);
        value.map(|value| vec![value.into()]).ok_or(IoReturn::BAD_ARGUMENT)
    }

    fn config_write(&self, offset: u64, width: u64, value: u64) -> Scalars {
        let width = config_width(width)?;
        let low = u32::try_from(value & 0xffff_ffff).unwrap_or_default();
        let written = self.function.config_write(offset, width, low);
        written.map(|()| Vec::new()).ok_or(IoReturn::BAD_ARGUMENT)
    }

    fn bar_info(&self, bar: u64) -> Scalars {
        let bars = &self.function.hardware.bars;
        let bar = usize::try_from(bar).ok().and_then(|bar| bars.get(bar));
        let bar = bar.ok_or(IoReturn::BAD_ARGUMENT)?;
        let info = bar.as_ref().ok_or(IoReturn::NOT_FOUND)?.info;
        Ok(vec![info.memory_index.into(), info.size, info.kind.into()])
    }

    /// The BAR behind a memory index, and the width of an access that lies in it.
    fn mmio(&self, index: u64, offset: u64, width: u64) -> Result<(&Window, u8), IoReturn> {
        let mut bars = self.function.hardware.bars.iter().flatten();
        let bar = bars.find(|bar| u64::from(bar.info.memory_index) == index);
        let bar = bar.ok_or(IoReturn::BAD_ARGUMENT)?;
        let fits = offset.checked_add(width).is_some_and(|end| end <= bar.info.size);
        match width {
            1 | 2 | 4 | 8 if fits && offset.is_multiple_of(width) => {
                Ok((&bar.window, u8::try_from(width).unwrap_or_default()))
            }
            _ => Err(IoReturn::BAD_ARGUMENT),
        }
    }

    fn mmio_read(&self, index: u64, offset: u64, width: u64) -> Scalars {
        let (window, width) = self.mmio(index, offset, width)?;
        if !self.function.hardware.memory_enabled() {
            // Nobody answers: the bus reads as ones.
            return Ok(vec![u64::MAX >> (64 - 8 * u32::from(width))]);
        }
        let value = window.read_width(offset, width).map_err(|_| IoReturn::BAD_ARGUMENT)?;
        Ok(vec![value])
    }

    fn mmio_write(&self, index: u64, offset: u64, width: u64, value: u64) -> Scalars {
        let (window, width) = self.mmio(index, offset, width)?;
        if self.function.hardware.memory_enabled() {
            let written = window.write_width(offset, width, value);
            written.map_err(|_| IoReturn::BAD_ARGUMENT)?;
            self.function.hardware.ring();
        }
        Ok(Vec::new())
    }

    fn set_up_interrupts(&self) -> Scalars {
        self.function.open()?;
        let completion = self.completion.try_clone().map_err(|_| IoReturn::NO_MEMORY)?;
        let hardware = &self.function.hardware;
        let mut config = hardware.config();
        // MSI-X if it can be configured, one MSI vector if not; MSI where there is no MSI-X.
        let (msix, vectors) = match config.msix_vectors() {
            Some(_) if self.function.faults.no_msix() => (false, 1),
            Some(vectors) => (true, vectors.min(MAX_VECTORS)),
            None => (false, config.msi_vectors()),
        };
        hardware.interrupts.set_up(self.id, vectors, completion)?;
        config.enable_msix(msix);
        config.enable_msi(!msix);
        Ok(vec![vectors.into()])
    }

    /// IOConnectMapMemory64.
    pub(crate) fn map(&self, kind: u32) -> Result<SharedMemory, IoReturn> {
        self.function.attached()?;
        let clone = |memory: &SharedMemory| memory.try_clone().map_err(|_| IoReturn::NO_MEMORY);
        match kind {
            memory::DMA_BUFFER => clone(&self.buffer.as_ref().ok_or(IoReturn::NOT_READY)?.memory),
            memory::INTERRUPT_STATE => self.function.hardware.interrupts.page(self.id),
            memory::BAR0..memory::INTERRUPT_STATE => {
                self.function.open()?;
                let bar = usize::try_from(kind - memory::BAR0).unwrap_or(usize::MAX);
                let bar = self.function.hardware.bars.get(bar).and_then(Option::as_ref);
                let bar = bar.ok_or(IoReturn::NOT_FOUND)?;
                if bar.info.kind & ipc::wire::common::BarInfo::IO != 0 {
                    return Err(IoReturn::UNSUPPORTED);
                }
                clone(&bar.memory)
            }
            _ => Err(IoReturn::BAD_ARGUMENT),
        }
    }
}

fn config_width(width: u64) -> Result<usize, IoReturn> {
    match width {
        1 => Ok(1),
        2 => Ok(2),
        4 => Ok(4),
        _ => Err(IoReturn::BAD_ARGUMENT),
    }
}

impl Drop for UserClient {
    /// The dext's order: interrupts, DMA regions, DMA buffer, claim.
    fn drop(&mut self) {
        if let Some(time) = self.function.faults.cleanup_delay() {
            std::thread::sleep(time);
        }
        let hardware = &self.function.hardware;
        {
            // Held throughout: whoever sets interrupts up next must not be switched off again.
            let mut config = hardware.config();
            if hardware.interrupts.release(self.id) {
                config.enable_msix(false);
                config.enable_msi(false);
            }
        }
        for region in std::mem::take(&mut self.regions).into_values() {
            hardware.dart.unmap(region.bus);
        }
        self.free_buffer();
        self.function.disconnect(self.id);
    }
}
