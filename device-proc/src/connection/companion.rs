//! A function process that serves a companion, seen from the connection process: it may register
//! and remove ranges for its own function and nothing else. It may be compromised; it is never
//! waited for, and what makes no sense ends its tube.

use std::os::fd::OwnedFd;

use ipc::wire::common::FailureKind;
use ipc::wire::dma::{MAX_BATCH, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Tube, TubeError};

use super::slot::Slot;

/// Its tube.
pub(super) struct Companion {
    function: u8,
    tube: Tube,
    greeted: bool,
}

impl Companion {
    pub(super) fn new(function: u8, fd: OwnedFd) -> Self {
        Self { function, tube: Tube::from_fd(fd), greeted: false }
    }

    /// Number of its function.
    pub(super) fn function(&self) -> u8 {
        self.function
    }

    pub(super) fn tube(&self) -> &Tube {
        &self.tube
    }

    /// Serves what it sent; `false` when it is gone or out of step.
    pub(super) fn serve_one(&mut self, slot: &mut Slot) -> bool {
        let now = Deadline::now();
        if !self.greeted {
            // Its greeting is there: it is what woke us.
            self.greeted = self.tube.handshake(Role::Connection, Role::Function, now).is_ok();
            return self.greeted;
        }
        let received = match self.tube.receive::<Request>(now) {
            Ok(received) if received.handles.is_empty() => received,
            Err(TubeError::TimedOut) => return true,
            Err(TubeError::Disconnected) => return false,
            Ok(_) | Err(_) => {
                tracing::warn!("the function process of {} is out of step", slot.address());
                return false;
            }
        };
        let fits = |length| (1..=MAX_BATCH).contains(&length);
        let reply: Reply = match received.message {
            Request::Map { batch, entries } if fits(entries.len()) => {
                Ok(slot.map_batch(batch, &entries))
            }
            Request::Unmap { batch, keys } if fits(keys.len()) => {
                Ok(slot.unmap_batch(batch, &keys))
            }
            Request::Map { .. } | Request::Unmap { .. } => Err(FailureKind::InvalidArgument),
        };
        // One answer always fits into its socket: who asks before it has read the last one is out.
        self.tube.send(received.id, &reply, &[], now).is_ok()
    }
}
