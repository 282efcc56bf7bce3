//! A small driver for QEMU's device for education: it raises its pin when it is told to.

use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{Function, PassthroughDevice as _};
use ipc::wire::function::InterruptIndex;
use ipc::{Deadline, Event, Window};

use super::nvme::{Alive, wait};
use crate::Failure;

/// Registers: what it is, what it inverts, and its interrupts.
const IDENTITY: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const STATUS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

/// The low half of its identity.
const EDU: u32 = 0xed;

/// The device, with its pin.
pub(crate) struct Edu<'m> {
    function: &'m Function,
    registers: &'m Window,
    event: Event,
    alive: Alive<'m>,
    /// Interrupts that were taken.
    pub(crate) taken: u64,
}

impl<'m> Edu<'m> {
    /// Takes its pin interrupts.
    pub(crate) fn start(
        function: &'m Function,
        registers: &'m Window,
        alive: Alive<'m>,
    ) -> Result<Self, Failure> {
        let found = registers.load_u32(IDENTITY)?;
        if found & 0xff != EDU {
            return Err(format!("it calls itself {found:#x}, which is no edu").into());
        }
        let event = Event::new()?;
        let signallers = vec![Some(event.signaller()?)];
        function.set_interrupts(
            InterruptIndex::Intx,
            InterruptSetup::Assign { start: 0, signallers },
        )?;
        Ok(Self { function, registers, event, alive, taken: 0 })
    }

    /// It inverts what it is told.
    pub(crate) fn liveness(&self) -> Result<(), Failure> {
        for value in [0, 0x1234_5678, u32::MAX] {
            self.registers.store_u32(LIVENESS, value)?;
            let found = self.registers.load_u32(LIVENESS)?;
            if found != !value {
                return Err(format!("it made {found:#x} of {value:#x}").into());
            }
        }
        Ok(())
    }

    /// Takes one interrupt: raised, signalled, acknowledged, let through again. A signal that a process repeats
    /// which comes in the place of another is taken and is none.
    pub(crate) fn interrupt(&mut self) -> Result<(), Failure> {
        self.registers.store_u32(RAISE, 1)?;
        loop {
            wait(&self.event, self.alive)?;
            self.event.clear()?;
            let pending = self.registers.load_u32(STATUS)?;
            self.registers.store_u32(ACKNOWLEDGE, pending)?;
            self.function.set_interrupts(InterruptIndex::Intx, InterruptSetup::Unmask)?;
            if pending != 0 {
                self.taken += 1;
                return Ok(());
            }
        }
    }

    /// Raised again before it is let through, it is signalled once, and again once it is let through.
    pub(crate) fn held_back(&mut self) -> Result<(), Failure> {
        const QUIET: std::time::Duration = std::time::Duration::from_millis(100);
        self.registers.store_u32(RAISE, 1)?;
        wait(&self.event, self.alive)?;
        self.event.clear()?;
        self.registers.store_u32(RAISE, 2)?;
        if self.event.wait(Deadline::after(QUIET))? {
            return Err("it was signalled again while it was held back".into());
        }
        self.function.set_interrupts(InterruptIndex::Intx, InterruptSetup::Unmask)?;
        wait(&self.event, self.alive)?;
        self.event.clear()?;
        let pending = self.registers.load_u32(STATUS)?;
        if pending != 3 {
            return Err(format!("its status is {pending:#x} instead of 0x3").into());
        }
        self.registers.store_u32(ACKNOWLEDGE, pending)?;
        self.function.set_interrupts(InterruptIndex::Intx, InterruptSetup::Unmask)?;
        self.taken += 2;
        Ok(())
    }
}
