//! What a slot does for the companion of its function: guest RAM for its process, a tube between its
//! process and the connection process, doorbells that are carried out whoever dies meanwhile.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use ipc::Tube;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{Layout, Reply, Request};

use super::{Child, Shared, Slot};
use crate::connection::unexpected;
use crate::device::DeviceError;
use crate::memory::{GuestRegion, RingReader};
use crate::supervisor::CallError;

/// Whoever serves a function, now and later.
struct Reader(Weak<Shared>);

impl RingReader for Reader {
    fn give(&self, region: Arc<GuestRegion>) -> Result<(), DeviceError> {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        // Before it is asked: a process that comes after it must have it too.
        shared.journal().memory.insert(region.iova, Arc::clone(&region));
        match shared.ask(&add_memory(&region), || memory_handle(&region)) {
            Ok(_) | Err(CallError::Dead(_)) => Ok(()),
            // Another process came meanwhile and was given it by the journal.
            Err(CallError::Refused(failure)) if failure.kind == FailureKind::Busy => Ok(()),
            Err(refused) => {
                shared.journal().memory.remove(&region.iova);
                Err(refused.into())
            }
        }
    }

    fn take(&self, base: u64) {
        let Some(shared) = self.0.upgrade() else { return };
        shared.journal().memory.remove(&base);
        // One that is dead, or that came meanwhile, does not have it.
        let _ = shared.ask(&Request::RemoveMemory { base }, || Ok(Vec::new()));
    }
}

impl Slot {
    /// Whoever serves the function, as the reader of its companion's rings.
    pub(crate) fn reader(&self) -> Arc<dyn RingReader> {
        Arc::new(Reader(Arc::downgrade(&self.shared)))
    }

    /// The function has a companion from here on, or has none any more.
    pub(crate) fn set_companion(&self, setup: Option<(Layout, u32)>) -> Result<(), DeviceError> {
        let shared = &self.shared;
        shared.journal().companion = setup;
        let Some((layout, max_entries)) = setup else {
            return shared.connection.release_dma(shared.address);
        };
        let ask = |request: &Request| {
            // A pair for each attempt: its other end goes to the connection process first.
            let mut linked = Ok(());
            let reply = shared.ask(request, || {
                let (handles, outcome) = match shared.link() {
                    Ok(handle) => (vec![handle], Ok(())),
                    Err(error) => (Vec::new(), Err(error)),
                };
                linked = outcome;
                Ok(handles)
            });
            linked.and(reply.map_err(DeviceError::from))
        };
        match ask(&Request::Companion { layout, max_entries }) {
            Ok(Reply::Done) | Err(DeviceError::Gone(_)) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        }
    }

    /// Carries out one batch of the companion's; the status register's value. Whoever dies
    /// meanwhile, it is one batch: its number stays the same.
    pub(crate) fn doorbell(&self, page: Option<u64>) -> Result<u32, DeviceError> {
        let batch = self.shared.batches.fetch_add(1, Ordering::Relaxed) + 1;
        match self.ask(&Request::Doorbell { page, batch }, &[])? {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }
}

impl Shared {
    /// One end of a tube whose other end the connection process serves.
    fn link(&self) -> Result<OwnedFd, DeviceError> {
        let pair = Tube::pair().map_err(|error| DeviceError::NoSpace(error.to_string()))?;
        self.connection.serve_companion(self.address, pair.0)?;
        Ok(pair.1.into())
    }

    /// Gives a new process the companion and guest RAM.
    pub(super) fn replay_companion(
        &self,
        child: &Child,
        setup: Option<(Layout, u32)>,
        memory: impl Iterator<Item = Arc<GuestRegion>>,
    ) -> Result<(), CallError> {
        if let Some((layout, max_entries)) = setup {
            let tube = self.link().map_err(|error| match error {
                DeviceError::Gone(death) => CallError::Dead(death),
                other => super::refused_because(&other),
            })?;
            child.call(Request::Companion { layout, max_entries }, vec![tube])?;
        }
        for region in memory {
            let handles = memory_handle(&region).map_err(|error| super::refused(&error))?;
            child.call(add_memory(&region), handles)?;
        }
        Ok(())
    }
}

fn add_memory(region: &GuestRegion) -> Request {
    let GuestRegion { iova: base, size, offset, writable, .. } = *region;
    Request::AddMemory { base, size, offset, writable }
}

fn memory_handle(region: &GuestRegion) -> std::io::Result<Vec<OwnedFd>> {
    Ok(vec![region.memory.try_clone()?.into_fd()])
}

/// A failure that no process had a part in.
pub(super) fn failure(message: String) -> Failure {
    Failure { kind: FailureKind::NoSpace, code: None, message }
}
