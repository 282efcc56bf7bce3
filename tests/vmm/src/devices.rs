//! The test VMM's own devices: a serial port, its power switch, and a port by which the firmware has processes
//! killed and sees the INTx line, since alioth's I/O APIC knows no levels.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use alioth::device::{MmioDev, Pause};
use alioth::hv::MsiSender;
use alioth::mem;
use alioth::mem::emulated::{Action, Mmio};
use rustix::process::{Pid, Signal, kill_process};

use crate::function::PassedThrough;

/// Writes what it is sent to standard output.
#[derive(Debug)]
pub(crate) struct Serial;

/// Where [`Serial`] is.
pub(crate) const SERIAL: u16 = 0x3f8;

impl Mmio for Serial {
    fn size(&self) -> u64 {
        8
    }

    /// Ready for more.
    fn read(&self, _: u64, _: u8) -> mem::Result<u64> {
        Ok(0x60)
    }

    fn write(&self, offset: u64, _: u8, value: u64) -> mem::Result<Action> {
        if offset == 0 {
            let mut out = std::io::stdout();
            // Nobody to tell that nobody listens.
            let _ = out.write_all(&value.to_le_bytes()[..1]).and_then(|()| out.flush());
        }
        Ok(Action::None)
    }
}

impl Pause for Serial {}
impl MmioDev for Serial {}

/// Ends the machine when it is written to: the keyboard controller's reset line.
#[derive(Debug)]
pub(crate) struct Power;

/// Where [`Power`] is.
pub(crate) const POWER: u16 = 0x64;

impl Mmio for Power {
    fn size(&self) -> u64 {
        1
    }

    fn read(&self, _: u64, _: u8) -> mem::Result<u64> {
        Ok(0)
    }

    fn write(&self, _: u64, _: u8, _: u64) -> mem::Result<Action> {
        Ok(Action::Shutdown)
    }
}

impl Pause for Power {}
impl MmioDev for Power {}

/// What the firmware asks of the host, see `firmware/src/machine.rs`.
#[derive(Debug)]
pub(crate) struct Actions<M: MsiSender>(pub(crate) Arc<PassedThrough<M>>);

/// Where [`Actions`] is.
pub(crate) const ACTIONS: u16 = 0x5e0;

impl<M: MsiSender> Mmio for Actions<M> {
    fn size(&self) -> u64 {
        12
    }

    fn read(&self, offset: u64, _: u8) -> mem::Result<u64> {
        let line = &self.0.interrupts.line;
        Ok(match offset {
            4 => {
                let asserted = u64::from(line.is_asserted.load(Ordering::SeqCst)) << 31;
                asserted | u64::from(line.times.load(Ordering::SeqCst))
            }
            8 => self.0.function.replacements(),
            _ => 0,
        })
    }

    fn write(&self, offset: u64, _: u8, value: u64) -> mem::Result<Action> {
        let function = &self.0.function;
        match (offset, value) {
            (0, 1) => signal(function.pid(), Signal::KILL),
            (0, 2) => signal(function.pid(), Signal::STOP),
            (0, 3) => signal(function.connection().pid(), Signal::KILL),
            (0, 4) => self.0.interrupts.end_of_interrupt(&self.0),
            _ => eprintln!("no such action: {value} at {offset}"),
        }
        Ok(Action::None)
    }
}

impl<M: MsiSender> Pause for Actions<M> {}
impl<M: MsiSender> MmioDev for Actions<M> {}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match pid.map(|pid| kill_process(pid, signal)) {
        Some(Ok(())) => {}
        other => eprintln!("there is no process to signal: {other:?}"),
    }
}
