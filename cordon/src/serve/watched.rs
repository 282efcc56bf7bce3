//! A function that is served, as its events and its control socket see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cordon_cli::event::ClientView;
use cordon_vmm::{Function, PassthroughDevice as _, Presence};

/// A served function, and what its client sees.
pub(crate) struct Watched {
    pub(crate) function: Arc<Function>,
    /// One more than the generation of the windows when its client came; 0 without one.
    client: AtomicU64,
    /// Its server takes no more clients.
    failed: AtomicBool,
}

impl Watched {
    pub(super) fn new(function: Arc<Function>) -> Self {
        Self { function, client: AtomicU64::new(0), failed: AtomicBool::new(false) }
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
        !gone && !self.failed.load(Ordering::Acquire)
    }
}
