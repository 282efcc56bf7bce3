//! MSI-X as a model: control register, table and pending-bit array belong to the guest alone
//! (P6.4, P7.3). Nothing of the host's table is ever shown, and nothing here reaches it.
//!
//! Vectors that are raised while they are masked, one by one or as a whole, become pending and are
//! delivered on unmask. Entries may change at any time, also while MSI-X is off.

use crate::bytes;
use crate::capabilities::MsixCapability;
use crate::message::{Message, VectorState};
use crate::registers::MESSAGE_CONTROL;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const ENTRY: usize = 16;
const WORDS: usize = 2048 / 64;

/// One table entry: address low, address high, data, control (bit 0: masked).
type Entry = [u32; 4];
const AT_RESET: Entry = [0, 0, 0, 1];

/// Which of the two structures an access in a BAR is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsixRegion {
    /// The table.
    Table,
    /// The pending-bit array.
    PendingBits,
}

/// MSI-X of one function.
#[derive(Clone, Debug)]
pub struct Msix {
    capability: MsixCapability,
    control: u16,
    entries: Vec<Entry>,
    pending: [u64; WORDS],
    /// Vectors whose entry the guest has filled in or unmasked since the reset.
    set_up: [u64; WORDS],
}

impl Msix {
    /// As after a reset: off, every entry masked. A capability with more than 2048 vectors, which
    /// no register can show, is taken to have 2048.
    #[must_use]
    pub fn new(capability: MsixCapability) -> Self {
        let capability =
            MsixCapability { vectors: capability.vectors.clamp(1, 2048), ..capability };
        let entries = vec![AT_RESET; capability.vectors.into()];
        Self { capability, control: 0, entries, pending: [0; WORDS], set_up: [0; WORDS] }
    }

    /// The capability that it stands for.
    #[must_use]
    pub fn capability(&self) -> &MsixCapability {
        &self.capability
    }

    /// Whether the guest enabled MSI-X.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Whether all vectors are masked by the function mask.
    #[must_use]
    pub fn is_function_masked(&self) -> bool {
        self.control & FUNCTION_MASK != 0
    }

    /// The control register as a read shows it.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.control | (self.capability.vectors - 1)
    }

    /// Takes the bytes of a write at `offset`, which counts from the start of the capability.
    /// Returns whether enable or function mask changed.
    pub fn write_control(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut written = self.control.to_le_bytes();
        for (at, value) in bytes::hits(MESSAGE_CONTROL..MESSAGE_CONTROL + 2, offset, data) {
            written[at] = value;
        }
        let control = u16::from_le_bytes(written) & (ENABLE | FUNCTION_MASK);
        std::mem::replace(&mut self.control, control) != control
    }

    /// The state of `vector`. A vector whose entry the guest has not filled in is not in use.
    #[must_use]
    pub fn vector(&self, vector: u16) -> VectorState {
        let Some([low, high, data, control]) = self.entries.get(usize::from(vector)).copied()
        else {
            return VectorState { in_use: false, masked: true, message: Message::default() };
        };
        let address = u64::from(high) << 32 | u64::from(low);
        VectorState {
            in_use: self.is_enabled() && has(&self.set_up, vector),
            masked: self.is_function_masked() || control & 1 != 0,
            message: Message { address, data },
        }
    }

    /// Which structure an access of `length` bytes at `offset` in BAR `bar` touches, if any. An
    /// access that touches one at all is the model's: nothing else may share its dwords.
    #[must_use]
    pub fn region(&self, bar: u8, offset: u64, length: usize) -> Option<MsixRegion> {
        let MsixCapability { table_bar, table_offset, pba_bar, pba_offset, .. } = self.capability;
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let touches = |in_bar: u8, start: u32, bytes: u64| {
            let start = u64::from(start);
            in_bar == bar && offset < start + bytes && start < end
        };
        if touches(table_bar, table_offset, self.capability.table_bytes()) {
            return Some(MsixRegion::Table);
        }
        touches(pba_bar, pba_offset, self.capability.pba_bytes()).then_some(MsixRegion::PendingBits)
    }

    /// Reads the table at `offset` from its start, any length; past its end it is zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        each(offset, data, |at| {
            let entry = self.entries.get(at / ENTRY)?;
            Some(entry[at % ENTRY / 4].to_le_bytes()[at % 4])
        });
    }

    /// Reads the pending-bit array at `offset` from its start, any length; past its end it is zero.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        each(offset, data, |at| Some(self.pending.get(at / 8)?.to_le_bytes()[at % 8]));
    }

    /// Writes the table at `offset` from its start: 4 or 8 bytes, aligned to their length. The
    /// vector whose entry changed is returned. Other widths, which software may not use, and bytes
    /// past the end are dropped. Reserved bits are not kept.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let offset = usize::try_from(offset).ok()?;
        if !matches!(data.len(), 4 | 8) || offset % data.len() != 0 {
            return None;
        }
        let vector = u16::try_from(offset / ENTRY).ok()?;
        let entry = self.entries.get_mut(usize::from(vector))?;
        let before = *entry;
        for (number, value) in (offset % ENTRY / 4..4).zip(data.chunks_exact(4)) {
            let kept = [!0b11, u32::MAX, u32::MAX, 1][number];
            entry[number] = bytes::word(value, 0) & kept;
        }
        if *entry == before {
            return None;
        }
        if entry[..3] != before[..3] || entry[3] & 1 == 0 {
            set(&mut self.set_up, vector);
        }
        Some(vector)
    }

    /// The device raised `vector`: the message to send. One that is masked becomes pending; while
    /// MSI-X is off, and past the table, it is dropped (P9.2).
    pub fn signal(&mut self, vector: u16) -> Option<Message> {
        if !self.is_enabled() || vector >= self.capability.vectors {
            return None;
        }
        let state = self.vector(vector);
        if state.masked {
            set(&mut self.pending, vector);
            return None;
        }
        Some(state.message)
    }

    /// Whether a pending vector may be delivered now.
    #[must_use]
    pub fn has_deliverable(&self) -> bool {
        self.deliverable().is_some()
    }

    fn deliverable(&self) -> Option<u16> {
        if self.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return None;
        }
        let words = (0u16..).step_by(64).zip(self.pending);
        words.filter(|(_, word)| *word != 0).find_map(|(first, word)| {
            (first..)
                .take(64)
                .find(|vector| word >> (vector - first) & 1 != 0 && !self.vector(*vector).masked)
        })
    }

    /// Takes the lowest pending vector that was unmasked, and its message.
    pub fn next_deliverable(&mut self) -> Option<(u16, Message)> {
        let vector = self.deliverable()?;
        self.pending[usize::from(vector / 64)] &= !(1 << (vector % 64));
        Some((vector, self.vector(vector).message))
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill(AT_RESET);
        (self.pending, self.set_up) = ([0; WORDS], [0; WORDS]);
    }
}

/// Fills `data` with the bytes from `offset` on; those that there are not are zero.
fn each(offset: u64, data: &mut [u8], byte: impl Fn(usize) -> Option<u8>) {
    for (number, to) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(number));
        *to = at.and_then(&byte).unwrap_or(0);
    }
}

fn has(words: &[u64; WORDS], vector: u16) -> bool {
    words.get(usize::from(vector / 64)).is_some_and(|word| word >> (vector % 64) & 1 != 0)
}

fn set(words: &mut [u64; WORDS], vector: u16) {
    if let Some(word) = words.get_mut(usize::from(vector / 64)) {
        *word |= 1 << (vector % 64);
    }
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;
