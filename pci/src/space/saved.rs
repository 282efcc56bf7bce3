//! What a guest has written, as bytes: for another process to go on where this one stopped.

use super::ConfigSpace;
use crate::registers::{BAR0, BARS_END, COMMAND, CONFIG_SPACE, INTERRUPT_LINE, MESSAGE_CONTROL};

/// Bytes of an entry of the MSI-X table.
const ENTRY: usize = 16;

impl ConfigSpace {
    /// What a guest has written, and the MSI-X table behind it: for [`ConfigSpace::load`] of one that is made from the
    /// same [`Description`](super::Description). What is pending of interrupts is not in it: it is for a front end
    /// whose client keeps that ([`InterruptPolicy::Client`](super::InterruptPolicy::Client)).
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut saved = self.shadow.to_vec();
        if let Some(msix) = &self.msix {
            let table = saved.len();
            saved.resize(table + ENTRY * usize::from(msix.capability().vectors), 0);
            msix.read_table(0, &mut saved[table..]);
        }
        saved
    }

    /// Takes over what [`ConfigSpace::save`] returned. No device is written to. `false`, and nothing is changed, where
    /// that is of another config space by its size.
    pub fn load(&mut self, saved: &[u8]) -> bool {
        let vectors = self.msix.as_ref().map_or(0, |msix| usize::from(msix.capability().vectors));
        let Some((config, table)) = saved.split_at_checked(CONFIG_SPACE) else { return false };
        if table.len() != ENTRY * vectors {
            return false;
        }
        let kept = self.layout.kept.iter().zip(config);
        for (to, (kept, from)) in self.shadow.iter_mut().zip(kept) {
            *to = *to & !kept | from & kept;
        }
        self.interrupt[0] = config[INTERRUPT_LINE];
        let _ = self.bars.write(BAR0, &config[BAR0..BARS_END]);
        if let Some(at) = self.layout.power_state() {
            let _ = self.command.write_power(config[at] & 0b11);
        }
        self.command.write(COMMAND, &config[COMMAND..COMMAND + 2]);
        if let Some(msi) = &mut self.msi {
            let at = usize::from(msi.capability().offset);
            let end = at + usize::from(msi.capability().length());
            msi.write(0, config.get(at..end).unwrap_or_default());
        }
        if let Some(msix) = &mut self.msix {
            let at = usize::from(msix.capability().offset) + MESSAGE_CONTROL;
            msix.write_control(MESSAGE_CONTROL, config.get(at..at + 2).unwrap_or_default());
            for (at, word) in (0..).step_by(4).zip(table.chunks_exact(4)) {
                let _ = msix.write_table(at, word);
            }
        }
        self.refresh();
        true
    }
}
