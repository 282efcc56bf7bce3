//! What a new process is told so that it can go on where a dead one stopped: the only recovery
//! state there is. It lives in the VMM and holds nothing that a process below could change.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::event::Signaller;
use ipc::wire::function::{InterruptIndex, Layout};

use crate::memory::GuestRegion;

/// Signallers by vector, for the index in use.
pub(crate) type Interrupts = Option<(InterruptIndex, Vec<Option<Arc<Signaller>>>)>;

/// Interrupt setup and companion of one function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    interrupts: Interrupts,
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
}
