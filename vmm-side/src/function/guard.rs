//! What a VMM writes to config space, on its way to the function process: the permission table (P6.4) in front of
//! that process, which applies it again, and the windows, which show all ones while the device decodes no memory.
//!
//! Runs on the callers' own threads. The table is laid over what the first process of the function found, before
//! any guest had it; a process that lied about that is kept from nothing here, and has no more than its own device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use cordon_pci::PowerState;
use cordon_pci::permission::{Forward, Layout};
use cordon_pci::registers::{COMMAND, command};
use ipc::Deadline;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{Access, CONFIG_SPACE, Reset, Space};
use parking_lot::Mutex;

use super::FunctionShared;
use crate::child::CallError;
use crate::error::{DeviceError, ErrorKind};

/// Of one function.
pub(super) struct ConfigGuard {
    layout: Layout,
    decoding: Mutex<Decoding>,
    /// What `decoding` comes to, for trapped accesses, which look at nothing else.
    hides_memory: AtomicBool,
    /// Held while something is under way that changes what is decoded, so that windows and device agree in the
    /// end; only by callers, never by the function's own thread.
    order: Mutex<()>,
}

/// Whether the device answers to accesses of its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Decoding {
    memory: bool,
    power: PowerState,
}

/// As a claim leaves it.
const CLAIMED: Decoding = Decoding { memory: true, power: PowerState::D0 };

impl Decoding {
    fn is_on(self) -> bool {
        self.memory && self.power == PowerState::D0
    }

    /// What it is after these writes.
    fn after(mut self, forwards: &[Forward], power: Option<usize>) -> Self {
        let bytes = forwards.iter().flat_map(|one| {
            (usize::from(one.offset)..).zip(one.value.to_le_bytes()).take(one.width.into())
        });
        for (at, value) in bytes {
            if at == COMMAND {
                self.memory = u16::from(value) & command::MEMORY != 0;
            }
            if Some(at) == power {
                self.power = PowerState::from_bits(value).unwrap_or(self.power);
            }
        }
        self
    }
}

impl ConfigGuard {
    /// Over the dwords of config space that the function's first process read.
    pub(super) fn new(known: &[(u16, u32)]) -> Self {
        let known: BTreeMap<u16, u32> = known.iter().copied().collect();
        let read =
            |offset| Ok::<_, std::convert::Infallible>(known.get(&offset).copied().unwrap_or(0));
        let layout = match Layout::read(read) {
            Ok(layout) => layout,
            Err(never) => match never {},
        };
        let (decoding, order) = (Mutex::new(CLAIMED), Mutex::new(()));
        Self { layout, decoding, hides_memory: AtomicBool::new(false), order }
    }

    /// What a guest has a device decode that was not claimed anew: as its first process found it.
    fn found(&self, known: &[(u16, u32)]) -> Decoding {
        let watched = [Some(COMMAND), self.layout.power_state()].into_iter().flatten();
        let found = watched.filter_map(|at| {
            let offset = u16::try_from(at & !3).ok()?;
            let (_, value) = known.iter().find(|(known, _)| *known == offset)?;
            Some(Forward { offset, width: 4, value: *value })
        });
        CLAIMED.after(&found.collect::<Vec<_>>(), self.layout.power_state())
    }

    fn change(&self, change: impl FnOnce(&mut Decoding)) {
        let mut decoding = self.decoding.lock();
        change(&mut decoding);
        self.hides_memory.store(!decoding.is_on(), Ordering::Release);
    }

    /// Whether the device decodes no memory: its windows and trapped accesses read all ones.
    pub(super) fn hides_memory(&self) -> bool {
        self.hides_memory.load(Ordering::Acquire)
    }

    /// The device was claimed and reset anew.
    pub(super) fn restart(&self) {
        self.change(|decoding| *decoding = CLAIMED);
    }
}

impl FunctionShared {
    /// The device goes on as a guest had it, which may have switched its memory off.
    pub(super) fn find_decoding(&self) {
        let found = self.guard.found(&self.ready.known.config);
        if !found.is_on() {
            self.windows.hide();
        }
        self.guard.change(|decoding| *decoding = found);
    }

    /// Writes config space as far as the permission table lets a guest (P6.4). COMMAND.MEM and the power state take
    /// the windows along, and a function-level reset is [`FunctionShared::reset`].
    pub(super) fn write_config(
        &self,
        access: &Access,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let offset = u32::try_from(access.offset).unwrap_or(u32::MAX);
        let bytes = access.value.to_le_bytes();
        let left = CONFIG_SPACE.saturating_sub(usize::try_from(offset).unwrap_or(usize::MAX));
        let data = &bytes[..usize::from(access.width).min(left).min(bytes.len())];
        if !matches!(data.len(), 0 | 1 | 2 | 4) {
            return Err(self.no_width(offset, data.len()).into());
        }
        let layout = &self.guard.layout;
        let forwards = layout.split(offset, data);
        let resets = layout.asks_for_reset(offset, data);
        if forwards.is_empty() && !resets {
            // Dropped; a device that is gone says so all the same.
            return Ok(self.wait_for_one(None, deadline, "ConfigWrite")?);
        }
        let power = layout.power_state();
        let is_watched = |one: &Forward| {
            let range = usize::from(one.offset)..usize::from(one.offset) + usize::from(one.width);
            range.contains(&COMMAND) || power.is_some_and(|power| range.contains(&power))
        };
        if !forwards.iter().any(is_watched) {
            self.send_all(&forwards, deadline)?;
        } else {
            let _order = self.in_order("ConfigWrite", deadline)?;
            let next = self.guard.decoding.lock().after(&forwards, power);
            if !next.is_on() {
                self.windows.hide();
            }
            let sent = self.send_all(&forwards, deadline);
            // One that was not answered may have been made all the same, or may be yet.
            let is_unknown =
                sent.as_ref().is_err_and(|error| !matches!(error, CallError::Refused(_)));
            if sent.is_ok() || (is_unknown && !next.is_on()) {
                self.guard.change(|decoding| *decoding = next);
            }
            self.show_if_decoded();
            sent?;
        }
        if resets { self.reset(deadline) } else { Ok(()) }
    }

    /// Resets the device (P8); nobody reaches its memory meanwhile. What the host programmed stays, COMMAND with it.
    pub(super) fn reset(&self, deadline: Deadline) -> Result<(), DeviceError> {
        let _order = self.in_order("Reset", deadline)?;
        self.windows.hide();
        let done = match self.ask(&Reset, deadline) {
            // With its whole bus, perhaps, which takes the descriptor of its group.
            Err(CallError::Refused(failure)) if failure.kind == FailureKind::NotSupported => {
                self.connection.reset_with_bus(self.address, failure, deadline)
            }
            other => other.map_err(DeviceError::from),
        };
        match &done {
            Ok(()) => self.guard.change(|decoding| decoding.power = PowerState::D0),
            // The kernel may be at it still: nobody loads until the guest has the device decode its memory again.
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Gone) => {
                self.guard.change(|decoding| decoding.memory = false);
            }
            Err(_) => {}
        }
        self.show_if_decoded();
        done
    }

    fn in_order(
        &self,
        request: &'static str,
        deadline: Deadline,
    ) -> Result<parking_lot::MutexGuard<'_, ()>, CallError> {
        let order = self.guard.order.try_lock_until(deadline.instant());
        order.ok_or_else(|| self.timed_out(request))
    }

    fn show_if_decoded(&self) {
        if !self.guard.hides_memory() {
            self.windows.show();
        }
    }

    fn send_all(&self, forwards: &[Forward], deadline: Deadline) -> Result<(), CallError> {
        for one in forwards {
            let (offset, value) = (one.offset.into(), one.value.into());
            self.access(&Access::write(Space::Config, offset, one.width, value), deadline)?;
        }
        Ok(())
    }

    /// P6.3.
    fn no_width(&self, offset: u32, width: usize) -> Failure {
        let address = self.address;
        let message = format!(
            "Function {address}: config write of {width} bytes at {offset:#x}: 1, 2 or 4 allowed"
        );
        Failure { kind: FailureKind::InvalidArgument, code: None, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(offset: u16, width: u8, value: u32) -> Forward {
        Forward { offset, width, value }
    }

    #[test]
    fn memory_is_decoded_with_mem_on_and_in_d0_only() {
        let after = |forwards: &[Forward]| CLAIMED.after(forwards, Some(0x44)).is_on();
        assert!(after(&[]) && after(&[forward(4, 1, 2), forward(5, 1, 0)]));
        assert!(!after(&[forward(4, 1, 5)]) && after(&[forward(5, 1, 0)]));
        assert!(!after(&[forward(0x44, 1, 3)]) && !after(&[forward(0x44, 4, 0x103)]));
        assert!(
            after(&[forward(0x44, 1, 3), forward(0x44, 1, 8)]) && after(&[forward(0x45, 1, 3)])
        );
        assert!(!CLAIMED.after(&[forward(4, 1, 0)], None).is_on());
    }

    #[test]
    fn what_a_device_decodes_that_goes_on_is_what_was_found() {
        let with = |command: u32, power: u32| {
            let known =
                [(0x04, 0x0010_0000 | command), (0x34, 0x40), (0x40, 0x0003_0001), (0x44, power)];
            ConfigGuard::new(&known).found(&known).is_on()
        };
        assert!(with(0x0406, 8));
        assert!(!with(0x0404, 8) && !with(0x0406, 11));
        assert_eq!(ConfigGuard::new(&[]).found(&[]), CLAIMED);
    }

    #[test]
    fn the_table_is_laid_over_what_was_found() {
        // Power management at 0x40 that keeps its state, then MSI at 0x50.
        let known =
            [(0x04, 0x0010_0006), (0x34, 0x40), (0x40, 0x0003_5001), (0x44, 8), (0x50, 0x0005)];
        let guard = ConfigGuard::new(&known);
        assert!(guard.layout.permits(0x44, 1) && !guard.layout.permits(0x54, 1));
        assert_eq!(guard.layout.power_state(), Some(0x44));
        // Nothing was found: the header is the host's all the same.
        let guard = ConfigGuard::new(&[]);
        assert!(!guard.layout.permits(0x10, 1) && guard.layout.permits(0x54, 1));
        assert!(!guard.layout.permits(0x100, 1));
    }
}
