//! What a function does for its companion: guest RAM for its process, a tube between its process and
//! the connection process, doorbells that are carried out whoever dies meanwhile.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use ipc::wire::common::FailureKind;
use ipc::wire::function::{AddMemory, Companion, Doorbell, Layout, RemoveMemory};
use ipc::{Deadline, Tube};

use super::{Function, Process, Shared, no_descriptor};
use crate::child::CallError;
use crate::error::{DeviceError, ErrorKind};
use crate::memory::{GuestRegion, RingReader};

/// Whoever serves a function, now and later.
struct Reader(Weak<Shared>);

impl RingReader for Reader {
    fn give(&self, region: Arc<GuestRegion>, deadline: Deadline) -> Result<(), DeviceError> {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        // Before it is asked: a process that comes after it must have it too.
        shared.journal().memory.insert(region.iova, Arc::clone(&region));
        match shared.call(&add_memory(&region), || memory_handle(&region), deadline) {
            Ok(()) | Err(CallError::Dead(_)) => Ok(()),
            // Another process came meanwhile and was given it by the journal.
            Err(CallError::Refused(failure)) if failure.kind == FailureKind::Busy => Ok(()),
            Err(refused) => {
                shared.journal().memory.remove(&region.iova);
                Err(refused.into())
            }
        }
    }

    fn take(&self, base: u64, deadline: Deadline) {
        let Some(shared) = self.0.upgrade() else { return };
        shared.journal().memory.remove(&base);
        // One that is dead, or that came meanwhile, does not have it.
        let _ = shared.ask(&RemoveMemory { base }, deadline);
    }
}

impl Function {
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
        // A pair for each attempt: its other end goes to the connection process first.
        let mut linked = Ok(());
        let call = Companion { layout, max_entries };
        let done = shared.call(
            &call,
            || {
                let (handles, outcome) = match shared.link() {
                    Ok(handle) => (vec![handle], Ok(())),
                    Err(error) => (Vec::new(), Err(error)),
                };
                linked = outcome;
                Ok(handles)
            },
            shared.usual(),
        );
        match linked.and(done.map_err(DeviceError::from)) {
            Err(error) if error.kind() != ErrorKind::Gone => Err(error),
            // Whoever comes next is given it by the journal.
            _ => Ok(()),
        }
    }

    /// Carries out one batch of the companion's; the status register's value. Whoever dies
    /// meanwhile, it is one batch: its number stays the same.
    pub(crate) fn doorbell(
        &self,
        page: Option<u64>,
        deadline: Deadline,
    ) -> Result<u32, DeviceError> {
        let batch = self.shared.batches.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(self.shared.ask(&Doorbell { page, batch }, deadline)?)
    }
}

impl Shared {
    /// One end of a tube whose other end the connection process serves.
    fn link(&self) -> Result<OwnedFd, DeviceError> {
        let pair = Tube::pair().map_err(|error| DeviceError::no_space(error.to_string()))?;
        self.connection.serve_companion(self.address, pair.0)?;
        Ok(pair.1.into())
    }

    /// Gives a new process the companion and guest RAM.
    pub(super) fn replay_companion(
        &self,
        process: &Process,
        setup: Option<(Layout, u32)>,
        memory: impl Iterator<Item = Arc<GuestRegion>>,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        if let Some((layout, max_entries)) = setup {
            let tube = self.link().map_err(|error| match error.death() {
                Some(death) => CallError::Dead(Arc::clone(death)),
                None => no_descriptor(&std::io::Error::other(error.to_string())),
            })?;
            let call = Companion { layout, max_entries };
            process.call_as_keeper(&call, &[tube.as_fd()], deadline)?;
        }
        for region in memory {
            let call = add_memory(&region);
            process.call_as_keeper(&call, &[region.memory.as_fd()], deadline)?;
        }
        Ok(())
    }
}

fn add_memory(region: &GuestRegion) -> AddMemory {
    let GuestRegion { iova: base, size, offset, writable, .. } = *region;
    AddMemory { base, size, offset, writable }
}

fn memory_handle(region: &GuestRegion) -> std::io::Result<Vec<OwnedFd>> {
    Ok(vec![region.memory.as_fd().try_clone_to_owned()?])
}
