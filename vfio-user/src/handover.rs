//! From one client to the next: nothing of what the one before left in the device is there any more.
//!
//! In this order: bus mastering off and interrupts disabled, so that the device reaches nobody's
//! memory and wakes nobody; a reset, after which it holds nothing that its user gave it (a PCI
//! function must not, after a function-level reset); and since the host puts back some of config
//! space after a reset, as the client had it, the registers that it wrote. It is done
//! before the first client too: whoever used the function before this server is a client as well.

use std::ops::Range;

use crate::kept::HandoverRecord;
use cordon_vmm::{DeviceError, PassthroughDevice};
use ipc::wire::function::CONFIG_SPACE;

/// Registers of 4 bytes.
const REGISTERS: usize = CONFIG_SPACE / 4;
const COMMAND: usize = 0x04;

/// Config space as the first client found it, and what of it was written since.
pub(super) struct Handover {
    found: Option<Vec<u8>>,
    written: Box<[bool; REGISTERS]>,
    /// How often there was something new.
    changes: u64,
}

impl Handover {
    pub(super) fn new() -> Self {
        Self { found: None, written: Box::new([false; REGISTERS]), changes: 0 }
    }

    /// As another server had it whose client is this one's from here on.
    pub(super) fn of(record: &HandoverRecord) -> Self {
        let mut handover = Self::new();
        let is_whole = record.found.len() == CONFIG_SPACE;
        handover.found = is_whole.then(|| record.found.clone());
        for register in &record.written {
            if let Some(written) = handover.written.get_mut(usize::from(*register)) {
                *written = true;
            }
        }
        handover
    }

    /// For another server.
    pub(super) fn record(&self) -> HandoverRecord {
        let written = (0..).zip(self.written.iter()).filter(|(_, written)| **written);
        HandoverRecord {
            found: self.found.clone().unwrap_or_default(),
            written: written.map(|(register, _)| register).collect(),
        }
    }

    /// How often there was something new for [`Handover::record`].
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// A client had these bytes of the device's config space written.
    pub(super) fn note_write(&mut self, bytes: Range<u32>) {
        let register = |at: u32| usize::try_from(at).unwrap_or(usize::MAX).min(REGISTERS);
        let written = register(bytes.start / 4)..register(bytes.end.div_ceil(4));
        if let Some(written) = self.written.get_mut(written) {
            self.changes += u64::from(written.contains(&false));
            written.fill(true);
        }
    }

    /// Takes back what a client left. An error: nobody may have the device yet.
    pub(super) fn clean(&mut self, device: &dyn PassthroughDevice) -> Result<(), DeviceError> {
        device.quiesce()?;
        device.reset()?;
        let Some(found) = &self.found else {
            let mut found = vec![0; CONFIG_SPACE];
            device.config_read(0, &mut found)?;
            self.found = Some(found);
            return Ok(());
        };
        for (register, written) in
            self.written.iter_mut().enumerate().filter(|(_, written)| **written)
        {
            let at = register * 4;
            // STATUS is not to be written back: its bits are cleared by writing ones.
            let before = &found[at..if at == COMMAND { at + 2 } else { at + 4 }];
            let mut now = [0; 4];
            let now = &mut now[..before.len()];
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            device.config_read(offset, now)?;
            if now != before {
                device.config_write(offset, before)?;
            }
            *written = false;
        }
        Ok(())
    }
}
