//! What a new process is told so that it can go on where a dead one stopped: the only recovery
//! state there is. It lives in the VMM and holds nothing that a process below could change.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::event::Signaller;
use ipc::wire::function::{Access, InterruptIndex, Layout, Space};

use crate::memory::GuestRegion;

/// Signallers by vector, for the index in use.
pub(crate) type Interrupts = Option<(InterruptIndex, Vec<Option<Arc<Signaller>>>)>;

/// Interrupt setup and companion of one function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    interrupts: Interrupts,
    /// Bytes of the MSI-X control word as the guest wrote them: setting interrupts up anew makes
    /// the dext enable what the guest may have disabled.
    control: BTreeMap<u64, u8>,
    /// Layout and size of the batches of the function's companion.
    pub(super) companion: Option<(Layout, u32)>,
    /// Guest RAM, where a companion needs it.
    pub(super) memory: BTreeMap<u64, Arc<GuestRegion>>,
}

impl Journal {
    /// Vectors from `start` get these signallers. What there was before, to be restored if the
    /// process refuses.
    pub(crate) fn assign(
        &mut self,
        index: InterruptIndex,
        start: u16,
        signallers: &[Option<Arc<Signaller>>],
    ) -> Interrupts {
        let before = self.interrupts.clone();
        let (used, mut all) = self.interrupts.take().unwrap_or((index, Vec::new()));
        if used != index {
            // The process refuses a second index; the first stays.
            self.interrupts = Some((used, all));
            return before;
        }
        let start = usize::from(start);
        let end = start + signallers.len();
        if all.len() < end {
            all.resize(end, None);
        }
        all[start..end].clone_from_slice(signallers);
        while all.last().is_some_and(Option::is_none) {
            all.pop();
        }
        self.interrupts = if all.is_empty() { None } else { Some((index, all)) };
        before
    }

    /// The index has no signallers any more.
    pub(crate) fn disable(&mut self, index: InterruptIndex) {
        self.interrupts.take_if(|(used, _)| *used == index);
    }

    /// Back to what `assign` returned.
    pub(crate) fn restore(&mut self, before: Interrupts) {
        self.interrupts = before;
    }

    /// A config write of the guest's; `capability` is the offset of its MSI-X capability.
    pub(crate) fn config_write(&mut self, capability: u16, offset: u64, data: &[u8]) {
        let control = u64::from(capability) + 2;
        for (number, byte) in (0u64..).zip(data) {
            let at = offset.saturating_add(number);
            if (control..control + 2).contains(&at) {
                self.control.insert(at, *byte);
            }
        }
    }

    /// Config writes to repeat.
    pub(crate) fn config_writes(&self) -> impl Iterator<Item = Access> {
        let each = self.control.iter();
        each.map(|(at, byte)| Access::write(Space::Config, *at, 1, (*byte).into()))
    }

    /// The index in use and its signallers by vector.
    pub(crate) fn interrupts(&self) -> Option<(InterruptIndex, &[Option<Arc<Signaller>>])> {
        self.interrupts.as_ref().map(|(index, all)| (*index, &all[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use InterruptIndex::{Intx, Msix};

    fn signaller() -> Option<Arc<Signaller>> {
        Some(Arc::new(ipc::Event::new().unwrap().signaller().unwrap()))
    }

    fn vectors(journal: &Journal) -> Vec<usize> {
        let all = journal.interrupts().map_or(&[][..], |(_, all)| all);
        (0..all.len()).filter(|vector| all[*vector].is_some()).collect()
    }

    #[test]
    fn assignments_add_up_and_are_taken_away() {
        let mut journal = Journal::default();
        journal.assign(Msix, 3, &[signaller(), None, signaller()]);
        journal.assign(Msix, 0, &[signaller()]);
        assert_eq!(vectors(&journal), [0, 3, 5]);
        let before = journal.assign(Msix, 5, &[None]);
        assert_eq!(vectors(&journal), [0, 3]);
        journal.restore(before);
        assert_eq!(vectors(&journal), [0, 3, 5]);
        journal.disable(Intx);
        assert_eq!(vectors(&journal).len(), 3);
        journal.disable(Msix);
        assert!(journal.interrupts().is_none());
    }

    #[test]
    fn a_second_index_changes_nothing() {
        let mut journal = Journal::default();
        journal.assign(Msix, 0, &[signaller()]);
        journal.assign(Intx, 0, &[signaller()]);
        assert!(matches!(journal.interrupts(), Some((Msix, _))));
    }

    #[test]
    fn the_control_word_is_kept_byte_by_byte() {
        let mut journal = Journal::default();
        journal.config_write(0xb0, 0xb0, &[0, 0, 0x1f, 0x80]);
        journal.config_write(0xb0, 0xb3, &[0xc0]);
        journal.config_write(0xb0, 0x10, &[1, 2, 3, 4]);
        let written: Vec<_> = journal.config_writes().map(|one| (one.offset, one.value)).collect();
        assert_eq!(written, [(0xb2, 0x1f), (0xb3, 0xc0)]);
    }
}
