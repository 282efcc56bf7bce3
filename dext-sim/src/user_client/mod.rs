//! One `io_connect_t`: the external methods, number for number.
//!
//! Runs in the thread of its connection. It distrusts the client: every scalar is checked, and
//! what the client leaves behind is released in the dext's order when the value is dropped.

mod dma;
mod registers;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::SharedMemory;
use ipc::event::Signaller;
use ipc::wire::dext::{Backing, IoReturn, MAX_VECTORS, memory, selector};

use self::dma::{Buffer, Region};
use crate::faults::Verdict;
use crate::function::Function;
use crate::interrupts::ClientId;
use crate::memory::Files;
use crate::methods;

pub(crate) use self::dma::MAX_BUFFER;

/// The memory that a client's address means.
pub(crate) type Behind = Option<(Backing, OwnedFd)>;

/// One connection to one function.
pub(crate) struct UserClient {
    id: ClientId,
    function: Arc<Function>,
    files: Files,
    completion: Signaller,
    regions: BTreeMap<u64, Region>,
    buffer: Option<Buffer>,
}

type Scalars = Result<Vec<u64>, IoReturn>;

impl UserClient {
    pub(crate) fn new(id: ClientId, function: Arc<Function>, completion: Signaller) -> Self {
        let (files, regions) = (Files::default(), BTreeMap::new());
        Self { id, function, files, completion, regions, buffer: None }
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
        self.function.attached(self.id)?;
        match self.function.faults.at_call(number) {
            Verdict::Proceed => {}
            Verdict::Fail(code) => return Err(code),
            Verdict::Delay(time) => std::thread::sleep(time),
            Verdict::Die => {
                tracing::warn!(selector = number, "dying as the fault plan says");
                std::process::abort();
            }
            Verdict::End(ending, back) => {
                self.function.end(ending, back);
                return Err(ending.code());
            }
        }
        let returned = self.dispatch(number, inputs, behind);
        // The function may have ended meanwhile, and what was made since then must not stay.
        self.function.not_ended(self.id).inspect_err(|_| self.release())?;
        returned
    }

    /// IOConnectCallAsyncScalarMethod: only WaitInterrupt has an asynchronous form.
    pub(crate) fn call_async(&mut self, number: u32, inputs: &[u64]) -> Scalars {
        self.call(number, inputs, 0, None)
    }

    fn dispatch(&mut self, number: u32, inputs: &[u64], behind: Behind) -> Scalars {
        match (number, inputs) {
            (selector::GET_IDENTITY, _) => Ok(self.identity()),
            (selector::CLAIM, _) => self.function.claim(self.id).map(|()| Vec::new()),
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
                self.function.open(self.id)?;
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

    fn set_up_interrupts(&self) -> Scalars {
        self.function.open(self.id)?;
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
        self.function.attached(self.id)?;
        let clone = |memory: &SharedMemory| memory.try_clone().map_err(|_| IoReturn::NO_MEMORY);
        match kind {
            memory::DMA_BUFFER => clone(&self.buffer.as_ref().ok_or(IoReturn::NOT_READY)?.memory),
            memory::INTERRUPT_STATE => self.function.hardware.interrupts.page(self.id),
            memory::BAR0..memory::INTERRUPT_STATE => {
                self.function.open(self.id)?;
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

impl UserClient {
    /// Takes back what the connection holds of the function, but its claim.
    fn release(&mut self) {
        let function = Arc::clone(&self.function);
        let hardware = &function.hardware;
        {
            // Held throughout: whoever sets interrupts up next must not be switched off again.
            let mut config = hardware.config();
            if hardware.interrupts.release(self.id) {
                config.enable_msix(false);
                config.enable_msi(false);
            }
        }
        self.release_dma();
    }
}

impl Drop for UserClient {
    /// The dext's order: interrupts, DMA regions, DMA buffer, claim.
    fn drop(&mut self) {
        if let Some(time) = self.function.faults.cleanup_delay() {
            std::thread::sleep(time);
        }
        self.release();
        self.function.disconnect(self.id);
    }
}
