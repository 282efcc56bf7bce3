//! The companion of this function: its doorbell is carried out here, since only this process may
//! look at what the guest wrote.
//!
//! The rings are read from guest RAM ([`super::ring`]); what they ask for is one message to the
//! connection process, which checks every range against its own table of guest memory.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::dma::{MAX_BATCH, Outcome, Reply, Request};
use ipc::wire::function::Layout;
use ipc::wire::handshake::Role;
use ipc::{Deadline, Tube, TubeError};

use super::ring::{self, Batch, GuestMemory};
use crate::memory::MemoryTable;
use crate::start;

/// How long the connection process may take, 4096 calls of the backend included: less than the VMM
/// side waits for the answer to a doorbell.
const TIMEOUT: Duration = Duration::from_millis(2500);

/// A companion's ring.
pub struct Companion {
    tube: Tube,
    layout: Layout,
    max_entries: u32,
    next: u32,
}

impl Companion {
    /// Joins the connection process at the other end of `fd`.
    ///
    /// # Errors
    /// [`Failure`] when it is none, or `max_entries` is not 1..=4096.
    pub(super) fn join(fd: OwnedFd, layout: Layout, max_entries: u32) -> Result<Self, Failure> {
        if !(1..=MAX_BATCH).contains(&usize::try_from(max_entries).unwrap_or(usize::MAX)) {
            let message = format!("A batch of {max_entries} entries: 1 to {MAX_BATCH} allowed");
            return Err(start::invalid(message));
        }
        let mut tube = Tube::from_fd(fd);
        let joined = tube.handshake(Role::Function, Role::Connection, Deadline::after(TIMEOUT));
        joined.map_err(|error| Failure {
            kind: FailureKind::NoDevice,
            code: None,
            message: format!("No connection process for the companion: {}", ipc::chain(&error)),
        })?;
        Ok(Self { tube, layout, max_entries, next: 1 })
    }

    /// Carries out one batch; the status register's value (C2).
    pub(super) fn doorbell(&mut self, memory: &MemoryTable, page: Option<u64>, batch: u64) -> u32 {
        let (layout, max_entries) = (self.layout, self.max_entries);
        ring::carry_out(memory, layout, max_entries, page, |wanted| {
            self.register(batch, wanted).unwrap_or_else(|error| {
                tracing::warn!("a batch cannot be registered: {}", ipc::chain(&error));
                Vec::new()
            })
        })
    }

    fn register(&mut self, batch: u64, wanted: Batch) -> Result<Vec<Outcome>, TubeError> {
        let request = match wanted {
            Batch::Map(entries) => Request::Map { batch, entries },
            Batch::Unmap(keys) => Request::Unmap { batch, keys },
        };
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        let deadline = Deadline::after(TIMEOUT);
        self.tube.send(id, &request, &[], deadline)?;
        let received = self.tube.receive::<Reply>(deadline)?;
        match received.message {
            Ok(outcomes) if received.id == id => Ok(outcomes),
            Ok(_) => Err(TubeError::Poisoned),
            Err(_) => Ok(Vec::new()),
        }
    }
}

impl GuestMemory for MemoryTable {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let found = self.find(address, into.len() as u64);
        found.is_ok_and(|found| {
            found.window.is_some_and(|window| window.copy_out(found.into, into).is_ok())
        })
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        let found = self.find(address, from.len() as u64);
        found.is_ok_and(|found| {
            found.window.is_some_and(|window| window.copy_in(found.into, from).is_ok())
        })
    }

    fn is_writable(&self, address: u64, length: u64) -> bool {
        self.find(address, length).is_ok_and(|found| found.behind.writable)
    }
}
