//! Interrupts of one function: who is signalled, and what becomes of it.
//!
//! A vector that the guest has unmasked goes from the function process straight into the hypervisor, by the
//! descriptor of its own interrupt. One that is masked comes here, for its pending bit; INTx does, for its line.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use alioth::hv::{IrqFd as _, MsiSender};
use alioth::mem::Memory;
use cordon_pci::{Delivery, InterruptChanges, InterruptMode, LineChange, Message, VectorState};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{Event, InterruptIndex, PassthroughDevice as _, Signaller};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};

use crate::Failure;
use crate::function::PassedThrough;

/// The interrupts of one function.
#[derive(Debug)]
pub(crate) struct Interrupts<M: MsiSender> {
    messages: M,
    /// For each vector, once it was in use and not masked, the hypervisor's own interrupt.
    direct: Mutex<Vec<Option<M::IrqFd>>>,
    /// For each vector, what is signalled while it is masked.
    parked: Vec<Event>,
    intx: Event,
    pub(crate) line: Line,
}

/// An INTx line.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) is_asserted: AtomicBool,
    /// How often it was.
    pub(crate) times: AtomicU32,
}

impl Line {
    fn change(&self, change: LineChange) {
        let is_asserted = change != LineChange::Deassert;
        self.is_asserted.store(is_asserted, Ordering::SeqCst);
        self.times.fetch_add(u32::from(is_asserted), Ordering::SeqCst);
    }
}

impl<M: MsiSender> Interrupts<M> {
    pub(crate) fn new(messages: M, vectors: u32) -> Result<Self, Failure> {
        let parked: Result<_, _> = (0..vectors).map(|_| Event::new()).collect();
        let direct = Mutex::new((0..vectors).map(|_| None).collect());
        Ok(Self { messages, direct, parked: parked?, intx: Event::new()?, line: Line::default() })
    }

    /// Sets everything up for the mode that the guest has chosen.
    pub(crate) fn choose(&self, device: &PassedThrough<M>) {
        for index in [InterruptIndex::Intx, InterruptIndex::Msi, InterruptIndex::Msix] {
            set(device, index, InterruptSetup::Disable);
        }
        let (mode, vectors) = device.with(|space| (space.mode(), space.vectors()));
        match mode {
            InterruptMode::Off => {}
            InterruptMode::Intx => match self.intx.signaller() {
                Ok(signaller) => {
                    let signallers = vec![Some(signaller)];
                    let setup = InterruptSetup::Assign { start: 0, signallers };
                    set(device, InterruptIndex::Intx, setup);
                }
                Err(error) => eprintln!("there is no INTx: {error}"),
            },
            InterruptMode::Msi | InterruptMode::Msix => self.assign(device, 0, vectors),
        }
    }

    /// Gives vectors the signaller that is right for their masks and messages.
    fn assign(&self, device: &PassedThrough<M>, first: u16, count: u16) {
        let vectors = first..first.saturating_add(count);
        let signallers = vectors.map(|vector| {
            let state = device.with(|space| space.vector(vector));
            self.signaller(vector, state).unwrap_or_else(|error| {
                eprintln!("vector {vector} is lost: {error}");
                None
            })
        });
        let setup = InterruptSetup::Assign { start: first, signallers: signallers.collect() };
        match device.with(|space| space.mode()) {
            InterruptMode::Msi => set(device, InterruptIndex::Msi, setup),
            InterruptMode::Msix => set(device, InterruptIndex::Msix, setup),
            InterruptMode::Off | InterruptMode::Intx => {}
        }
    }

    fn signaller(&self, vector: u16, state: VectorState) -> Result<Option<Signaller>, Failure> {
        let number = usize::from(vector);
        if !state.in_use {
            return Ok(None);
        }
        if state.masked {
            let parked = self.parked.get(number).ok_or("there is no such vector")?;
            return Ok(Some(parked.signaller()?));
        }
        let mut direct = self.direct.lock();
        let place = direct.get_mut(number).ok_or("there is no such vector")?;
        let routed = self.route(place, state.message);
        if routed.is_err() {
            // A message that the hypervisor does not take must not stay among its routes: with it there it takes no
            // others either.
            *place = None;
        }
        routed.map(Some)
    }

    /// Has the hypervisor deliver `message` whenever what is returned is signalled.
    fn route(&self, place: &mut Option<M::IrqFd>, message: Message) -> Result<Signaller, Failure> {
        let interrupt = match place {
            Some(interrupt) => interrupt,
            None => place.insert(self.messages.create_irqfd()?),
        };
        let Message { address, data } = message;
        interrupt.set_addr_lo((address & 0xffff_ffff) as u32)?;
        interrupt.set_addr_hi((address >> 32) as u32)?;
        interrupt.set_data(data)?;
        interrupt.set_masked(false)?;
        Ok(Signaller::from_trusted(interrupt.as_fd().try_clone_to_owned()?))
    }

    /// Carries out what a write of the guest changed.
    pub(crate) fn change(&self, device: &PassedThrough<M>, changes: &InterruptChanges) {
        if changes.mode.is_some() {
            self.choose(device);
        } else if let Some((first, count)) = changes.vectors {
            self.assign(device, first, count);
        }
        if changes.deliver {
            while let Some((_, message)) = device.with(|space| space.next_message()) {
                self.send(message);
            }
        }
        if let Some(change) = changes.line {
            self.line.change(change);
        }
    }

    /// The guest is done with its INTx interrupt.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "whose interrupt controller is the test VMM's own, by ports")
    )]
    pub(crate) fn end_of_interrupt(&self, device: &PassedThrough<M>) {
        if let Some(change) = device.with(|space| space.end_of_interrupt()) {
            self.line.change(change);
        }
        set(device, InterruptIndex::Intx, InterruptSetup::Unmask);
    }

    /// The device raised a vector that came here.
    fn raised(&self, device: &PassedThrough<M>, vector: u16) {
        match device.with(|space| space.signal(vector)) {
            Some(Delivery::Message(message)) => self.send(message),
            Some(Delivery::Line(change)) => self.line.change(change),
            None => {}
        }
    }

    fn send(&self, message: Message) {
        if let Err(error) = self.messages.send(message.address, message.data) {
            eprintln!("a message is lost: {error}");
        }
    }
}

fn set<M: MsiSender>(device: &PassedThrough<M>, index: InterruptIndex, setup: InterruptSetup) {
    if let Err(error) = device.function.set_interrupts(index, setup)
        && !error.is_absent()
    {
        eprintln!("{index:?} of {}: {error}", device.function.address());
    }
}

/// Takes what comes here, and follows the device when it goes and comes, until `stop` is signalled.
pub(crate) fn serve<M: MsiSender>(device: &Arc<PassedThrough<M>>, memory: &Memory, stop: &Event) {
    let interrupts = &device.interrupts;
    let news = device.function.news();
    loop {
        let mut sources: Vec<PollFd<'_>> = [stop, news, &interrupts.intx]
            .into_iter()
            .chain(&interrupts.parked)
            .map(|event| PollFd::new(event, PollFlags::IN))
            .collect();
        if !matches!(poll(&mut sources, None), Ok(_) | Err(rustix::io::Errno::INTR)) {
            return;
        }
        if matches!(stop.clear(), Ok(true)) {
            return;
        }
        if matches!(news.clear(), Ok(true)) {
            device.follow(memory);
        }
        if matches!(interrupts.intx.clear(), Ok(true)) {
            interrupts.raised(device, 0);
        }
        for (vector, event) in (0..).zip(&interrupts.parked) {
            if matches!(event.clear(), Ok(true)) {
                interrupts.raised(device, vector);
            }
        }
    }
}
