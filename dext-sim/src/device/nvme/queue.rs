//! Submission and completion queues: rings in guest memory.

use std::sync::atomic::Ordering;

use crate::dart::DartError;
use crate::hardware::Hardware;

/// Commands from the guest.
pub(super) struct SubmissionQueue {
    base: u64,
    entries: u32,
    head: u32,
    /// Where its completions go.
    pub(super) completion: u16,
}

impl SubmissionQueue {
    pub(super) fn new(base: u64, entries: u32, completion: u16) -> Self {
        Self { base, entries, head: 0, completion }
    }

    /// Address of the next command, if the doorbell says that there is one. A doorbell past the
    /// queue is the guest's error and means nothing.
    pub(super) fn next(&mut self, tail: u32) -> Option<u64> {
        if tail >= self.entries || tail == self.head {
            return None;
        }
        let at = self.base.checked_add(64 * u64::from(self.head));
        self.head = (self.head + 1) % self.entries;
        at
    }

    /// Head pointer, for completions.
    pub(super) fn head(&self) -> u16 {
        u16::try_from(self.head).unwrap_or_default()
    }
}

/// One completion.
pub(super) struct Completion {
    pub(super) result: u32,
    pub(super) head: u16,
    pub(super) queue: u16,
    pub(super) command: u16,
    pub(super) status: u16,
}

/// Answers to the guest.
pub(super) struct CompletionQueue {
    base: u64,
    entries: u32,
    tail: u32,
    phase: bool,
    /// Vector to fire, if interrupts are enabled.
    pub(super) vector: Option<u16>,
}

impl CompletionQueue {
    pub(super) fn new(base: u64, entries: u32, vector: Option<u16>) -> Self {
        Self { base, entries, tail: 0, phase: true, vector }
    }

    /// Whether another entry fits, given the guest's head doorbell.
    pub(super) fn room(&self, head: u32) -> bool {
        head < self.entries && (self.tail + 1) % self.entries != head
    }

    /// Whether there is an interrupt for entries that the guest has not taken.
    pub(super) fn asserts(&self, head: u32) -> bool {
        self.vector.is_some() && head != self.tail
    }

    /// Writes an entry: all of it as not there yet, then the byte with the phase bit. The guest
    /// polls that bit, and copies to its memory are made of bytes in any order, so that everything
    /// else must be there before and that byte is the only one that changes.
    pub(super) fn post(
        &mut self,
        completion: &Completion,
        hardware: &Hardware,
    ) -> Result<(), DartError> {
        const PHASE_BYTE: usize = 14;
        let at = self.base.checked_add(16 * u64::from(self.tail)).ok_or(DartError::Fault)?;
        let status = completion.status << 1;
        let mut bytes = [0; 16];
        bytes[0..4].copy_from_slice(&completion.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&completion.head.to_le_bytes());
        bytes[10..12].copy_from_slice(&completion.queue.to_le_bytes());
        bytes[12..14].copy_from_slice(&completion.command.to_le_bytes());
        bytes[14..16].copy_from_slice(&(status | u16::from(!self.phase)).to_le_bytes());
        hardware.dma_write(at, &bytes)?;
        // Data and entry are seen by whoever sees the bit.
        std::sync::atomic::fence(Ordering::Release);
        let [last, _] = (status | u16::from(self.phase)).to_le_bytes();
        hardware.dma_write(at + PHASE_BYTE as u64, &[last])?;
        self.tail += 1;
        if self.tail == self.entries {
            self.tail = 0;
            self.phase = !self.phase;
        }
        Ok(())
    }
}
