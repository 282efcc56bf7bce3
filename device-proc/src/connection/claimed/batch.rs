//! A companion's batches: carried out in slices between other work, repeated by number, undone by
//! number.
//!
//! A doorbell is one batch, with the VMM's number. The function process that sends it may die, and
//! its successor sends it again; or its guest may have been told that it failed, and then nothing
//! of it may be left:
//!
//! ```text
//!        Map, Unmap         all carried out,              another number
//! (none) ──────────▶ open ─────────────────────▶ answered ──────────────▶ (told: forgotten)
//!                     │     or its time is over     │  │
//!                     │ ◀───────────────────────────┘  │ abandoned
//!                     │      the same number again     ▼
//!                     └──────────────────────────▶ undone, and refused from then on
//! ```
//!
//! A removal cannot be undone, since the platform would choose another bus address. The guest that was
//! told of no removal believes in the registration, so removing it later succeeds ([`Batches::orphans`]).

use std::collections::{BTreeMap, BTreeSet};

use cordon_backend::BusRange;
use ipc::Deadline;
use ipc::wire::common::FailureKind;
use ipc::wire::connection::DmaEntry;
use ipc::wire::dma::{Outcome, Reply};

use super::ClaimedFunction;
use super::dma::{Owner, Registration};
use crate::limits::MAX_ORPHANS;

/// What a batch asks for.
#[derive(Clone, Debug)]
pub(in crate::connection) enum Work {
    /// Register these.
    Map(Vec<DmaEntry>),
    /// Remove these keys.
    Unmap(Vec<u64>),
}

impl Work {
    /// Entries.
    pub(in crate::connection) fn len(&self) -> usize {
        match self {
            Self::Map(entries) => entries.len(),
            Self::Unmap(keys) => keys.len(),
        }
    }
}

/// A batch that is being carried out.
struct Open {
    /// Number of the message that it is answered to.
    request: u32,
    work: Work,
    /// What became of each entry, `None` where nothing did yet.
    outcomes: Vec<Option<Outcome>>,
    /// The entry that is next.
    next: usize,
    deadline: Deadline,
}

/// The batch that came last, which may come again.
#[derive(Default)]
struct Last {
    number: Option<u64>,
    /// Keys that it removed.
    removed: BTreeSet<u64>,
    /// It is to leave nothing, and is refused.
    abandoned: bool,
}

/// The batches of one function's companion.
#[derive(Default)]
pub(super) struct Batches {
    last: Last,
    open: Option<Open>,
    /// Registrations that are to go before anything else is done: key and batch.
    undo: BTreeSet<(u64, u64)>,
    /// Keys that were removed by batches whose guest was told that they were not.
    orphans: BTreeSet<u64>,
}

impl Batches {
    /// The guest was not told that these were removed.
    fn orphan(&mut self, keys: BTreeSet<u64>) {
        self.orphans.extend(keys);
        if self.orphans.len() > MAX_ORPHANS {
            self.orphans.clear();
        }
    }

    /// Gives up the open batch, if there is one; the number of its message.
    fn close(&mut self) -> Option<u32> {
        self.open.take().map(|open| open.request)
    }
}

impl ClaimedFunction {
    /// A batch begins. Done again under the same number, since the process that asked died before
    /// its guest had the answer, it comes to the same: what was registered or removed then is recognised, and
    /// what was registered and is not asked for any more is removed.
    ///
    /// # Errors
    /// [`FailureKind`] when it was abandoned.
    pub(in crate::connection) fn begin_batch(
        &mut self,
        number: u64,
        work: Work,
        request: u32,
        deadline: Deadline,
    ) -> Result<(), FailureKind> {
        let is_repeated = self.batches.last.number == Some(number);
        if !is_repeated {
            self.batches.last = Last { number: Some(number), ..Last::default() };
        } else if self.batches.last.abandoned {
            return Err(FailureKind::InvalidArgument);
        }
        let mut registered = if is_repeated { self.of_batch(number) } else { BTreeMap::new() };
        let mut removed = std::mem::take(&mut self.batches.last.removed);
        let outcomes = match &work {
            Work::Map(entries) => {
                entries.iter().map(|entry| recognise(entry, &mut registered).map(mapped)).collect()
            }
            Work::Unmap(keys) => keys
                .iter()
                .map(|key| {
                    let again = removed.remove(key);
                    again.then(|| self.batches.last.removed.insert(*key));
                    again.then_some(Outcome::Unmapped)
                })
                .collect(),
        };
        let batches = &mut self.batches;
        batches.orphan(removed);
        batches.undo.extend(registered.into_keys().map(|key| (key, number)));
        batches.open = Some(Open { request, work, outcomes, next: 0, deadline });
        Ok(())
    }

    /// Whether a batch is being carried out.
    pub(in crate::connection) fn has_open_batch(&self) -> bool {
        self.batches.open.is_some()
    }

    /// Whether there is anything to carry out or to undo.
    pub(in crate::connection) fn has_work(&self) -> bool {
        self.has_open_batch() || !self.batches.undo.is_empty()
    }

    /// Stops carrying a batch out, since nobody is there to be answered. What was done of it stays: whoever
    /// comes next sends it again.
    pub(in crate::connection) fn close_batch(&mut self) {
        let _ = self.batches.close();
    }

    /// The guest was told that a batch failed: nothing of it is to be left, also if it comes yet.
    pub(in crate::connection) fn abandon_batch(&mut self, number: u64) {
        if self.has_open_batch() {
            let _ = self.abandon_open();
        }
        if self.batches.last.number == Some(number) {
            self.abandon_last();
        } else {
            let number = Some(number);
            self.batches.last = Last { number, abandoned: true, ..Last::default() };
        }
    }

    /// Abandons the batch that is open; the number of the message that it was to be answered to.
    pub(in crate::connection) fn abandon_open(&mut self) -> Option<u32> {
        let request = self.batches.close()?;
        self.abandon_last();
        Some(request)
    }

    fn abandon_last(&mut self) {
        let last = &mut self.batches.last;
        if std::mem::replace(&mut last.abandoned, true) {
            return;
        }
        let (number, removed) = (last.number, std::mem::take(&mut last.removed));
        self.batches.orphan(removed);
        if let Some(number) = number {
            let registered = self.of_batch(number);
            self.batches.undo.extend(registered.into_keys().map(|key| (key, number)));
        }
    }

    /// Everything that the companion registered has been removed, and its guest knows.
    pub(super) fn forget_batches(&mut self) {
        self.batches.orphans.clear();
        self.batches.last.removed.clear();
    }

    /// Works for one slice, which ends with the first entry that is done after `until`. The answer, and
    /// the number of the message that it is for, once a batch is carried out or its time is over.
    pub(in crate::connection) fn work(&mut self, until: Deadline) -> Option<(u32, Reply)> {
        loop {
            let open = self.batches.open.as_ref();
            if open.is_some_and(|open| open.deadline.passed() || open.next == open.outcomes.len()) {
                return self.finish();
            }
            if let Some((key, batch)) = self.batches.undo.pop_first() {
                self.undo(key, batch);
            } else if open.is_some() {
                self.step();
            } else {
                return None;
            }
            // An open batch whose last entry this was is answered in this slice.
            let open = self.batches.open.as_ref();
            let is_done = open.is_some_and(|open| open.next == open.outcomes.len());
            if until.passed() && !is_done {
                return None;
            }
        }
    }

    fn undo(&mut self, key: u64, batch: u64) {
        if !self.is_registered(key, Owner::Companion(batch)) {
            return;
        }
        if let Err(failure) = self.remove(key, |owner| owner == Owner::Companion(batch)) {
            tracing::warn!("{}; its guest does not know of it", failure.message);
        }
    }

    /// Carries out the next entry of the open batch.
    fn step(&mut self) {
        let Some(open) = &mut self.batches.open else { return };
        let at = open.next;
        open.next += 1;
        if open.outcomes.get(at).is_none_or(Option::is_some) {
            return;
        }
        let number = self.batches.last.number.unwrap_or_default();
        let outcome = match &open.work {
            Work::Map(entries) => {
                let Some(entry) = entries.get(at).copied() else { return };
                match self.register(&entry, Owner::Companion(number)) {
                    Ok(bus) => {
                        self.batches.orphans.remove(&entry.key);
                        mapped(bus)
                    }
                    Err(failure) => {
                        tracing::debug!("{}", failure.message);
                        Outcome::Failed(failure.kind)
                    }
                }
            }
            Work::Unmap(keys) => {
                let Some(key) = keys.get(at).copied() else { return };
                let is_companions = |owner| matches!(owner, Owner::Companion(_));
                let was_removed = self.batches.orphans.remove(&key);
                if was_removed || self.remove(key, is_companions).is_ok() {
                    self.batches.last.removed.insert(key);
                    Outcome::Unmapped
                } else {
                    Outcome::Failed(FailureKind::InvalidArgument)
                }
            }
        };
        if let Some(slot) = self.batches.open.as_mut().and_then(|open| open.outcomes.get_mut(at)) {
            *slot = Some(outcome);
        }
    }

    /// What became of the open batch: entries that were not begun failed, and so did those whose memory
    /// went meanwhile.
    fn finish(&mut self) -> Option<(u32, Reply)> {
        let Open { request, work, mut outcomes, .. } = self.batches.open.take()?;
        let owner = Owner::Companion(self.batches.last.number.unwrap_or_default());
        if let Work::Map(entries) = &work {
            for (outcome, entry) in outcomes.iter_mut().zip(entries) {
                let is_mapped = matches!(outcome, Some(Outcome::Mapped { .. }));
                if is_mapped && !self.is_registered(entry.key, owner) {
                    *outcome = None;
                }
            }
        }
        let failed = Outcome::Failed(FailureKind::Io);
        let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(failed));
        Some((request, Ok(outcomes.collect())))
    }

    /// What a batch registered.
    fn of_batch(&self, number: u64) -> BTreeMap<u64, Registration> {
        let of_it = self.registrations.iter();
        let of_it = of_it.filter(|(_, one)| one.owner == Owner::Companion(number));
        of_it.map(|(key, one)| (*key, *one)).collect()
    }

    fn is_registered(&self, key: u64, owner: Owner) -> bool {
        self.registrations.get(&key).is_some_and(|one| one.owner == owner)
    }
}

/// What was registered for an entry before; each registration is recognised once.
fn recognise(entry: &DmaEntry, registered: &mut BTreeMap<u64, Registration>) -> Option<BusRange> {
    let is_same = registered.get(&entry.key).is_some_and(|one| one.is(entry));
    if is_same { registered.remove(&entry.key).map(|one| one.bus) } else { None }
}

fn mapped(bus: BusRange) -> Outcome {
    Outcome::Mapped { bus_address: bus.address, bus_length: bus.length }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_that_a_guest_was_not_told_of_are_forgotten_beyond_what_a_platform_maps() {
        let mut batches = Batches::default();
        let most = MAX_ORPHANS as u64;
        batches.orphan((0..most).collect());
        assert_eq!(batches.orphans.len(), MAX_ORPHANS);
        batches.orphan(BTreeSet::from([most]));
        assert!(batches.orphans.is_empty());
    }
}
