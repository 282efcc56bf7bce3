//! A passed-through function on alioth's PCI bus: what a VMM has to do for one, and what `cordon_pci` does for it.
//!
//! [`ConfigSpace`] is the guest's view: BARs, COMMAND, capabilities, MSI-X table. Reads of what it does not keep go
//! to the device; a write comes back as [`Effects`], which are carried out in their order. Parts of a BAR that the
//! function has as windows are mapped into the guest, everything else of it is trapped.

use std::fs::File;
use std::sync::Arc;

use alioth::device::Pause;
use alioth::hv::MsiSender;
use alioth::mem::emulated::{Action, ChangeLayout, Mmio};
use alioth::mem::mapped::ArcMemPages;
use alioth::mem::{self, MemRange, MemRegion, MemRegionEntry, MemRegionType, Memory};
use alioth::pci::config::{ConfigHeader, DeviceHeader, EmulatedHeader, PciConfig};
use alioth::pci::{self, Pci, PciBar};
use cordon_pci::bar::BAR_COUNT;
use cordon_pci::permission::Forwards;
use cordon_pci::registers::CONFIG_SPACE;
use cordon_pci::{ConfigSpace, Description, Effects, Options};
use cordon_vmm::device::BarMemory;
use cordon_vmm::{Function, InterruptIndex, PassthroughDevice as _};
use parking_lot::Mutex;

use crate::Failure;
use crate::interrupts::Interrupts;

/// One function, as the bus, the vCPUs and the thread of its interrupts share it.
#[derive(Debug)]
pub(crate) struct PassedThrough<M: MsiSender> {
    pub(crate) function: Arc<Function>,
    guest: Mutex<Guest>,
    pub(crate) interrupts: Interrupts<M>,
    /// Where each BAR is in the guest's memory, and of which windows. Held while memory changes, which waits
    /// for vCPUs in the middle of an access, so never together with `guest`.
    placed: Mutex<[Option<Placed>; BAR_COUNT]>,
    /// alioth wants a header of its own making; it is empty, and never asked.
    header: EmulatedHeader,
}

/// What the guest sees.
#[derive(Debug)]
struct Guest {
    space: ConfigSpace,
    /// How often the device had come back when that was true.
    returns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Placed {
    address: u64,
    generation: u64,
}

impl<M: MsiSender> PassedThrough<M> {
    /// Describes an attached function. Its interrupts are INTx until the guest enables messages.
    pub(crate) fn new(function: Arc<Function>, messages: M) -> Result<Arc<Self>, Failure> {
        let mut config = vec![0; CONFIG_SPACE];
        function.config_read(0, &mut config)?;
        let vectors = function.interrupt_info(InterruptIndex::Msi).count;
        let described = Description {
            config: &config,
            bars: function.info().pci_bars(),
            vectors: u16::try_from(vectors).unwrap_or(u16::MAX),
        };
        let mut space = ConfigSpace::new(&described, Options::linked())?;
        // The line of interrupts is the test VMM's own, see `devices`: its number means nothing.
        space.wire_interrupt(0, 1);
        let most = function.interrupt_info(InterruptIndex::Msix).count.max(vectors);
        let empty = ConfigHeader::Device(DeviceHeader::default());
        let passed = Self {
            interrupts: Interrupts::new(messages, most)?,
            guest: Mutex::new(Guest { space, returns: function.returns() }),
            placed: Mutex::default(),
            header: EmulatedHeader::new(empty, [const { PciBar::Empty }; BAR_COUNT]),
            function,
        };
        passed.forward(&passed.with(|space| space.replay()));
        passed.interrupts.choose(&passed);
        Ok(Arc::new(passed))
    }

    /// Asks the guest's view.
    pub(crate) fn with<T>(&self, ask: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        ask(&mut self.guest.lock().space)
    }

    /// Whether the device went or came since the last look, and what that comes to. One that came back was reset.
    fn look(&self) -> Vec<Effects> {
        let (is_present, returns) = (self.function.is_present(), self.function.returns());
        let mut guest = self.guest.lock();
        let came_back = std::mem::replace(&mut guest.returns, returns) != returns;
        let gone = came_back.then(|| guest.space.set_present(false));
        gone.into_iter().chain([guest.space.set_present(is_present)]).collect()
    }

    /// The device went or came: its windows and interrupts follow.
    pub(crate) fn follow(self: &Arc<Self>, memory: &Memory) {
        for effects in self.look() {
            self.carry_out(&effects, memory);
        }
        if self.function.is_present() {
            self.forward(&self.with(|space| space.replay()));
        }
    }

    /// Carries out what a write came to, in the order that [`Effects`] gives.
    fn carry_out(self: &Arc<Self>, effects: &Effects, memory: &Memory) {
        if effects.windows == Some(false) {
            self.place(memory);
        }
        self.forward(&effects.forwards);
        if effects.reset.is_some() {
            if let Err(error) = self.function.reset() {
                eprintln!("a reset that the guest asked for: {error}");
            }
            self.forward(&self.with(|space| space.replay()));
        }
        self.place(memory);
        self.interrupts.change(self, &effects.interrupts);
    }

    fn forward(&self, writes: &Forwards) {
        for one in writes.iter() {
            let value = one.value.to_le_bytes();
            let _ = self.function.config_write(one.offset.into(), &value[..one.width.into()]);
        }
    }

    /// Maps BARs where the guest decodes them now, and takes away what is elsewhere.
    fn place(self: &Arc<Self>, memory: &Memory) {
        let mut placed = self.placed.lock();
        let generation = self.function.windows_generation();
        for (number, place) in placed.iter_mut().enumerate() {
            let bar = self.with(|space| space.bar(number).zip(space.decoded_at(number)));
            let bar = bar.filter(|(bar, _)| !bar.kind.is_io());
            let wanted = bar.map(|(_, address)| Placed { address, generation });
            if *place == wanted {
                continue;
            }
            if let Some(old) = place.take()
                && let Err(error) = memory.remove_region(old.address)
            {
                eprintln!("BAR {number} cannot be taken away: {error}");
            }
            let Some((wanted, (bar, _))) = wanted.zip(bar) else { continue };
            match self.add(memory, number, bar.size, wanted.address) {
                Ok(()) => *place = Some(wanted),
                Err(error) => eprintln!("BAR {number} is not at {:#x}: {error}", wanted.address),
            }
        }
    }

    /// Puts a BAR into the guest's memory. Where the guest has it over something else, that stays and it has nothing.
    fn add(
        self: &Arc<Self>,
        memory: &Memory,
        number: usize,
        size: u64,
        address: u64,
    ) -> Result<(), Failure> {
        let region = Arc::new(self.region(number, size)?);
        let added = memory.add_region(address, region);
        // What the hypervisor refuses half-way stays alioth's until it is taken away.
        if added.as_ref().is_err_and(|error| !matches!(error, mem::Error::Overlap { .. })) {
            let _ = memory.remove_region(address);
        }
        Ok(added?)
    }

    /// A BAR as memory: windows where the function has them, and traps between.
    fn region(self: &Arc<Self>, number: usize, size: u64) -> Result<MemRegion, Failure> {
        let mut ranges = Vec::new();
        let trap = |start: u64, end: u64| {
            let bar = u8::try_from(number).unwrap_or_default();
            let trapped = Trapped { device: Arc::clone(self), bar, start, size: end - start };
            (end > start).then(|| MemRange::Emulated(Arc::new(trapped)))
        };
        let mut at = 0;
        for window in self.windows().iter().filter(|window| usize::from(window.bar) == number) {
            ranges.extend(trap(at, window.offset));
            let descriptor = window.memory.descriptor().ok_or("a window without a descriptor")?;
            let file = File::from(descriptor.try_clone_to_owned()?);
            let (offset, length) = (window.memory_offset.try_into()?, window.length.try_into()?);
            let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            let bits = i32::try_from(protection.bits())?;
            ranges.push(MemRange::DevMem(ArcMemPages::from_file(file, offset, length, bits)?));
            at = window.offset + window.length;
        }
        ranges.extend(trap(at, size));
        let entries = vec![MemRegionEntry { size, type_: MemRegionType::Hidden }];
        Ok(MemRegion { ranges, entries, callbacks: Mutex::default() })
    }

    /// The parts of BARs that are mapped into the guest. On macOS alioth maps device memory executable, which
    /// it must never be (P7.6), so there everything is trapped.
    fn windows(&self) -> Vec<BarMemory> {
        if cfg!(target_os = "macos") {
            return Vec::new();
        }
        self.function.windows().unwrap_or_else(|error| {
            eprintln!("every access is trapped: {error}");
            Vec::new()
        })
    }

    /// A read of config space: what the model keeps, and the rest from the device; all ones when nobody answers.
    fn read(&self, offset: u32, data: &mut [u8]) {
        let guest = self.guest.lock();
        let is_there = self.function.is_present() && self.function.returns() == guest.returns;
        let device = |at, inside: &mut [u8]| self.function.config_read(at, inside);
        if !is_there || guest.space.read_with(offset, data, device).is_err() {
            data.fill(0xff);
        }
    }
}

/// The function as its bus has it.
#[derive(Debug)]
pub(crate) struct OnBus<M: MsiSender>(pub(crate) Arc<PassedThrough<M>>);

/// What a write came to, for when no lock of alioth's is held any more.
#[derive(Debug)]
struct Consequences<M: MsiSender> {
    device: Arc<PassedThrough<M>>,
    effects: Vec<Effects>,
}

impl<M: MsiSender> ChangeLayout for Consequences<M> {
    fn change(&self, memory: &Memory) -> mem::Result<()> {
        self.effects.iter().for_each(|effects| self.device.carry_out(effects, memory));
        Ok(())
    }
}

impl<M: MsiSender> PassedThrough<M> {
    /// The guest goes on when everything was carried out.
    fn then(self: &Arc<Self>, effects: Vec<Effects>) -> Action {
        if effects.iter().all(Effects::is_empty) {
            return Action::None;
        }
        Action::ChangeLayout {
            callback: Box::new(Consequences { device: Arc::clone(self), effects }),
        }
    }
}

impl<M: MsiSender> Mmio for OnBus<M> {
    fn size(&self) -> u64 {
        CONFIG_SPACE as u64
    }

    fn read(&self, offset: u64, size: u8) -> mem::Result<u64> {
        let mut data = [0; 8];
        let into = &mut data[..usize::from(size.min(8))];
        self.0.read(u32::try_from(offset).unwrap_or(u32::MAX), into);
        Ok(u64::from_le_bytes(data))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> mem::Result<Action> {
        let mut effects = self.0.look();
        let data = &value.to_le_bytes()[..usize::from(size.min(8))];
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        // Of at most 8 bytes, which is what the model takes.
        effects.extend(self.0.with(|space| space.write(offset, data)));
        Ok(self.0.then(effects))
    }
}

impl<M: MsiSender> PciConfig for OnBus<M> {
    fn get_header(&self) -> &EmulatedHeader {
        &self.0.header
    }

    fn reset(&self) -> pci::Result<()> {
        Ok(())
    }
}

impl<M: MsiSender> Pause for OnBus<M> {}

impl<M: MsiSender> Pci for OnBus<M> {
    fn name(&self) -> &str {
        &self.0.function.info().name
    }

    fn config(&self) -> &dyn PciConfig {
        self
    }

    /// The machine starts anew, or ends: the device may not reach its memory any more.
    fn reset(&self) -> pci::Result<()> {
        let function = &self.0.function;
        if let Err(error) = function.quiesce().and_then(|()| function.reset()) {
            eprintln!("{} is not reset: {error}", self.name());
        }
        Ok(())
    }
}

/// A part of a BAR whose every access is a call.
#[derive(Debug)]
struct Trapped<M: MsiSender> {
    device: Arc<PassedThrough<M>>,
    bar: u8,
    /// Where in the BAR it begins.
    start: u64,
    size: u64,
}

impl<M: MsiSender> Mmio for Trapped<M> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, size: u8) -> mem::Result<u64> {
        let mut data = [0; 8];
        let into = &mut data[..usize::from(size.min(8))];
        let offset = self.start + offset;
        // The MSI-X table and the pending bits are the model's.
        if !self.device.with(|space| space.read_bar(self.bar, offset, into)) {
            self.device.function.bar_read_or_ones(self.bar, offset, into);
        }
        Ok(u64::from_le_bytes(data))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> mem::Result<Action> {
        let data = &value.to_le_bytes()[..usize::from(size.min(8))];
        let offset = self.start + offset;
        let Some(effects) = self.device.with(|space| space.write_bar(self.bar, offset, data))
        else {
            // Nobody answers for a device that is away, as on a bus.
            let _ = self.device.function.bar_write(self.bar, offset, data);
            return Ok(Action::None);
        };
        Ok(self.device.then(vec![effects]))
    }
}
