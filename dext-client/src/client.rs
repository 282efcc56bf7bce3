//! The dext with types: one method for each selector and memory type that Cordon uses.
//!
//! Every error names the function as bb:dd.f, the selector and the code in hex (P1.5).

use std::os::fd::BorrowedFd;

use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::dext::{IoReturn, MAX_VECTORS, memory, selector};
use ipc::{Event, PciAddress, TubeError, Window};

use crate::{Behind, DextError, Mapped, SelectorError, UserClient};

/// A typed connection to one function.
pub struct Client {
    connection: Box<dyn UserClient>,
    identity: Identity,
    subject: String,
    /// The registry's number of the service, where it was opened from one.
    pub(crate) service: Option<u64>,
    /// What the backend traits have mapped: see [`crate::backend`].
    pub(crate) mapped: MappedHere,
    /// Interrupts were set up on this connection.
    interrupts: bool,
}

/// Memory of the function that its process accesses itself, and what memory is mapped by.
pub(crate) struct MappedHere {
    /// What a guest is given of BAR memory begins and ends on multiples of this (P7.7): the page size
    /// of this system, which maps it, simulated or not. 16 KiB on Apple silicon. Asked when the
    /// connection is opened, before the process confines itself.
    pub(crate) granule: u64,
    /// BARs, for trapped access.
    pub(crate) bars: [Option<Window>; 6],
    /// The interrupt state page; without it the pending bits are drained by calls.
    pub(crate) interrupts: Option<Window>,
}

impl MappedHere {
    fn nothing() -> Self {
        let granule = rustix::param::page_size() as u64;
        Self { granule, bars: Default::default(), interrupts: None }
    }
}

/// Whether a code says that the dext or its device is gone, whatever was asked.
fn says_gone(code: IoReturn) -> bool {
    matches!(
        code,
        IoReturn::OFFLINE
            | IoReturn::NO_DEVICE
            | IoReturn::IPC_ERROR
            | IoReturn::NOT_ATTACHED
            | IoReturn::PORT_DEAD
    )
}

/// Adds who and what to what a call came back with.
pub(crate) fn named(subject: &str, operation: &'static str, error: SelectorError) -> DextError {
    let subject = subject.to_owned();
    match error {
        SelectorError::Code(code) if says_gone(code) => {
            DextError::Lost { subject, operation, code: Some(code) }
        }
        SelectorError::Code(code) => DextError::Refused { subject, operation, code },
        SelectorError::Tube(TubeError::Disconnected) => {
            DextError::Lost { subject, operation, code: None }
        }
        SelectorError::Tube(source) => DextError::Broken { subject, operation, source },
        SelectorError::Invalid(why) => DextError::Invalid { subject, operation, why },
    }
}

/// As [`named`], for an external method. NotReady is the answer of three methods before interrupts
/// were set up; of any other, and of these after, it is the kernel's for a service that has stopped.
fn named_call(
    subject: &str,
    (operation, selector): Method,
    interrupts: bool,
    error: SelectorError,
) -> DextError {
    let needs_setup = matches!(
        selector,
        selector::CHECK_INTERRUPT | selector::WAIT_INTERRUPT | selector::SET_IRQ_MASK
    );
    match error {
        SelectorError::Code(code @ IoReturn::NOT_READY) if interrupts || !needs_setup => {
            DextError::Lost { subject: subject.to_owned(), operation, code: Some(code) }
        }
        other => named(subject, operation, other),
    }
}

/// An external method: its name and its selector.
type Method = (&'static str, u32);

const GET_IDENTITY: Method = ("GetIdentity", selector::GET_IDENTITY);
const REGISTER: Method = ("RegisterDMARegion", selector::REGISTER_DMA_REGION);

impl Client {
    /// Asks a fresh connection who it is.
    ///
    /// # Errors
    /// [`DextError`], also when the answer is no PCI function.
    pub fn new(mut connection: Box<dyn UserClient>) -> Result<Self, DextError> {
        let mut out = [0; 6];
        connection
            .call(selector::GET_IDENTITY, &[], &mut out, None)
            .map_err(|error| named_call("dext", GET_IDENTITY, false, error))?;
        let invalid = || DextError::Invalid {
            subject: "dext".to_owned(),
            operation: "GetIdentity",
            why: format!("{out:x?} is no identity of a PCI function"),
        };
        let byte = |at: usize| u8::try_from(out[at]).map_err(|_| invalid());
        let half = |at: usize| u16::try_from(out[at]).map_err(|_| invalid());
        let address = PciAddress::new(byte(0)?, byte(1)?, byte(2)?).map_err(|_| invalid())?;
        let class = u32::try_from(out[5]).ok().filter(|class| class >> 24 == 0);
        let class = class.ok_or_else(invalid)?;
        let identity = Identity { address, vendor: half(3)?, device: half(4)?, class };
        let (subject, mapped) = (format!("Function {address}"), MappedHere::nothing());
        Ok(Self { connection, identity, subject, service: None, mapped, interrupts: false })
    }

    /// The function as errors name it.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.identity.address
    }

    fn call<const OUT: usize>(
        &mut self,
        operation: &'static str,
        selector: u32,
        inputs: &[u64],
    ) -> Result<[u64; OUT], DextError> {
        let mut out = [0; OUT];
        self.connection
            .call(selector, inputs, &mut out, None)
            .map_err(|error| self.named((operation, selector), error))?;
        Ok(out)
    }

    fn named(&self, method: Method, error: SelectorError) -> DextError {
        named_call(&self.subject, method, self.interrupts, error)
    }

    /// Claims the function (P1.1); claiming again changes nothing.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn claim(&mut self) -> Result<(), DextError> {
        self.call::<0>("Claim", selector::CLAIM, &[]).map(drop)
    }

    /// Reads 1, 2 or 4 bytes of config space.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, DextError> {
        let inputs = [offset.into(), width.into()];
        let [value] = self.call("ConfigRead", selector::CONFIG_READ, &inputs)?;
        // What is above the width is not the dext's to say.
        let mask = if width >= 4 { u64::from(u32::MAX) } else { (1 << (8 * u32::from(width))) - 1 };
        Ok(u32::try_from(value & mask).unwrap_or_default())
    }

    /// Writes 1, 2 or 4 bytes of config space.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn config_write(&mut self, offset: u32, width: u8, value: u32) -> Result<(), DextError> {
        let inputs = [offset.into(), width.into(), value.into()];
        self.call::<0>("ConfigWrite", selector::CONFIG_WRITE, &inputs).map(drop)
    }

    /// The six BARs: `None` where the dext has none.
    ///
    /// # Errors
    /// [`DextError`] only when the dext is gone: a refusal is an unused BAR (P3.1).
    pub fn bars(&mut self) -> Result<[Option<BarInfo>; 6], DextError> {
        let mut bars = [None; 6];
        for (number, bar) in (0u64..).zip(&mut bars) {
            *bar = match self.call("GetBARInfo", selector::GET_BAR_INFO, &[number]) {
                Ok([index, size, kind]) => {
                    let narrow = (u8::try_from(index), u8::try_from(kind));
                    let (Ok(memory_index), Ok(kind)) = narrow else {
                        return Err(DextError::Invalid {
                            subject: self.subject.clone(),
                            operation: "GetBARInfo",
                            why: format!("BAR {number} has index {index:#x}, type {kind:#x}"),
                        });
                    };
                    Some(BarInfo { memory_index, size, kind })
                }
                Err(error) if error.is_fatal() => return Err(error),
                Err(_) => None,
            };
        }
        Ok(bars)
    }

    /// Maps the memory of a BAR into this process.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn map_bar(&mut self, bar: u8) -> Result<Mapped, DextError> {
        self.map("MapMemory of a BAR", memory::BAR0 + u32::from(bar))
    }

    /// Maps the interrupt state page.
    ///
    /// # Errors
    /// [`DextError`], BadArgument before [`Client::set_up_interrupts`].
    pub fn map_interrupt_page(&mut self) -> Result<Mapped, DextError> {
        self.map("MapMemory of the interrupt page", memory::INTERRUPT_STATE)
    }

    /// Every failure of a memory map reaches the client as BadArgument, so it does not tell whether
    /// the dext is gone: the method that always succeeds does.
    fn map(&mut self, operation: &'static str, kind: u32) -> Result<Mapped, DextError> {
        match self.connection.map(kind) {
            Err(error @ SelectorError::Code(IoReturn::BAD_ARGUMENT)) => {
                match self.call::<6>(GET_IDENTITY.0, GET_IDENTITY.1, &[]) {
                    Err(gone) if gone.is_lost() => Err(gone),
                    _ => Err(named(&self.subject, operation, error)),
                }
            }
            other => other.map_err(|error| named(&self.subject, operation, error)),
        }
    }

    /// Registers for interrupts; how many vectors, at most [`MAX_VECTORS`].
    ///
    /// # Errors
    /// [`DextError`].
    pub fn set_up_interrupts(&mut self) -> Result<u16, DextError> {
        let [count] = self.call("SetupInterrupts", selector::SETUP_INTERRUPTS, &[])?;
        self.interrupts = true;
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        Ok(count.min(MAX_VECTORS))
    }

    /// Reads and clears the pending bits.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn check_interrupt(&mut self) -> Result<[u64; 4], DextError> {
        self.call("CheckInterrupt", selector::CHECK_INTERRUPT, &[])
    }

    /// Arms one notification on [`Client::completion`].
    ///
    /// # Errors
    /// [`DextError`].
    pub fn wait_interrupt(&mut self) -> Result<(), DextError> {
        self.connection
            .call_async(selector::WAIT_INTERRUPT, &[])
            .map_err(|error| self.named(("WaitInterrupt", selector::WAIT_INTERRUPT), error))
    }

    /// Sets which vectors are recorded when they fire.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn set_irq_mask(&mut self, words: [u64; 4]) -> Result<(), DextError> {
        self.call::<0>("SetIRQMask", selector::SET_IRQ_MASK, &words).map(drop)
    }

    /// Resets the function (P8).
    ///
    /// # Errors
    /// [`DextError`].
    pub fn reset(&mut self) -> Result<(), DextError> {
        self.call::<0>("ResetDevice", selector::RESET_DEVICE, &[]).map(drop)
    }

    /// Registers memory of this process for DMA: bus address and length.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn register_dma(
        &mut self,
        key: u64,
        address: usize,
        size: u64,
        behind: Behind<'_>,
    ) -> Result<(u64, u64), DextError> {
        let mut out = [0; 3];
        let inputs = [key, address as u64, size];
        self.connection
            .call(selector::REGISTER_DMA_REGION, &inputs, &mut out, Some(behind))
            .map_err(|error| self.named(REGISTER, error))?;
        let [segments, bus, length] = out;
        if segments == 1 {
            return Ok((bus, length));
        }
        // Several segments cannot be told to a guest: give it back.
        let _ = self.unregister_dma(key);
        Err(DextError::Refused {
            subject: self.subject.clone(),
            operation: "RegisterDMARegion",
            code: IoReturn::NOT_ALIGNED,
        })
    }

    /// Removes a registration.
    ///
    /// # Errors
    /// [`DextError`], NotFound for an unknown key.
    pub fn unregister_dma(&mut self, key: u64) -> Result<(), DextError> {
        let selector = selector::UNREGISTER_DMA_REGION;
        self.call::<0>("UnregisterDMARegion", selector, &[key]).map(drop)
    }

    /// Whether some connection holds the claim. A registration of nothing is refused with
    /// NotOpen before its arguments are looked at, and with BadArgument after.
    ///
    /// # Errors
    /// [`DextError`] when the dext is gone.
    pub fn is_claimed(&mut self) -> Result<bool, DextError> {
        let mut out = [0; 3];
        let asked = self.connection.call(selector::REGISTER_DMA_REGION, &[0, 0, 0], &mut out, None);
        match asked.map_err(|error| self.named(REGISTER, error)) {
            Err(DextError::Refused { code, .. }) => Ok(code != IoReturn::NOT_OPEN),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }

    /// Signalled by notifications.
    #[must_use]
    pub fn completion(&self) -> &Event {
        self.connection.completion()
    }

    /// Hangs up when the dext dies, where that can be waited for.
    #[must_use]
    pub fn liveness(&self) -> Option<BorrowedFd<'_>> {
        self.connection.liveness()
    }

    /// Descriptors that must stay open.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.connection.descriptors()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const GONE: [IoReturn; 5] = [
        IoReturn::OFFLINE,
        IoReturn::NO_DEVICE,
        IoReturn::IPC_ERROR,
        IoReturn::NOT_ATTACHED,
        IoReturn::PORT_DEAD,
    ];

    /// Every kind of call, with its selector.
    type Calls = [(u32, fn(&mut Client) -> DextError); 8];
    const CALLS: Calls = [
        (selector::CLAIM, |client| client.claim().unwrap_err()),
        (selector::CONFIG_READ, |client| client.config_read(0, 4).unwrap_err()),
        (selector::GET_BAR_INFO, |client| client.bars().unwrap_err()),
        (selector::RESET_DEVICE, |client| client.reset().unwrap_err()),
        (selector::UNREGISTER_DMA_REGION, |client| client.unregister_dma(1).unwrap_err()),
        (selector::SETUP_INTERRUPTS, |client| client.set_up_interrupts().unwrap_err()),
        (selector::WAIT_INTERRUPT, |client| client.wait_interrupt().unwrap_err()),
        (selector::REGISTER_DMA_REGION, |client| client.is_claimed().unwrap_err()),
    ];

    #[test]
    fn every_code_of_a_dext_that_is_gone_is_a_loss_whatever_was_asked_and_is_kept() {
        let (fake, mut client) = Fake::client();
        for (selector, call) in CALLS {
            for code in GONE {
                fake.fail(selector, code);
                let error = call(&mut client);
                assert!(error.is_lost() && error.is_fatal(), "{selector}: {error}");
                assert_eq!(error.code(), Some(code));
                let text = error.to_string();
                for says in ["Function 01:00.0", "the dext is gone", &format!("{:#010x}", code.0)] {
                    assert!(text.contains(says), "{text}");
                }
                fake.recover(selector);
            }
        }
    }

    #[test]
    fn what_the_signature_lacks_is_named() {
        let (fake, mut client) = Fake::client();
        for (code, name) in
            [(0xe000_02e2, "kIOReturnNotPermitted"), (0xe000_02bc, "kIOReturnError")]
        {
            fake.fail(selector::CLAIM, IoReturn(code));
            let text = client.claim().unwrap_err().to_string();
            assert!(text.contains(&format!("{name} ({code:#010x})")), "{text}");
        }
    }

    #[test]
    fn other_codes_are_refusals() {
        let (fake, mut client) = Fake::client();
        for code in [IoReturn::NO_SPACE, IoReturn::NOT_OPEN, IoReturn(0xe000_02bc)] {
            fake.fail(selector::RESET_DEVICE, code);
            let error = client.reset().unwrap_err();
            assert!(!error.is_lost() && !error.is_fatal(), "{error}");
            assert_eq!(error.code(), Some(code));
        }
    }

    #[test]
    fn not_ready_is_a_refusal_only_of_what_needs_interrupts_that_are_not_set_up() {
        let (fake, mut client) = Fake::client();
        let codes = [selector::RESET_DEVICE, selector::CHECK_INTERRUPT, selector::SET_IRQ_MASK];
        for selector in codes {
            fake.fail(selector, IoReturn::NOT_READY);
        }
        assert!(client.reset().unwrap_err().is_lost());
        assert!(!client.check_interrupt().unwrap_err().is_lost());
        assert!(!client.set_irq_mask([0; 4]).unwrap_err().is_lost());
        client.set_up_interrupts().unwrap();
        assert!(client.check_interrupt().unwrap_err().is_lost());
        assert!(client.set_irq_mask([0; 4]).unwrap_err().is_lost());
    }

    #[test]
    fn a_map_that_fails_is_a_loss_only_if_the_dext_is_gone() {
        let (fake, mut client) = Fake::client();
        fake.fail_map(0);
        let error = client.map_bar(0).unwrap_err();
        assert_eq!((error.is_lost(), error.code()), (false, Some(IoReturn::BAD_ARGUMENT)));
        fake.fail(selector::GET_IDENTITY, IoReturn::OFFLINE);
        let error = client.map_bar(0).unwrap_err();
        assert_eq!((error.is_lost(), error.code()), (true, Some(IoReturn::OFFLINE)));
    }

    #[test]
    fn a_closed_connection_is_a_loss_without_a_code() {
        let (fake, mut client) = Fake::client();
        fake.die();
        let error = client.reset().unwrap_err();
        assert_eq!((error.is_lost(), error.code()), (true, None));
        assert!(!error.is_service_gone());
    }
}
