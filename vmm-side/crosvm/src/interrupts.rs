//! Interrupts of one function: who is signalled, and what becomes of it.
//!
//! A vector that the guest has unmasked goes from the function process straight into the hypervisor, by the irqfd
//! of a GSI with the guest's message. One that is masked comes here, for its pending bit; INTx does too, for the
//! level and STATUS. The table, the pending bits and MSI are `cordon_pci`'s, so of crosvm only its IRQ tube is
//! used: a GSI for a vector, a route for it.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, bail};
use base::{AsRawDescriptor, Event, SafeDescriptor, Tube, error};
use cordon_pci::{ConfigSpace, Delivery, InterruptChanges, InterruptMode, LineChange, Message};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{Function, InterruptIndex, PassthroughDevice as _, Signaller};
use devices::{IrqLevelEvent, PciAddress};
use vm_control::{PciId, VmIrqRequest, VmIrqResponse};

/// The interrupts of one function.
pub(crate) struct Interrupts {
    routes: Routes,
    /// For each vector, what is signalled while it is masked.
    pub(crate) parked: Vec<Event>,
    /// What is signalled for INTx.
    pub(crate) intx: Event,
    line: Option<IrqLevelEvent>,
}

impl Interrupts {
    pub(crate) fn new(irq: Tube, id: u32, name: String, vectors: u16) -> anyhow::Result<Self> {
        let parked = (0..vectors).map(|_| Event::new()).collect::<Result<_, _>>();
        let all = (0..vectors).map(|_| None).collect();
        let routes = Routes { irq, id, name, address: None, all };
        let intx = Event::new().context("an event for INTx")?;
        Ok(Self { routes, parked: parked.context("events for vectors")?, intx, line: None })
    }

    /// Where the guest sees the function.
    pub(crate) fn set_address(&mut self, address: PciAddress) {
        self.routes.address = Some(address);
    }

    pub(crate) fn address(&self) -> Option<PciAddress> {
        self.routes.address
    }

    /// The line of its pin.
    pub(crate) fn set_line(&mut self, line: IrqLevelEvent) {
        self.line = Some(line);
    }

    pub(crate) fn line(&self) -> Option<&IrqLevelEvent> {
        self.line.as_ref()
    }

    /// Sets everything up for the mode that the guest has chosen.
    pub(crate) fn choose(&mut self, space: &ConfigSpace, function: &Function) {
        for index in [InterruptIndex::Intx, InterruptIndex::Msi, InterruptIndex::Msix] {
            set(function, index, InterruptSetup::Disable);
        }
        match space.mode() {
            InterruptMode::Off => {}
            InterruptMode::Intx if self.line.is_none() => {}
            InterruptMode::Intx => match signaller(&self.intx) {
                Ok(signaller) => {
                    let signallers = vec![Some(signaller)];
                    let setup = InterruptSetup::Assign { start: 0, signallers };
                    set(function, InterruptIndex::Intx, setup);
                }
                Err(error) => error!("{}: no INTx: {error:#}", self.routes.name),
            },
            InterruptMode::Msi | InterruptMode::Msix => {
                self.assign(space, function, 0, space.vectors());
            }
        }
    }

    /// Gives vectors the signaller that is right for their masks and messages.
    fn assign(&mut self, space: &ConfigSpace, function: &Function, first: u16, count: u16) {
        let index = match space.mode() {
            InterruptMode::Msi => InterruptIndex::Msi,
            InterruptMode::Msix => InterruptIndex::Msix,
            InterruptMode::Off | InterruptMode::Intx => return,
        };
        let mut signallers = Vec::new();
        for vector in first..first.saturating_add(count) {
            signallers.push(self.signaller(space, vector).unwrap_or_else(|error| {
                error!("{}: vector {vector} is lost: {error:#}", self.routes.name);
                None
            }));
        }
        set(function, index, InterruptSetup::Assign { start: first, signallers });
    }

    fn signaller(&mut self, space: &ConfigSpace, vector: u16) -> anyhow::Result<Option<Signaller>> {
        let state = space.vector(vector);
        if !state.in_use {
            return Ok(None);
        }
        if state.masked {
            let parked = self.parked.get(usize::from(vector)).context("there is no such vector")?;
            return signaller(parked).map(Some);
        }
        signaller(self.routes.get(vector, state.message)?).map(Some)
    }

    /// Carries out what a write of the guest changed.
    pub(crate) fn change(
        &mut self,
        space: &mut ConfigSpace,
        function: &Function,
        changes: &InterruptChanges,
    ) {
        if changes.mode.is_some() {
            self.choose(space, function);
        } else if let Some((first, count)) = changes.vectors {
            self.assign(space, function, first, count);
        }
        if changes.deliver {
            while let Some((vector, message)) = space.next_message() {
                self.send(vector, message);
            }
        }
        if let Some(change) = changes.line {
            self.drive(change);
        }
    }

    /// The device raised a vector that comes here.
    pub(crate) fn raised(&mut self, space: &mut ConfigSpace, vector: u16) {
        match space.signal(vector) {
            Some(Delivery::Message(message)) => self.send(vector, message),
            Some(Delivery::Line(change)) => self.drive(change),
            None => {}
        }
    }

    /// The guest is done with its INTx interrupt.
    pub(crate) fn end_of_interrupt(&mut self, space: &mut ConfigSpace, function: &Function) {
        if let Some(change) = space.end_of_interrupt() {
            self.drive(change);
        }
        set(function, InterruptIndex::Intx, InterruptSetup::Unmask);
    }

    fn send(&mut self, vector: u16, message: Message) {
        let sent = self.routes.get(vector, message).and_then(|event| Ok(event.signal()?));
        if let Err(error) = sent {
            error!("{}: a message of vector {vector} is lost: {error:#}", self.routes.name);
        }
    }

    /// An interrupt chip takes the line down itself when the guest ends the interrupt, and nobody else can.
    fn drive(&self, change: LineChange) {
        let raise = matches!(change, LineChange::Assert | LineChange::Pulse);
        if let Some(Err(error)) = self.line.as_ref().filter(|_| raise).map(IrqLevelEvent::trigger) {
            error!("{}: an interrupt is lost: {error}", self.routes.name);
        }
    }

    /// Gives every GSI back.
    pub(crate) fn release(&mut self) {
        for place in &mut self.routes.all {
            if let Some(Route { gsi, irqfd, .. }) = place.take()
                && let Err(error) =
                    ask(&self.routes.irq, &VmIrqRequest::ReleaseOneIrq { gsi, irqfd })
            {
                error!("{}: GSI {gsi} stays: {error:#}", self.routes.name);
            }
        }
    }
}

/// GSIs of vectors.
struct Routes {
    irq: Tube,
    id: u32,
    name: String,
    /// Where the guest sees the function.
    address: Option<PciAddress>,
    all: Vec<Option<Route>>,
}

struct Route {
    gsi: u32,
    irqfd: Event,
    message: Message,
}

impl Routes {
    /// The irqfd that delivers `message`, made with the vector's first message.
    fn get(&mut self, vector: u16, message: Message) -> anyhow::Result<&Event> {
        let place = self.all.get_mut(usize::from(vector)).context("there is no such vector")?;
        let route = match place {
            Some(route) => route,
            None => {
                let irqfd = Event::new()?;
                let request = VmIrqRequest::AllocateOneMsi {
                    irqfd: irqfd.try_clone()?,
                    device_id: PciId::from(self.id).into(),
                    queue_id: vector.into(),
                    device_name: self.name.clone(),
                };
                let VmIrqResponse::AllocateOneMsi { gsi } = ask(&self.irq, &request)? else {
                    bail!("a GSI is answered by something else");
                };
                // It has no route yet, and no message that would be this one.
                place.insert(Route { gsi, irqfd, message: Message::default() })
            }
        };
        if route.message != message {
            let request = VmIrqRequest::AddMsiRoute {
                gsi: route.gsi,
                msi_address: message.address,
                msi_data: message.data,
                #[cfg(target_arch = "aarch64")]
                pci_address: self.address.context("it has no address yet")?,
            };
            ask(&self.irq, &request)?;
            route.message = message;
        }
        Ok(&route.irqfd)
    }
}

fn ask(irq: &Tube, request: &VmIrqRequest) -> anyhow::Result<VmIrqResponse> {
    irq.send(request).context("asking for an interrupt")?;
    match irq.recv().context("the answer of the interrupt thread")? {
        VmIrqResponse::Err(error) => Err(error).context("an interrupt is refused"),
        answer => Ok(answer),
    }
}

/// What the function process signals such an event by.
fn signaller(event: &Event) -> anyhow::Result<Signaller> {
    Ok(Signaller::from_trusted(descriptor(event)?))
}

/// A descriptor of the same file.
pub(crate) fn descriptor(of: &dyn AsRawDescriptor) -> anyhow::Result<OwnedFd> {
    Ok(File::from(SafeDescriptor::try_from(of)?).into())
}

fn set(function: &Function, index: InterruptIndex, setup: InterruptSetup) {
    if let Err(error) = function.set_interrupts(index, setup)
        && !error.is_absent()
    {
        error!("cordon: {index:?} of {}: {error}", function.address());
    }
}
