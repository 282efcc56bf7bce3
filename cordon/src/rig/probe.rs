//! A driver for the probe device: scratch registers, DMA engine, interrupt vectors, reset.

use cordon_vmm::{Function, PassthroughDevice as _};
use ipc::{Event, Window};

use super::nvme::wait;
use crate::Failure;

const ID: u32 = u32::from_le_bytes(*b"PRBE");

/// The probe device.
pub(crate) struct Probe<'p> {
    pub(crate) proxy: &'p Function,
    pub(crate) registers: &'p Window,
    pub(crate) events: &'p [Event],
    pub(crate) interrupts: Vec<u64>,
    sequence: u32,
}

impl<'p> Probe<'p> {
    pub(crate) fn new(proxy: &'p Function, registers: &'p Window, events: &'p [Event]) -> Self {
        Self { proxy, registers, events, interrupts: vec![0; events.len()], sequence: 0 }
    }

    /// Scratch registers by trap and through the window: each sees what the other wrote.
    pub(crate) fn scratch(&self) -> Result<(), Failure> {
        if self.trapped_read(0)? != ID {
            return Err("the probe does not say who it is".into());
        }
        for word in 0..12u32 {
            let at = 0x10 + 4 * u64::from(word);
            let value = 0x5a5a_0000 | word;
            self.proxy.bar_write(0, at, &value.to_le_bytes())?;
            if self.registers.read::<u32>(at)? != value {
                return Err(format!("a trapped write at {at:#x} is not in the window").into());
            }
            self.registers.write(at, !value)?;
            if self.trapped_read(at)? != !value {
                return Err(format!("a write through the window at {at:#x} is not read").into());
            }
        }
        Ok(())
    }

    fn trapped_read(&self, at: u64) -> Result<u32, Failure> {
        let mut bytes = [0; 4];
        self.proxy.bar_read(0, at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Has the device copy guest memory; its completion comes on `vector`.
    pub(crate) fn copy(
        &mut self,
        source: u64,
        target: u64,
        length: u32,
        vector: u16,
    ) -> Result<(), Failure> {
        self.sequence += 1;
        self.registers.write(0x40, source)?;
        self.registers.write(0x48, target)?;
        self.registers.write(0x50, length)?;
        self.registers.write(0x54, u32::from(vector))?;
        self.registers.store_u32(0x58, self.sequence)?;
        self.take(vector)?;
        let (done, status) = (self.registers.load_u32(0x5c)?, self.registers.load_u32(0x60)?);
        if done != self.sequence || status != 0 {
            return Err(format!("the probe's copy {done} ended with status {status}").into());
        }
        Ok(())
    }

    /// Fires every vector once; each event must come, and no other.
    pub(crate) fn every_vector(&mut self) -> Result<(), Failure> {
        for vector in 0..u16::try_from(self.events.len())? {
            self.sequence += 1;
            self.registers.write(0x64, u32::from(vector))?;
            self.registers.write(0x68, 1u32)?;
            self.registers.store_u32(0x6c, self.sequence)?;
            self.take(vector)?;
            for (other, event) in self.events.iter().enumerate() {
                if event.clear()? {
                    return Err(format!("vector {vector} was fired, {other} came too").into());
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, vector: u16) -> Result<(), Failure> {
        let at = usize::from(vector);
        let proxy = self.proxy;
        let alive = || proxy.death().map_or(Ok(()), |death| Err(death.into()));
        self.interrupts[at] +=
            wait(&self.events[at], &alive).map_err(|error| format!("vector {vector}: {error}"))?;
        Ok(())
    }

    /// Resets the device: what was written is gone.
    pub(crate) fn reset(&mut self) -> Result<(), Failure> {
        self.registers.write(0x10, 0xdead_beef_u32)?;
        let before = self.trapped_read(0x0c)?;
        self.proxy.reset()?;
        if self.trapped_read(0x10)? != 0 || self.trapped_read(0x0c)? != before + 1 {
            return Err("the probe was not reset".into());
        }
        self.sequence = 0;
        Ok(())
    }
}
