//! The companion of this function: its doorbells are carried out here, since only this process may
//! look at what the guest wrote.
//!
//! The rings are read from guest RAM ([`super::ring`]); what they ask for is one message to the
//! connection process, which checks every range against its own table of guest memory. Nothing here
//! waits: a doorbell is open until the connection process answers, which is a token of the process's
//! one loop, and other requests and interrupts go on meanwhile.
//!
//! ```text
//!           rung               sent            answered in time
//! (waiting) ────▶ its turn ─────────▶ open ─────────────────────▶ told: what became of each entry
//!                     │ nonsense       │ its time is over, or the other end is gone
//!                     ▼                ▼
//!                  invalid           failed, and abandoned: nothing of it is left
//! ```
//!
//! An answer that comes when the doorbell has failed is known by its number and dropped.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipc::poll::Source;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::dma::{MAX_BATCH, Outcome, Reply, Request};
use ipc::wire::function::{Doorbell, Layout};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Tube, TubeError};

use super::ring::{self, Batch, GuestMemory, Pending};
use crate::limits::MAX_WAITING;
use crate::memory::MemoryTable;
use crate::start::{self, Owed};

/// How long the connection process may take to introduce itself.
const JOIN: Duration = Duration::from_millis(2500);

/// What becomes of an answer that was owed.
#[derive(Debug)]
pub(super) enum Done {
    /// The companion has joined the connection process, or could not.
    Joined(Owed, Result<(), Failure>),
    /// A doorbell was carried out: the status register's value.
    Rung(Owed, Result<u32, Failure>),
}

/// A companion's ring.
pub struct Companion {
    /// `None` once the connection process is gone or out of step.
    tube: Option<Tube>,
    layout: Layout,
    max_entries: u32,
    /// Until the connection process has introduced itself: the answer that waits for it.
    joining: Option<(Owed, Deadline)>,
    /// Number of the next message.
    next: u32,
    open: Option<Open>,
    waiting: VecDeque<Waiting>,
    /// What can be answered now.
    done: Vec<Done>,
}

/// A doorbell that is carried out by the connection process.
struct Open {
    owed: Owed,
    batch: u64,
    /// Number of the message that asked for it.
    request: u32,
    pending: Pending,
    deadline: Deadline,
}

/// A doorbell that was rung while another is open.
struct Waiting {
    owed: Owed,
    page: Option<u64>,
    batch: u64,
    deadline: Deadline,
}

impl Companion {
    /// Joins the connection process at the other end of `fd`; `owed` is answered once it has introduced
    /// itself.
    pub(super) fn join(fd: OwnedFd, layout: Layout, max_entries: u32, owed: Owed) -> Self {
        let deadline = Deadline::after(JOIN);
        let mut companion = Self {
            tube: None,
            layout,
            max_entries,
            joining: Some((owed, deadline)),
            next: 1,
            open: None,
            waiting: VecDeque::new(),
            done: Vec::new(),
        };
        if !(1..=MAX_BATCH).contains(&usize::try_from(max_entries).unwrap_or(usize::MAX)) {
            let message = format!("A batch of {max_entries} entries: 1 to {MAX_BATCH} allowed");
            companion.joined(Err(start::invalid(message)));
            return companion;
        }
        let mut tube = Tube::from_fd(fd);
        // There is room in a tube that nothing was sent by.
        match tube.introduce(Role::Function, Deadline::now()) {
            Ok(()) => companion.tube = Some(tube),
            Err(error) => companion.joined(Err(nobody(&error))),
        }
        companion
    }

    fn joined(&mut self, joined: Result<(), Failure>) {
        if joined.is_err() {
            self.tube = None;
        }
        if let Some((owed, _)) = self.joining.take() {
            self.done.push(Done::Joined(owed, joined));
        }
    }

    /// What its part of the wait loop waits for.
    pub(super) fn sources<T: Copy>(&self, token: T) -> impl Iterator<Item = Source<'_, T>> {
        self.tube.iter().flat_map(move |tube| {
            let writable = tube.has_unsent().then(|| Source::writable(tube, token));
            std::iter::once(Source::readable(tube, token)).chain(writable)
        })
    }

    /// When it must be looked at again although nothing came.
    pub(super) fn deadline(&self) -> Option<Deadline> {
        let joining = self.joining.as_ref().map(|(_, deadline)| *deadline);
        let open = self.open.as_ref().map(|open| open.deadline);
        joining.into_iter().chain(open).min()
    }

    /// What can be answered by now.
    pub(super) fn take_done(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    /// A doorbell was rung. It has its turn when those before it are done.
    pub(super) fn ring(&mut self, memory: &MemoryTable, call: &Doorbell, owed: Owed) {
        let Doorbell { page, batch, timeout_ms } = *call;
        if self.waiting.len() >= MAX_WAITING {
            let message = format!("{MAX_WAITING} doorbells wait already");
            let busy = Failure { kind: FailureKind::Busy, code: None, message };
            self.done.push(Done::Rung(owed, Err(busy)));
            return;
        }
        let deadline = Deadline::after(Duration::from_millis(timeout_ms.into()));
        self.waiting.push_back(Waiting { owed, page, batch, deadline });
        self.begin_next(memory);
    }

    /// Begins the doorbells whose turn it is, until one is open.
    fn begin_next(&mut self, memory: &MemoryTable) {
        while self.open.is_none() && self.joining.is_none() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            let Waiting { owed, page, batch, deadline } = waiting;
            match ring::begin(memory, self.layout, self.max_entries, page) {
                Ok((wanted, pending)) => {
                    let request = self.next;
                    self.next = self.next.wrapping_add(1).max(1);
                    let sent = self.request(request, batch, wanted, deadline);
                    self.open = Some(Open { owed, batch, request, pending, deadline });
                    if let Err(error) = sent {
                        self.lose(memory, &error);
                    }
                }
                Err(status) => self.done.push(Done::Rung(owed, Ok(status))),
            }
        }
    }

    /// Asks for a batch. The connection process is told to be done a little earlier than the doorbell
    /// has to be: what it did by then can be told.
    fn request(
        &mut self,
        id: u32,
        batch: u64,
        wanted: Batch,
        deadline: Deadline,
    ) -> Result<(), TubeError> {
        let left = deadline.remaining().unwrap_or_default();
        let timeout_ms = u32::try_from((left - left / 8).as_millis()).unwrap_or(u32::MAX);
        let request = match wanted {
            Batch::Map(entries) => Request::Map { batch, timeout_ms, entries },
            Batch::Unmap(keys) => Request::Unmap { batch, timeout_ms, keys },
        };
        let tube = self.tube.as_mut().ok_or(TubeError::Disconnected)?;
        if tube.has_unsent() {
            // It has not read what was sent for a doorbell before, whose time is over.
            return Err(TubeError::TimedOut);
        }
        tube.post(id, &request)
    }

    /// The tube can be read or written.
    pub(super) fn on_ready(&mut self, memory: &MemoryTable) {
        let Some(tube) = &mut self.tube else { return };
        if self.joining.is_some() {
            match tube.meet(Role::Function, Role::Connection, Deadline::now()) {
                Ok(_) => self.joined(Ok(())),
                Err(ipc::tube::HandshakeError::Tube(TubeError::TimedOut)) => {}
                Err(error) => self.joined(Err(nobody(&error))),
            }
            self.begin_next(memory);
            return;
        }
        let received = tube.flush().and_then(|()| tube.receive::<Reply>(Deadline::now()));
        match received {
            Ok(received) => {
                // Others are of doorbells that have failed.
                let is_its = |open: &mut Open| open.request == received.id;
                if let Some(open) = self.open.take_if(is_its) {
                    let outcomes = received.message.inspect_err(|kind| {
                        tracing::warn!("batch {} was refused: {kind:?}", open.batch);
                    });
                    self.finish(memory, open, outcomes.ok().as_deref());
                }
                self.begin_next(memory);
            }
            Err(TubeError::TimedOut) => {}
            Err(error) => self.lose(memory, &error),
        }
    }

    /// Fails whose time is over.
    pub(super) fn expire(&mut self, memory: &MemoryTable) {
        if self.joining.as_ref().is_some_and(|(_, deadline)| deadline.passed()) {
            self.joined(Err(nobody(&TubeError::TimedOut)));
        }
        if let Some(open) = self.open.take_if(|open| open.deadline.passed()) {
            tracing::warn!("batch {} was not carried out in time", open.batch);
            self.finish(memory, open, None);
        }
        self.begin_next(memory);
    }

    /// The connection process is gone, out of step or does not read: nothing can be asked of it.
    fn lose(&mut self, memory: &MemoryTable, error: &TubeError) {
        tracing::warn!("batches cannot be registered: {}", ipc::chain(error));
        if !matches!(error, TubeError::TimedOut) {
            self.tube = None;
        }
        if let Some(open) = self.open.take() {
            self.finish(memory, open, None);
        }
    }

    /// Ends it: another one takes its place. Every doorbell fails.
    pub(super) fn end(mut self, memory: &MemoryTable) -> Vec<Done> {
        if let Some(open) = self.open.take() {
            self.finish(memory, open, None);
        }
        self.joined(Err(nobody(&TubeError::Disconnected)));
        self.tube = None;
        self.begin_next(memory);
        self.done
    }

    /// Tells the guest what became of a batch: without outcomes that all of it failed.
    fn finish(&mut self, memory: &MemoryTable, open: Open, outcomes: Option<&[Outcome]>) {
        // A process that was stopped until after its time tells of no success: nobody hears it.
        let outcomes = outcomes.filter(|_| !open.deadline.passed());
        let finished = open.pending.finish(memory, outcomes.unwrap_or_default());
        let is_told = outcomes.is_some() && finished.is_told;
        let settled = if is_told { Ok(()) } else { self.abandon(open.batch) };
        self.done.push(Done::Rung(open.owed, settled.map(|()| finished.status)));
    }

    /// Has what was carried out of a batch undone. Where that cannot be said the VMM side is told, which
    /// says it in its turn.
    fn abandon(&mut self, batch: u64) -> Result<(), Failure> {
        let none = Err(TubeError::Disconnected);
        let posted =
            self.tube.as_mut().map_or(none, |tube| tube.post(0, &Request::Abandon { batch }));
        posted.map_err(|error| {
            if !matches!(error, TubeError::TimedOut) {
                self.tube = None;
            }
            let message = format!("Batch {batch} cannot be abandoned: {}", ipc::chain(&error));
            Failure { kind: FailureKind::Io, code: None, message }
        })
    }
}

fn nobody(error: &(dyn std::error::Error + 'static)) -> Failure {
    let message = format!("No connection process for the companion: {}", ipc::chain(error));
    Failure { kind: FailureKind::NoDevice, code: None, message }
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

#[cfg(test)]
#[path = "companion_tests.rs"]
mod tests;
