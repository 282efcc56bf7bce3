//! What a new process is told so that it can go on where a dead one stopped: the only recovery
//! state there is. It lives in the VMM and holds nothing that a process below could change.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::event::Signaller;
use ipc::wire::function::{InterruptIndex, Layout};

use crate::memory::GuestRegion;

/// The index in use.
#[derive(Clone, Debug)]
pub(crate) struct InUse {
    index: InterruptIndex,
    /// By vector; the last one is there.
    signallers: Vec<Option<Arc<Signaller>>>,
    /// Whether INTx is masked by the VMM. The other indexes have no masks of this kind.
    masked: bool,
}

/// The interrupt setup; `None` while no index is in use.
pub(crate) type Interrupts = Option<InUse>;

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
        if before.as_ref().is_some_and(|used| used.index != index) {
            // The process refuses a second index; the first stays.
            return before;
        }
        let mut all = self.interrupts.take().map(|used| used.signallers).unwrap_or_default();
        let start = usize::from(start);
        let end = start + signallers.len();
        if all.len() < end {
            all.resize(end, None);
        }
        all[start..end].clone_from_slice(signallers);
        while all.last().is_some_and(Option::is_none) {
            all.pop();
        }
        // INTx with another signaller is not masked.
        let in_use = InUse { index, signallers: all, masked: false };
        self.interrupts = Some(in_use).filter(|in_use| !in_use.signallers.is_empty());
        before
    }

    /// INTx is masked, or is not any more. What there was before, as for [`Journal::assign`]; `None`
    /// when the index in use cannot be masked.
    pub(crate) fn mask(&mut self, index: InterruptIndex, masked: bool) -> Option<Interrupts> {
        let before = self.interrupts.clone();
        let used = self.interrupts.as_mut().filter(|used| used.index == index)?;
        if index != InterruptIndex::Intx {
            return None;
        }
        used.masked = masked;
        Some(before)
    }

    /// The index has no signallers any more.
    pub(crate) fn disable(&mut self, index: InterruptIndex) {
        self.interrupts.take_if(|used| used.index == index);
    }

    /// Back to what [`Journal::assign`] or [`Journal::mask`] returned.
    pub(crate) fn restore(&mut self, before: Interrupts) {
        self.interrupts = before;
    }

    /// The index in use and its signallers by vector.
    pub(crate) fn interrupts(&self) -> Option<(InterruptIndex, &[Option<Arc<Signaller>>])> {
        self.interrupts.as_ref().map(|used| (used.index, &used.signallers[..]))
    }

    /// Whether the index in use is INTx and masked.
    pub(crate) fn is_masked(&self) -> bool {
        self.interrupts.as_ref().is_some_and(|used| used.masked)
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
    fn intx_is_masked_until_it_is_unmasked_or_assigned_anew() {
        let mut journal = Journal::default();
        assert!(journal.mask(Intx, true).is_none(), "it is not in use");
        journal.assign(Intx, 0, &[signaller()]);
        let before = journal.mask(Intx, true).unwrap();
        assert!(journal.is_masked());
        journal.restore(before);
        assert!(!journal.is_masked());
        journal.mask(Intx, true);
        journal.mask(Intx, false);
        assert!(!journal.is_masked());
        journal.mask(Intx, true);
        journal.assign(Intx, 0, &[signaller()]);
        assert!(!journal.is_masked());
        journal.disable(Intx);
        journal.assign(Msix, 0, &[signaller()]);
        assert!(journal.mask(Msix, true).is_none() && journal.mask(Intx, true).is_none());
        assert!(!journal.is_masked());
    }

    #[test]
    fn a_second_index_changes_nothing() {
        let mut journal = Journal::default();
        journal.assign(Msix, 0, &[signaller()]);
        journal.assign(Intx, 0, &[signaller()]);
        assert!(matches!(journal.interrupts(), Some((Msix, _))));
    }
}
