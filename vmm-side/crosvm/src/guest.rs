//! One function as its guest sees it, shared by the bus (vCPUs, one at a time) and the thread of its interrupts.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use base::{Event, EventToken, SafeDescriptor, Tube, WaitContext, WorkerThread, error, warn};
use cordon_pci::bar::BAR_COUNT;
use cordon_pci::permission::Forwards;
use cordon_pci::registers::INTERRUPT_LINE;
use cordon_pci::{ConfigSpace, Description, Effects, Options};
use cordon_vmm::{Function, InterruptIndex, PassthroughDevice as _};
use devices::PciAddress;
use sync::Mutex;
use vm_control::api::VmMemoryClient;

use crate::bars;
use crate::interrupts::Interrupts;
use crate::windows::Windows;

/// One function.
pub(crate) struct PassedThrough {
    pub(crate) name: String,
    pub(crate) described: cordon_vmm::host::Description,
    /// From when it is attached.
    function: OnceLock<Arc<Function>>,
    pub(crate) guest: Mutex<Guest>,
    worker: Mutex<Option<WorkerThread<()>>>,
}

/// What the guest sees, and what follows from it.
pub(crate) struct Guest {
    pub(crate) space: ConfigSpace,
    pub(crate) interrupts: Interrupts,
    pub(crate) windows: Windows,
    /// How often the device had come back when that was true.
    returns: u64,
}

impl PassedThrough {
    /// A function that is described, and not attached yet: `irq` and `memory` are of this VM.
    pub(crate) fn new(
        described: cordon_vmm::host::Description,
        irq: Tube,
        memory: VmMemoryClient,
    ) -> anyhow::Result<Self> {
        let identity = described.identity;
        let name = format!("cordon {}", identity.address);
        let space = space(&described.config, described.pci_bars(), described.msi_vectors)?;
        let vectors = described.msix.map_or(0, |msix| msix.vectors).max(described.msi_vectors);
        let id = u32::from(identity.device) << 16 | u32::from(identity.vendor);
        let guest = Guest {
            space,
            interrupts: Interrupts::new(irq, id, name.clone(), vectors)?,
            windows: Windows::new(memory),
            returns: 0,
        };
        let (function, worker) = (OnceLock::new(), Mutex::new(None));
        Ok(Self { name, described, function, guest: Mutex::new(guest), worker })
    }

    pub(crate) fn function(&self) -> Option<&Arc<Function>> {
        self.function.get()
    }

    /// The function is attached: everything is as its process says, and no more as it was described.
    pub(crate) fn attached(self: &Arc<Self>, function: Arc<Function>) -> anyhow::Result<()> {
        let info = function.info();
        if (info.identity, info.bars) != (self.described.identity, self.described.bars) {
            anyhow::bail!("{}: another device is there than was described", self.name);
        }
        let mut config = vec![0; self.described.config.len()];
        function.config_read(0, &mut config)?;
        let vectors = function.interrupt_info(InterruptIndex::Msi).count;
        let vectors = u16::try_from(vectors).unwrap_or(u16::MAX);
        let mut space = space(&config, info.pci_bars(), vectors)?;
        {
            let guest = &mut *self.guest.lock();
            for number in 0..BAR_COUNT {
                if let Some(address) = guest.space.bar_address(number) {
                    space.place_bar(number, address);
                }
            }
            let [line, pin] = guest.wired();
            space.wire_interrupt(line, pin);
            guest.space = space;
            guest.returns = function.returns();
            guest.windows.set(function.map_windows()?);
            forward(&function, &guest.space.replay());
            guest.interrupts.choose(&guest.space, &function);
        }
        self.function.set(function).map_err(|_| anyhow::anyhow!("{} is attached", self.name))?;
        self.wake();
        Ok(())
    }

    /// Whether somebody answers for it.
    pub(crate) fn is_present(&self) -> bool {
        // Before it is attached its description answers.
        self.function().is_none_or(|function| function.is_present())
    }

    /// A register of config space, all ones when nobody answers.
    pub(crate) fn read_register(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        let offset = u32::try_from(register * 4).unwrap_or(u32::MAX);
        let device = |at: u32, inside: &mut [u8]| match self.function() {
            Some(function) => function.config_read(at, inside),
            None => {
                let from = self.described.config.get(at as usize..).unwrap_or_default();
                for (to, from) in inside.iter_mut().zip(from) {
                    *to = *from;
                }
                Ok(())
            }
        };
        let read = self.guest.lock().space.read_with(offset, &mut data, device);
        if read.is_err() || !self.is_present() { u32::MAX } else { u32::from_le_bytes(data) }
    }

    /// A trapped read of a BAR. All ones where nobody answers, and where crosvm's bus has a BAR that is not
    /// decoded: in D3hot.
    pub(crate) fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let Some((function, number)) = self.decoded(bar) else { return data.fill(0xff) };
        // The MSI-X table and the pending bits are the model's.
        if !self.guest.lock().space.read_bar(number, offset, data) {
            function.bar_read_or_ones(number, offset, data);
        }
    }

    /// A trapped write of a BAR.
    pub(crate) fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        let Some((function, number)) = self.decoded(bar) else { return };
        {
            let guest = &mut *self.guest.lock();
            if let Some(effects) = guest.space.write_bar(number, offset, data) {
                return guest.carry_out(function, &effects);
            }
        }
        if let Err(error) = function.bar_write(number, offset, data)
            && !error.is_absent()
        {
            warn!("{}: BAR {bar}+{offset:#x}: {error}", self.name);
        }
    }

    /// The function, if it is there and decodes the BAR.
    fn decoded(&self, bar: usize) -> Option<(&Function, u8)> {
        let function = self.function().filter(|function| function.is_present())?;
        self.guest.lock().space.decoded_at(bar)?;
        Some((function, u8::try_from(bar).ok()?))
    }

    /// Where the guest sees it.
    pub(crate) fn set_address(&self, address: PciAddress) {
        self.guest.lock().interrupts.set_address(address);
    }

    pub(crate) fn address(&self) -> Option<PciAddress> {
        self.guest.lock().interrupts.address()
    }

    /// Takes a write of config space; nobody takes it when the device is away.
    pub(crate) fn write_config(&self, offset: u32, data: &[u8]) {
        let Some(function) = self.function().filter(|function| function.is_present()) else {
            return;
        };
        let guest = &mut *self.guest.lock();
        guest.follow(function);
        match guest.space.write(offset, data) {
            Ok(effects) => guest.carry_out(function, &effects),
            Err(error) => error!("{}: config space {offset:#x}: {error}", self.name),
        }
    }

    /// Starts the thread of its interrupts, unless it runs.
    pub(crate) fn wake(self: &Arc<Self>) {
        let mut worker = self.worker.lock();
        if worker.is_none() && self.function().is_some() {
            let device = Arc::clone(self);
            *worker = Some(WorkerThread::start("cordon", move |stop| {
                if let Err(error) = device.serve(&stop) {
                    error!("{}: no masked vectors and no INTx any more: {error:#}", device.name);
                }
            }));
        }
    }

    /// Ends that thread. What is signalled meanwhile is there when the next one starts.
    pub(crate) fn sleep(&self) {
        *self.worker.lock() = None;
    }

    fn serve(&self, stop: &Event) -> anyhow::Result<()> {
        let function = self.function().context("it is not attached")?;
        let wait = WaitContext::build_with(&[(stop, Token::Stop)])?;
        let news = function.news().descriptors().into_iter().next().context("it has no news")?;
        let news = SafeDescriptor::from(File::from(news.try_clone_to_owned()?));
        wait.add(&news, Token::News)?;
        {
            let interrupts = &self.guest.lock().interrupts;
            wait.add(&interrupts.intx, Token::Intx)?;
            if let Some(line) = interrupts.line() {
                wait.add(line.get_resample(), Token::Resample)?;
            }
            for (vector, event) in interrupts.parked.iter().enumerate() {
                wait.add(event, Token::Parked(vector))?;
            }
        }
        loop {
            for event in wait.wait()?.iter().filter(|event| event.is_readable) {
                let guest = &mut *self.guest.lock();
                let (space, interrupts) = (&mut guest.space, &mut guest.interrupts);
                match event.token {
                    Token::Stop => return Ok(()),
                    Token::News => {
                        function.news().clear()?;
                        guest.follow(function);
                    }
                    Token::Intx => {
                        interrupts.intx.wait()?;
                        interrupts.raised(space, 0);
                    }
                    Token::Resample => {
                        if let Some(line) = interrupts.line() {
                            line.clear_resample();
                        }
                        interrupts.end_of_interrupt(space, function);
                    }
                    Token::Parked(vector) => {
                        interrupts.parked[vector].wait()?;
                        interrupts.raised(space, u16::try_from(vector)?);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy, EventToken)]
enum Token {
    Stop,
    News,
    Intx,
    Resample,
    Parked(usize),
}

impl Guest {
    /// INTx line and pin as config space has them.
    fn wired(&self) -> [u8; 2] {
        let mut wired = [0; 2];
        let line = u32::try_from(INTERRUPT_LINE).unwrap_or(u32::MAX);
        self.space.overlay(line, &mut wired);
        wired
    }

    /// Carries out what a write came to, in the order that [`Effects`] gives.
    pub(crate) fn carry_out(&mut self, function: &Function, effects: &Effects) {
        if effects.windows == Some(false) {
            self.place();
        }
        forward(function, &effects.forwards);
        if effects.reset.is_some() {
            if let Err(error) = function.reset() {
                warn!("cordon: {}: a reset that the guest asked for: {error}", function.address());
            }
            forward(function, &self.space.replay());
        }
        self.place();
        self.interrupts.change(&mut self.space, function, &effects.interrupts);
    }

    /// A device that came back was reset. The guest finds its config space as it left it, since the bus has its
    /// BARs where they are until the guest writes them; COMMAND is the device's own and written again.
    fn follow(&mut self, function: &Function) {
        let returns = function.returns();
        if std::mem::replace(&mut self.returns, returns) != returns {
            forward(function, &self.space.replay());
        }
    }

    fn place(&mut self) {
        self.windows.place(std::array::from_fn(|number| self.space.decoded_at(number)));
    }

    /// Takes the windows out of the VM, and gives the interrupts back.
    pub(crate) fn withdraw(&mut self) {
        self.windows.place([None; BAR_COUNT]);
        self.interrupts.release();
    }
}

fn space(
    config: &[u8],
    bars: [Option<cordon_pci::Bar>; BAR_COUNT],
    vectors: u16,
) -> anyhow::Result<ConfigSpace> {
    let described = Description { config, bars: bars::served(bars), vectors };
    Ok(ConfigSpace::new(&described, Options::linked())?)
}

fn forward(function: &Function, writes: &Forwards) {
    for one in writes.iter() {
        let value = one.value.to_le_bytes();
        // Of one that is away nobody takes it.
        if let Err(error) = function.config_write(one.offset.into(), &value[..one.width.into()])
            && !error.is_absent()
        {
            warn!("cordon: {}: config space {:#x}: {error}", function.address(), one.offset);
        }
    }
}
