//! The events of a client that is kept: which of them the keeper has, and by which names.
//!
//! A keeper has each open file once, whatever it is called. So each event is given to it once, by a name that nothing
//! else has, and the record says which vectors have it: one that goes from vector to vector, or is that of several, stays
//! where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::EventsRecord;
use crate::sys;

/// Interrupt index and vector; as a name, that of the vector that had the event first, or another one that was free.
pub(crate) type Vector = (u8, u16);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptEvents {
    /// What the keeper has, by name.
    files: BTreeMap<Vector, Arc<OwnedFd>>,
    /// The name of each vector's event.
    names: BTreeMap<Vector, Vector>,
}

impl KeptEvents {
    /// What was left by these names, of the vectors that a record says have an event. What no vector has comes beside:
    /// it was being given or taken away.
    pub(super) fn left(
        record: &EventsRecord,
        mut left: BTreeMap<Vector, OwnedFd>,
    ) -> (Self, Vec<Vector>) {
        let mut events = Self::default();
        for vector in &record.held {
            let name = record.name(*vector);
            if let Some(file) = left.remove(&name) {
                events.files.insert(name, Arc::new(file));
            }
            if events.files.contains_key(&name) {
                events.names.insert(*vector, name);
            }
        }
        (events, left.into_keys().collect())
    }

    /// For a record: the vectors whose events are not called by their own names.
    pub(crate) fn recorded(&self) -> Vec<(Vector, Vector)> {
        let other = self.names.iter().filter(|(vector, name)| vector != name);
        other.map(|(vector, name)| (*vector, *name)).collect()
    }

    /// As it is when these vectors are given these events, or none.
    pub(super) fn changed(&self, events: &[(Vector, Option<BorrowedFd<'_>>)]) -> io::Result<Self> {
        let mut next = self.clone();
        let mut new = Vec::new();
        for (vector, event) in events {
            next.names.remove(vector);
            let Some(event) = event else { continue };
            match self.name_of(event) {
                Some(name) => {
                    next.names.insert(*vector, name);
                }
                None => new.push((*vector, event)),
            }
        }
        let used: BTreeSet<Vector> = next.names.values().copied().collect();
        next.files.retain(|name, _| used.contains(name));
        for (vector, event) in new {
            // Two of the same may have come at once.
            let name = match next.name_of(event) {
                Some(name) => name,
                None => {
                    let name = next.free_name(vector);
                    next.files.insert(name, Arc::new(event.try_clone_to_owned()?));
                    name
                }
            };
            next.names.insert(vector, name);
        }
        Ok(next)
    }

    /// What the keeper calls this event, if it has it.
    fn name_of(&self, event: &BorrowedFd<'_>) -> Option<Vector> {
        let known = self.files.iter().find(|(_, file)| sys::is_same_file(&***file, event));
        known.map(|(name, _)| *name)
    }

    fn free_name(&self, vector: Vector) -> Vector {
        let others = (0..=u16::MAX).map(|number| (vector.0, number));
        let mut names = std::iter::once(vector).chain(others);
        names.find(|name| !self.files.contains_key(name)).unwrap_or(vector)
    }

    /// The names of what `other` does not have, or has another event by.
    pub(super) fn not_in(&self, other: &Self) -> Vec<Vector> {
        let is_there = |(name, file): &(&Vector, &Arc<OwnedFd>)| {
            other.files.get(name).is_some_and(|one| Arc::ptr_eq(one, file))
        };
        self.files.iter().filter(|one| !is_there(one)).map(|(name, _)| *name).collect()
    }

    /// What the keeper has, by name.
    pub(super) fn files(&self) -> impl Iterator<Item = (Vector, BorrowedFd<'_>)> {
        self.files.iter().map(|(name, file)| (*name, file.as_fd()))
    }

    /// The event that is called so.
    pub(super) fn file(&self, name: Vector) -> Option<BorrowedFd<'_>> {
        self.files.get(&name).map(|file| file.as_fd())
    }

    /// The event of each vector, to be given to the device.
    pub(crate) fn handed(&self) -> io::Result<BTreeMap<Vector, OwnedFd>> {
        let of = |(vector, name)| self.file(name).map(|event| (vector, event));
        let all = self.names.iter().filter_map(|(vector, name)| of((*vector, *name)));
        all.map(|(vector, event)| Ok((vector, event.try_clone_to_owned()?))).collect()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn event() -> OwnedFd {
        let signaller = ipc::Event::new().unwrap().signaller().unwrap();
        signaller.as_fd().try_clone_to_owned().unwrap()
    }

    fn names(events: &KeptEvents) -> Vec<u16> {
        events.files.keys().map(|(_, number)| *number).collect()
    }

    #[test]
    fn an_event_has_one_name_however_many_vectors_have_it_and_whichever() {
        let (one, other, third) = (event(), event(), event());
        let again = one.try_clone().unwrap();
        let given = |vector: u16, event: &OwnedFd| ((2, vector), Some(event.try_clone().unwrap()));
        let changed = |from: &KeptEvents, events: &[((u8, u16), Option<OwnedFd>)]| {
            let events =
                events.iter().map(|(at, event)| (*at, event.as_ref().map(|one| one.as_fd())));
            from.changed(&events.collect::<Vec<_>>()).unwrap()
        };
        let first = changed(&KeptEvents::default(), &[given(0, &one), given(1, &other)]);
        assert_eq!((names(&first), first.recorded()), (vec![0, 1], vec![]));
        // They change places: nothing is removed, and nothing stored.
        let swapped = changed(&first, &[given(0, &other), given(1, &again)]);
        assert!(swapped.not_in(&first).is_empty() && first.not_in(&swapped).is_empty());
        assert_eq!(swapped.recorded(), [((2, 0), (2, 1)), ((2, 1), (2, 0))]);
        // A place is given to another one, and then that one's own to a third.
        let shifted = changed(&first, &[given(0, &other)]);
        assert_eq!((names(&shifted), shifted.recorded()), (vec![1], vec![((2, 0), (2, 1))]));
        let shifted = changed(&shifted, &[given(1, &third)]);
        assert_eq!(names(&shifted), [0, 1]);
        assert_eq!(shifted.recorded(), [((2, 0), (2, 1)), ((2, 1), (2, 0))]);
        // Two of the same at once, and one in the place of another.
        let both = changed(&KeptEvents::default(), &[given(4, &one), given(5, &again)]);
        assert_eq!((names(&both), both.recorded()), (vec![4], vec![((2, 5), (2, 4))]));
        let replaced = changed(&first, &[given(0, &third)]);
        assert_eq!((names(&replaced), replaced.recorded()), (vec![0, 1], vec![]));
        assert_eq!(
            (first.not_in(&replaced), replaced.not_in(&first)),
            (vec![(2, 0)], vec![(2, 0)])
        );
        assert!(changed(&both, &[((2, 4), None), ((2, 5), None)]).files.is_empty());
        assert_eq!(names(&changed(&both, &[((2, 4), None)])), [4]);
    }
}
