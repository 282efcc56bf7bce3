//! The dext behind the backend traits: one implementation above [`UserClient`](crate::UserClient),
//! for the simulated dext and for the real one.
//!
//! A connection cannot be handed to another process, so each process opens its own, and nothing
//! survives the one that claimed. Interrupts are notified; bus addresses are the platform's.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use cordon_backend::{
    Backend, BackendError, Backing, BarMemory, BusAddresses, BusRange, Delivery, DmaRange,
    DmaSpace, ErrorKind, Group, GroupFunction, Listed, Liveness, NotifiedInterrupts, OpenFunction,
    OpenGroup, Reset, ResetKind, ServedFunction, Source, Survives, VectorSet,
};
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::dext::{CLIENT_TYPE, ENABLED_WORDS, IoReturn, SERVICE_CLASS, Service};
use ipc::{DeviceMemory, Event, PciAddress, Window};

use crate::limits::MAX_MAPPINGS;
use crate::{Client, DextError, Endpoint, Registry, open_device, open_function, open_function_at};

/// A dext as a backend.
pub struct Dext(Box<dyn Registry>);

impl Dext {
    /// The dext at `endpoint`.
    ///
    /// # Errors
    /// [`DextError::NoDext`] when this build cannot talk to it.
    pub fn at(endpoint: &Endpoint) -> Result<Self, DextError> {
        crate::registry(endpoint).map(Self)
    }

    /// The dext of a registry.
    #[must_use]
    pub fn of(registry: Box<dyn Registry>) -> Self {
        Self(registry)
    }
}

impl From<DextError> for BackendError {
    fn from(error: DextError) -> Self {
        let code = error.code();
        let kind = match (&error, code) {
            _ if error.is_service_gone() => ErrorKind::Gone,
            _ if error.is_fatal() => ErrorKind::Lost,
            (DextError::NoDext { .. }, _) => ErrorKind::Unreachable,
            (DextError::NoSuchDevice(_), _) => ErrorKind::NoSuchDevice,
            (DextError::Ambiguous { .. }, _) => ErrorKind::Ambiguous,
            (DextError::Invalid { .. }, _) => ErrorKind::Invalid,
            (_, Some(IoReturn::NOT_ATTACHED)) => ErrorKind::Gone,
            (_, Some(IoReturn::NO_SPACE | IoReturn::NO_MEMORY)) => ErrorKind::NoSpace,
            (_, Some(IoReturn::NOT_ALIGNED)) => ErrorKind::Fragmented,
            (_, Some(IoReturn::STILL_OPEN)) => ErrorKind::Busy,
            _ => ErrorKind::Refused,
        };
        let (subject, operation, text) = match error {
            DextError::Refused { subject, operation, code } => {
                (subject, operation, code.to_string())
            }
            DextError::Lost { subject, operation, code } => {
                let because = code.map_or_else(String::new, |code| format!(" ({code})"));
                (subject, operation, format!("the dext is gone{because}"))
            }
            DextError::Broken { subject, operation, source } => {
                (subject, operation, ipc::chain(&source))
            }
            DextError::Invalid { subject, operation, why } => (subject, operation, why),
            DextError::Ambiguous { address, root_bridges } => {
                (format!("Function {address}"), "Open", crate::ambiguous(&root_bridges))
            }
            DextError::NoDext { place, why } => (format!("dext at {place}"), "Open", why),
            DextError::NoSuchDevice(address) => (
                format!("Function {address}"),
                "Open",
                format!("the dext has no function {address}"),
            ),
        };
        Self::new(kind, subject, operation, text).with_code(code.map(|code| code.0))
    }
}

/// Nothing that this process did not open itself is of use.
fn own(source: &Source) -> Result<(), BackendError> {
    match source {
        Source::Own | Source::OwnAt(_) => Ok(()),
        Source::Handed(_)
        | Source::Adopted(_)
        | Source::HandedGroup(_)
        | Source::HandedDevices(_) => Err(BackendError::new(
            ErrorKind::Unsupported,
            "dext",
            "Open",
            "a connection to the dext cannot be handed to another process",
        )),
    }
}

impl Backend for Dext {
    fn list(&self, limit: usize) -> Result<Vec<Listed>, BackendError> {
        let (mut listed, mut passed_over) = (Vec::new(), None);
        for service in self.0.services()? {
            if service.class != SERVICE_CLASS || listed.len() == limit {
                continue;
            }
            match self.0.open(service.id, CLIENT_TYPE).and_then(Client::new) {
                Ok(client) => {
                    let Service { root_bridge, clients: peers, .. } = service;
                    listed.push(Listed { function: Box::new(client), root_bridge, peers });
                }
                Err(error) if error.is_service_gone() => {}
                // The others are listed all the same.
                Err(error) => {
                    tracing::warn!("a function cannot be listed: {error}");
                    passed_over = passed_over.or(Some(error));
                }
            }
        }
        // If none can be, why is what there is to say.
        if let Some(error) = passed_over.filter(|_| listed.is_empty()) {
            return Err(error.into());
        }
        listed.sort_by(|one, other| {
            let key = |one: &Listed| (one.function.address(), one.root_bridge.clone());
            key(one).cmp(&key(other))
        });
        Ok(listed)
    }

    fn open_function(
        &self,
        address: PciAddress,
        source: Source,
    ) -> Result<Box<dyn ServedFunction>, BackendError> {
        own(&source)?;
        Ok(Box::new(match source {
            Source::OwnAt(place) => open_function_at(self.0.as_ref(), address, place)?,
            _ => open_function(self.0.as_ref(), address)?,
        }))
    }

    fn open_group(&self, address: PciAddress, source: Source) -> Result<OpenGroup, BackendError> {
        own(&source)?;
        let clients = open_device(self.0.as_ref(), address)?;
        let functions = clients.into_iter().map(|client| Box::new(client) as _).collect();
        Ok(OpenGroup { group: Box::new(Device(address)), functions })
    }
}

/// A physical device, named by one of its functions: all that it consists of is their connections.
struct Device(PciAddress);

impl Group for Device {
    fn survives(&self) -> Survives<'_> {
        Survives::Nothing
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        None
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        DextError::Lost { subject: format!("Device of {}", self.0), operation, code: None }.into()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

impl OpenFunction for Client {
    fn identity(&self) -> Identity {
        Self::identity(self)
    }

    fn bars(&mut self) -> Result<[Option<BarInfo>; 6], BackendError> {
        Ok(Self::bars(self)?)
    }

    fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, BackendError> {
        Ok(Self::config_read(self, offset, width)?)
    }

    fn is_claimed(&mut self) -> Result<bool, BackendError> {
        Ok(Self::is_claimed(self)?)
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        Self::liveness(self).map(Liveness::Hangup)
    }

    fn place(&self) -> Option<u64> {
        self.service
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        DextError::Lost { subject: self.subject().to_owned(), operation, code: None }.into()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Self::descriptors(self)
    }
}

impl Reset for Client {
    fn reset_kinds(&self) -> &[ResetKind] {
        &[ResetKind::Function]
    }

    fn reset(&mut self, kind: ResetKind) -> Result<(), BackendError> {
        match kind {
            ResetKind::Function => Ok(Self::reset(self)?),
            ResetKind::Bus => Err(BackendError::new(
                ErrorKind::Unsupported,
                self.subject(),
                "ResetDevice",
                "the dext resets functions, not a bus",
            )),
        }
    }
}

impl ServedFunction for Client {
    fn config_write(&mut self, offset: u32, width: u8, value: u32) -> Result<(), BackendError> {
        Ok(Self::config_write(self, offset, width, value)?)
    }

    fn open_bar(&mut self, bar: u8) -> Result<u64, BackendError> {
        let window = self.map_bar(bar)?.window;
        let size = window.length() as u64;
        let slot = self.mapped.bars.get_mut(usize::from(bar));
        *slot.ok_or_else(|| no_bar(bar))? = Some(window);
        Ok(size)
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> Result<u64, BackendError> {
        let read = window(self, bar)?.read_width(offset, width);
        read.map_err(|error| invalid(self, "BAR read", error.to_string()))
    }

    fn bar_write(
        &mut self,
        bar: u8,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), BackendError> {
        let written = window(self, bar)?.write_width(offset, width, value);
        written.map_err(|error| invalid(self, "BAR write", error.to_string()))
    }

    fn set_up_interrupts(&mut self) -> Result<u16, BackendError> {
        let vectors = Self::set_up_interrupts(self)?;
        self.mapped.interrupts = match self.map_interrupt_page() {
            Ok(mapped) => Some(mapped.window),
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(error) => {
                tracing::warn!("pending bits are drained by calls: {error}");
                None
            }
        };
        self.set_mask(VectorSet::default())?;
        self.wait_interrupt()?;
        Ok(vectors)
    }

    fn notification(&self) -> Option<&Event> {
        Some(self.completion())
    }

    fn delivery(&mut self) -> Delivery<'_> {
        Delivery::Notified(self)
    }
}

fn no_bar(bar: u8) -> BackendError {
    BackendError::new(ErrorKind::Invalid, "dext", "MapMemory", format!("there is no BAR {bar}"))
}

fn invalid(client: &Client, operation: &'static str, why: String) -> BackendError {
    BackendError::new(ErrorKind::Invalid, client.subject(), operation, why)
}

fn window(client: &Client, bar: u8) -> Result<&Window, BackendError> {
    let window = client.mapped.bars.get(usize::from(bar)).and_then(Option::as_ref);
    window.ok_or_else(|| invalid(client, "BAR access", format!("BAR {bar} is not mapped")))
}

impl NotifiedInterrupts for Client {
    fn drain(&mut self) -> Result<VectorSet, BackendError> {
        let Some(page) = &self.mapped.interrupts else {
            return Ok(VectorSet::from_words(self.check_interrupt()?));
        };
        // The page is 16 KiB, so the four words are there.
        let words = [0, 8, 16, 24].map(|word| page.swap_u64(word, 0).unwrap_or_default());
        Ok(VectorSet::from_words(words))
    }

    fn arm(&mut self) -> Result<(), BackendError> {
        Ok(self.wait_interrupt()?)
    }

    fn set_mask(&mut self, recorded: VectorSet) -> Result<(), BackendError> {
        let Some(page) = &self.mapped.interrupts else {
            return Ok(self.set_irq_mask(recorded.words())?);
        };
        for (at, word) in (0..).zip(recorded.words()) {
            // The page is 16 KiB, so the word is there.
            let _ = page.store_u64(ENABLED_WORDS + 8 * at, word);
        }
        Ok(())
    }
}

impl GroupFunction for Client {
    fn claim(&mut self) -> Result<(), BackendError> {
        Ok(Self::claim(self)?)
    }

    /// Closing the connection is the only way: the dext then releases what it held.
    fn release(self: Box<Self>) -> Result<Option<Box<dyn GroupFunction>>, BackendError> {
        Ok(None)
    }

    fn handed(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn window_granule(&self) -> u64 {
        self.mapped.granule
    }

    fn bar_memory(&mut self, bar: u8) -> Result<BarMemory, BackendError> {
        let mapped = self.map_bar(bar)?;
        let size = mapped.window.length() as u64;
        let backing = match mapped.memory {
            Some(memory) => {
                Backing::Shared { memory: Arc::new(DeviceMemory::from(memory)), base: 0 }
            }
            None => Backing::Mapped(mapped.window),
        };
        Ok(BarMemory { size, backing })
    }

    fn dma_space(&self) -> DmaSpace {
        DmaSpace {
            addresses: BusAddresses::Assigned,
            granule: 1,
            max_ranges: MAX_MAPPINGS,
            needs_mapping: true,
            shared: false,
        }
    }

    fn register_dma(&mut self, range: &DmaRange<'_>) -> Result<BusRange, BackendError> {
        // Address 0 is what the dext refuses.
        let address = range.mapped_at.unwrap_or(0);
        let registered = Self::register_dma(self, range.key, address, range.size, range.behind);
        registered.map(|(address, length)| BusRange { address, length }).map_err(Into::into)
    }

    fn unregister_dma(&mut self, key: u64, _at: BusRange) -> Result<(), BackendError> {
        Ok(Self::unregister_dma(self, key)?)
    }
}

#[cfg(test)]
mod tests;
