//! What a function does for its companion: guest RAM for its process, a tube between its process and
//! the connection process, doorbells that are carried out whoever dies meanwhile.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ipc::wire::common::FailureKind;
use ipc::wire::function::{AddMemory, Companion, Doorbell, Layout, RemoveMemory};
use ipc::{Deadline, Tube};

use super::calls::no_descriptor;
use super::{Function, FunctionShared};
use crate::child::start::Kept;
use crate::child::{CallError, FunctionProtocol};
use crate::error::{DeviceError, ErrorKind};
use crate::memory::{GuestRegion, RingReader};

/// How long undoing a batch may keep the caller whose doorbell failed: the connection process takes it
/// between two slices of its work.
const ABANDON: Duration = Duration::from_millis(250);

/// Whoever serves a function, now and later.
struct Reader(Weak<FunctionShared>);

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
            return shared.release_dma();
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
    ///
    /// # Errors
    /// [`DeviceError`]; nothing of the batch is left then.
    pub(crate) fn doorbell(
        &self,
        page: Option<u64>,
        deadline: Deadline,
    ) -> Result<u32, DeviceError> {
        let shared = &self.shared;
        shared.abandon(Deadline::after(ABANDON).min(deadline))?;
        let batch = shared.batches.fetch_add(1, Ordering::Relaxed) + 1;
        let call_timeout = shared.spec.deadlines.call;
        let call = || {
            let left = deadline.remaining().unwrap_or_default().min(call_timeout);
            // The rest is for the answer to get here.
            let timeout_ms = u32::try_from((left - left / 6).as_millis()).unwrap_or(u32::MAX);
            Ok((Doorbell { page, batch, timeout_ms }, Vec::new()))
        };
        let rung = shared.call_each::<Doorbell, Doorbell>("Doorbell", call, deadline);
        if rung.is_err() {
            *shared.to_abandon.lock() = Some(batch);
            if let Err(error) = shared.abandon(Deadline::after(ABANDON)) {
                tracing::debug!("{}: batch {batch} is undone later: {error}", shared.address);
            }
        }
        Ok(rung?)
    }

    /// Removes everything that the companion registered.
    pub(crate) fn release_dma(&self) -> Result<(), DeviceError> {
        self.shared.release_dma()
    }
}

impl FunctionShared {
    /// Has the batch undone that failed without the function process knowing, if there is one. It did not
    /// start, or what became of it is unknown: its guest was told that nothing of it was done.
    fn abandon(&self, deadline: Deadline) -> Result<(), DeviceError> {
        let Some(batch) = self.to_abandon.lock().take() else { return Ok(()) };
        let abandoned = self.connection.abandon_batch(self.address, batch, deadline);
        if abandoned.is_err() {
            *self.to_abandon.lock() = Some(batch);
        }
        abandoned
    }

    fn release_dma(&self) -> Result<(), DeviceError> {
        self.abandon(self.usual())?;
        self.connection.release_dma(self.address)
    }

    /// One end of a tube whose other end the connection process serves.
    fn link(&self) -> Result<OwnedFd, DeviceError> {
        let pair = Tube::pair().map_err(|error| DeviceError::no_space(error.to_string()))?;
        self.connection.serve_companion(self.address, pair.0)?;
        Ok(pair.1.into())
    }

    /// Gives a new process the companion and guest RAM.
    pub(super) fn replay_companion(
        &self,
        process: &mut Kept<FunctionProtocol>,
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
            process.call(&call, &[tube.as_fd()], deadline)?;
        }
        for region in memory {
            let call = add_memory(&region);
            process.call(&call, &[region.memory.as_fd()], deadline)?;
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
