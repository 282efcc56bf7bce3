//! How a function is served, and what one client of it may have the server hold.

use crate::limits::{MAX_EVENTS, MAX_FILES, MAX_REGIONS, MAX_REPORTS};

/// How a function is served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Refuse guest memory that its client could still shorten. Such memory faults whoever has it
    /// mapped, which are processes of this client's function only; but not every VMM can seal its.
    pub sealed_memory: bool,
    /// What one client may have the server hold.
    pub budget: Budget,
}

/// What one client may have the server hold. A client at its budget is refused what it asks for and
/// keeps what it has; no other client notices. Of work, it can have queued one message of at most
/// [`MAX_MESSAGE`](crate::protocol::MAX_MESSAGE) bytes and its answer: the next one is read when
/// that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Memory files. Each costs one descriptor, however many regions of guest memory lie in it.
    pub files: usize,
    /// Events, each of which costs a descriptor.
    pub events: usize,
    /// Regions of guest memory, with and without memory behind them. Clients are told.
    pub regions: usize,
    /// Refused commands that are reported at once; further ones, one a second, with the count of
    /// those that were left out.
    pub reports: u32,
}

/// What of a [`Budget`] a client wanted more of than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BudgetKind {
    /// [`Budget::files`].
    Files,
    /// [`Budget::events`].
    Events,
    /// [`Budget::regions`].
    Regions,
}

impl BudgetKind {
    /// In what is recorded of a client.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Files => 0,
            Self::Events => 1,
            Self::Regions => 2,
        }
    }

    /// See [`BudgetKind::number`].
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        [Self::Files, Self::Events, Self::Regions].into_iter().find(|kind| kind.number() == number)
    }
}

/// A budget that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtBudget {
    /// Which.
    pub kind: BudgetKind,
    /// How many a client may have.
    pub most: usize,
}

impl Budget {
    /// For a server that may use this many descriptors of its process: half of them for memory
    /// files, a quarter for events, the rest for what it needs itself.
    #[must_use]
    pub fn within(descriptors: u64) -> Self {
        let share = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let most = Self::default();
        let (files, events) = (most.files.min(share / 2), most.events.min(share / 4));
        Self { files, events, ..most }
    }
}

impl Default for Budget {
    /// As much as a large guest needs: a file for each of QEMU's 256 memory slots, an event for each
    /// vector that MSI-X can have, as many regions as a connection process takes.
    fn default() -> Self {
        Self { files: MAX_FILES, events: MAX_EVENTS, regions: MAX_REGIONS, reports: MAX_REPORTS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_shared_and_many_change_nothing() {
        let few = Budget::within(200);
        assert_eq!((few.files, few.events), (100, 50));
        assert_eq!(Budget::within(1 << 20), Budget::default());
        assert_eq!(Budget::within(u64::MAX), Budget::default());
    }
}
