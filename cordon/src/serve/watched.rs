//! A function that is served, as its events and its control socket see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cordon_cli::event::{ClientView, Part};
use cordon_vmm::{Function, PassthroughDevice as _, Presence};

/// A served function, and what its client sees.
pub(crate) struct Watched {
    pub(crate) function: Arc<Function>,
    /// One more than the generation of the windows when its client came; 0 without one.
    client: AtomicU64,
    /// Its server takes no more clients.
    failed: AtomicBool,
    /// The one client that there was to be is gone.
    finished: AtomicBool,
    /// What clients of its servers caused, in the order of [`COUNTED`]; of the function, of its companion.
    caused: [[AtomicU64; COUNTED.len()]; 2],
}

/// Events of clients that are counted, by name.
pub(crate) const COUNTED: [&str; 7] =
    ["attach", "refused", "limit", "busy", "delayed", "withheld", "failed"];

impl Watched {
    pub(super) fn new(function: Arc<Function>) -> Self {
        Self {
            function,
            client: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            caused: Default::default(),
        }
    }

    /// Counts an event of a client, if it is one of [`COUNTED`].
    pub(super) fn count(&self, part: Part, name: &str) {
        if let Some(at) = COUNTED.iter().position(|one| *one == name) {
            self.caused[part_number(part)][at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often each of [`COUNTED`] happened.
    pub(crate) fn caused(&self, part: Part) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.caused[part_number(part)].iter();
        COUNTED.into_iter().zip(counts.map(|count| count.load(Ordering::Relaxed)))
    }

    /// A client came.
    pub(super) fn attached(&self) {
        let generation = self.function.windows_generation();
        self.client.store(generation.saturating_add(1), Ordering::Release);
    }

    /// It is gone.
    pub(super) fn detached(&self) {
        self.client.store(0, Ordering::Release);
    }

    /// Its server failed.
    pub(super) fn failed(&self) {
        self.detached();
        self.failed.store(true, Ordering::Release);
    }

    /// Whether its server takes no more clients.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Its one client is gone, and no other can come.
    pub(super) fn finished(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// Whether that is so.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// What its client sees while the device is there.
    pub(crate) fn client(&self) -> ClientView {
        match self.client.load(Ordering::Acquire).checked_sub(1) {
            None => ClientView::NoClient,
            Some(generation) if generation == self.function.windows_generation() => {
                ClientView::Device
            }
            Some(_) => ClientView::Ones,
        }
    }

    /// Whether it is still served, or may be again.
    pub(super) fn is_left(&self) -> bool {
        let gone = matches!(self.function.presence(), Presence::Gone(_));
        !gone && !self.has_failed() && !self.is_finished()
    }
}

fn part_number(part: Part) -> usize {
    match part {
        Part::Function => 0,
        Part::Companion => 1,
    }
}
