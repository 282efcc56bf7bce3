//! What function processes of one function are handed when they start, where their backend hands functions on:
//! duplicates of the descriptors that the connection process gave.
//!
//! They are kept for successors while the function is attached and its device there, and for no longer: a device
//! goes only when nobody has it open any more.

use std::sync::Arc;

use ipc::wire::function::Handed as Message;
use ipc::{Deadline, DeviceMemory, Tube, TubeError};
use parking_lot::Mutex;

/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handed(Arc<Mutex<Vec<DeviceMemory>>>);

impl Handed {
    /// What is handed on from here on.
    pub(crate) fn set(&self, devices: Vec<DeviceMemory>) {
        *self.0.lock() = devices;
    }

    /// The device is away: nothing of it is held any more.
    pub(crate) fn clear(&self) {
        self.set(Vec::new());
    }

    /// Hands it on to a process that has just been started.
    ///
    /// # Errors
    /// [`TubeError`].
    pub(super) fn send(&self, tube: &mut Tube, deadline: Deadline) -> Result<(), TubeError> {
        let devices = self.0.lock();
        let handles: Vec<_> = devices.iter().filter_map(DeviceMemory::descriptor).collect();
        let message = Message { descriptors: u8::try_from(handles.len()).unwrap_or(u8::MAX) };
        tube.send(0, &message, &handles, deadline)
    }
}
