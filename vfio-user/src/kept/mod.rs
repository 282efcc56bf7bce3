//! A client that outlives its server: a server that is killed at any moment is followed by one that answers what the
//! client waits for, once.
//!
//! Only where a keeper holds the function ([`cordon_vmm::kept`]); without one nothing of this is there. A command is
//! *looked at* in its socket, executed, and answered in steps, of which each is one call of the kernel's or one store:
//!
//! ```text
//! look ─▶ execute ─▶ commit ─▶ stage ─▶ send ─▶ consume ─▶ open
//!   │        │          │         │        │         └ received from the socket, which counts what was looked at
//!   │        │          │         │        │           and is still there
//!   │        │          │         │        └ by splice: what is in the socket is not in the pipe any more
//!   │        │          │         └ written into a pipe, which the keeper has too; one store says that all of it is
//!   │        │          └ one store: executed, with the answer in memory and what it changed of the session
//!   └────────┴ killed here: done again, as after the death of a function process
//! ```
//!
//! From the commit on nothing is executed again. What a successor finds says how far it came: bytes that were looked at
//! and not received are the message that is still there (SO_PEEK_OFF); what is in the pipe is not sent. A
//! message without answer is committed and consumed. The message goes last, so that the client has its answer
//! sooner.
//!
//! What does not go that way is *torn* meanwhile, and a kill ends that client as it does without a keeper: a message
//! longer than [`MAX_KEPT_MESSAGE`], and an answer with a descriptor, which no pipe takes.

mod adopted;
mod events;
mod journal;
mod record;
mod serve;
mod socket;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use cordon_vmm::kept::{KeptClient, StoreError};
use ipc::codec::CodecError;
use ipc::window::WindowError;
use rustix::io::Errno;

use crate::limits::MAX_KEPT_MESSAGE;
use crate::sys;

pub use self::adopted::{Adopted, Baseline, NotGoneOn};
pub(crate) use self::events::KeptEvents;
pub(crate) use self::journal::{Journal, Phase};
pub(crate) use self::record::{ConfigRecord, EventsRecord, HandoverRecord, Record};

/// Why a client is not kept, or one that was left cannot be gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// There is no memory for what is known of it.
    #[error("There is no memory for what is known of the client")]
    Memory(#[source] io::Error),
    /// That memory cannot be mapped.
    #[error("What is known of the client cannot be mapped")]
    Map(#[source] WindowError),
    /// There is no pipe, or the socket cannot be looked into.
    #[error("Its answers cannot be kept")]
    Pipe(#[source] io::Error),
    /// The keeper does not take it.
    #[error("The keeper does not take it")]
    Store(#[source] StoreError),
    /// What is known of it is none of this library's.
    #[error("What is known of it is torn, or is none")]
    NoSession,
    /// What is known of it is of another version of this library.
    #[error("What is known of it is of version {0}, which this program does not know")]
    Version(u64),
    /// What is known of it cannot be read, or is too long.
    #[error("What is known of it makes no sense")]
    Record(#[source] CodecError),
    /// What is known of it cannot be.
    #[error("What is known of it makes no sense: {0}")]
    Absurd(String),
    /// It was in the middle of something that cannot be gone on with.
    #[error(
        "It was sending a message of more than {MAX_KEPT_MESSAGE} bytes, was being handed a descriptor, or was leaving"
    )]
    Torn,
    /// An event of it is missing.
    #[error(
        "Its event for vector {1} of interrupt index {0} was not kept: has the keeper room for everything?"
    )]
    NoEvent(u8, u16),
    /// There is no descriptor for an event of it.
    #[error("An event of it cannot be kept")]
    Event(#[source] io::Error),
    /// Its memory is not what it was.
    #[error("Its memory cannot be mapped again: {0}")]
    Mapping(String),
    /// It may not have the function.
    #[error("It may not have the function: {0}")]
    NotAdmitted(String),
    /// Its socket failed.
    #[error("Its socket failed")]
    Socket(#[source] io::Error),
}

/// Bytes that one call moves: all of them, but for tests that end a server between two calls.
#[cfg(not(test))]
const PIECE: usize = 1 << 30;
#[cfg(test)]
const PIECE: usize = 700;

/// A step is done: tests end the server here.
#[cfg(not(test))]
#[inline]
pub(crate) fn step(_what: &'static str) {}
#[cfg(test)]
pub(crate) use self::steps::step;

/// Where a test ends a server: a count of steps from now on.
#[cfg(test)]
mod steps {
    use std::cell::{Cell, RefCell};

    thread_local! {
        pub(super) static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        /// Every step that was ended at.
        pub(super) static ENDED_AT: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    /// What is thrown.
    pub(super) struct Killed;

    pub(crate) fn step(what: &'static str) {
        let Some(left) = LEFT.get() else { return };
        LEFT.set(left.checked_sub(1));
        if left == 0 {
            ENDED_AT.with_borrow_mut(|all| all.push(what));
            std::panic::resume_unwind(Box::new(Killed));
        }
    }
}

/// What keeps a client: see the module.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) journal: Journal,
    /// Where answers are taken out, and where they are put in.
    out: OwnedFd,
    into: OwnedFd,
    pub(crate) client: KeptClient,
    pub(crate) events: KeptEvents,
    /// Those before a change that the device has not taken yet.
    before: Option<KeptEvents>,
    /// Nothing is kept any more but what was written to config space, which was said.
    is_lost: bool,
}

impl Kept {
    /// Of a client that has just come.
    pub(crate) fn new(
        client: KeptClient,
        stream: &UnixStream,
        record: &Record,
    ) -> Result<Self, KeptError> {
        let (out, into) = sys::pipe().map_err(KeptError::Pipe)?;
        let mut journal = Journal::new()?;
        journal.write(record)?;
        journal.set(Phase::Open);
        sys::look_from_begin(stream).map_err(KeptError::Pipe)?;
        let (events, before, is_lost) = (KeptEvents::default(), None, false);
        let mut kept = Self { journal, out, into, client, events, before, is_lost };
        if let Err(error) = kept.store(stream) {
            kept.lose(&error);
        }
        Ok(kept)
    }

    /// Gives the keeper everything but events, or says again what it has.
    fn store(&self, stream: &UnixStream) -> Result<(), KeptError> {
        let answers = (self.out.as_fd(), self.into.as_fd());
        let session = self.journal.memory().as_fd();
        self.client.begin(stream.as_fd(), answers, session).map_err(KeptError::Store)
    }

    /// It is not kept from here on: a kill ends it, and what it wrote to config space is put back then.
    fn lose(&mut self, error: &(dyn std::error::Error + 'static)) {
        (self.events, self.before) = Default::default();
        // The keeper may not hear it, and has what is written here.
        self.journal.give_up();
        self.client.abandon();
        if !std::mem::replace(&mut self.is_lost, true) {
            let (address, why) = (self.client.address(), ipc::chain(error));
            tracing::warn!(
                "{address}: its client is not kept from here on, and a kill of this server ends it: {why}"
            );
        }
    }

    /// What is known of the client from the next word on.
    pub(crate) fn write(&mut self, record: &Record) {
        if !self.is_lost {
            match self.journal.write(record) {
                Ok(()) => return,
                Err(error) => self.lose(&error),
            }
        }
        let rest = Record { handover: record.handover.clone(), ..Record::default() };
        match self.journal.write(&rest) {
            Ok(()) => self.journal.commit(),
            Err(error) => tracing::warn!("{}: {}", self.client.address(), ipc::chain(&error)),
        }
    }

    /// The events of these vectors are about to change, of which `record` says so: they are not kept, or others are.
    pub(crate) fn change_events(
        &mut self,
        record: &Record,
        events: &[((u8, u16), Option<BorrowedFd<'_>>)],
    ) {
        if self.is_lost {
            return;
        }
        let next = match self.events.changed(events) {
            Ok(next) => next,
            Err(error) => return self.lose(&KeptError::Event(error)),
        };
        self.write(record);
        self.journal.commit();
        step("events change");
        self.before = Some(self.events.clone());
        self.exchange(next);
    }

    /// The device did not take the events of a change: it has those before, and so does the keeper again.
    pub(crate) fn events_refused(&mut self) {
        if let Some(before) = self.before.take().filter(|_| !self.is_lost) {
            self.exchange(before);
        }
    }

    /// Has the keeper have these events and no others. First it closes what goes, since it takes nothing that it has,
    /// by whichever name.
    fn exchange(&mut self, next: KeptEvents) {
        let before = std::mem::replace(&mut self.events, next);
        for (index, vector) in before.not_in(&self.events) {
            self.client.remove_event(index, vector);
            step("event removed");
        }
        for name in self.events.not_in(&before) {
            let event = self.events.file(name);
            let stored = event.map_or(Ok(()), |event| self.client.event(name.0, name.1, event));
            if let Err(error) = stored {
                return self.lose(&KeptError::Store(error));
            }
            step("event stored");
        }
    }

    /// Puts an answer into the pipe; `false` where it does not take it, which is empty then.
    pub(crate) fn stage(&self, answer: &[u8]) -> Result<bool, Errno> {
        let mut rest = answer;
        while !rest.is_empty() {
            match rustix::io::write(&self.into, &rest[..rest.len().min(PIECE)]) {
                Ok(written) => {
                    rest = &rest[written..];
                    step("staged");
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.drain()?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Empties the pipe.
    fn drain(&self) -> Result<(), Errno> {
        let mut bytes = [0; 4096];
        loop {
            match rustix::io::read(&self.out, &mut bytes) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends at most so many bytes of what is in the pipe, without waiting.
    pub(crate) fn send(&self, stream: &UnixStream, most: usize) -> Result<usize, Errno> {
        let sent = sys::splice(&self.out, stream, most.min(PIECE));
        step("sent");
        sent
    }
}

/// Receives `size` bytes that were looked at, and closes what came with them.
pub(crate) fn consume(stream: &UnixStream, size: usize) -> Result<(), Errno> {
    let mut scratch = vec![0; size];
    let mut left = size;
    while left > 0 {
        // A call ends early where descriptors came.
        let into = &mut scratch[..left.min(PIECE)];
        match rustix::net::recv(stream, into, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(Errno::PIPE),
            Ok((came, _)) => {
                left -= came;
                step("consumed");
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
