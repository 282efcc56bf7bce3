//! A client that another server left which was killed: looked at, its memory claimed, and brought to where its next
//! message can be served.

use std::os::unix::net::UnixStream;

use cordon_vmm::kept::{KeptClient, LeftClient, LeftSession};
use cordon_vmm::{Container, GuestRegion, PassthroughDevice};
use ipc::Deadline;

use super::{HandoverRecord, Kept, KeptError, KeptEvents, Phase, Record, consume};
use crate::dma::Maps;
use crate::guest::{Guest, Stay};
use crate::options::Options;
use crate::socket::TIMEOUT;
use crate::sys;

/// What a client that does not go on has written to config space, and what was there before: so that it is put back. The
/// keeper has it until then, so that a server that is killed meanwhile is followed by one that does so.
#[derive(Debug)]
pub struct Baseline {
    pub(crate) record: HandoverRecord,
    pub(crate) client: KeptClient,
}

impl Baseline {
    /// Of what was known of the client, if that can be read; otherwise the keeper has it no longer.
    #[must_use]
    pub fn of(left: LeftSession) -> Option<Self> {
        let LeftSession { session, keeping: client } = left;
        match super::Journal::left(session) {
            Ok((_, _, record)) => Some(Self { record: record.handover, client }),
            Err(_) => {
                client.give_up();
                None
            }
        }
    }
}

/// A client that was left and cannot be gone on with. It was sent away.
#[derive(Debug)]
pub struct NotGoneOn {
    /// Why.
    pub why: KeptError,
    /// What it wrote.
    pub baseline: Option<Baseline>,
}

/// See the module. Dropped, it sends its client away; its memory is to be given back before: [`Adopted::abandon`].
#[derive(Debug)]
pub struct Adopted {
    pub(crate) stream: UnixStream,
    pub(crate) kept: Kept,
    pub(crate) record: Record,
    pub(crate) maps: Maps,
    /// Names that no vector has.
    surplus: Vec<(u8, u16)>,
    /// Whether it may have the function, once that was looked at.
    pub(crate) admission: Option<Result<Stay, String>>,
    phase: Phase,
    /// Bytes in the pipe.
    staged: usize,
}

impl Adopted {
    /// Looks at what was left, and maps its client's memory once more in `container`, where it is as part of `regions`:
    /// what is there of guest memory that the function reaches.
    ///
    /// # Errors
    /// [`NotGoneOn`].
    pub fn of(
        left: LeftClient,
        container: &Container,
        regions: &[GuestRegion],
        options: Options,
    ) -> Result<Self, Box<NotGoneOn>> {
        match Self::looked_at(&left, container, regions, options) {
            Ok((journal, phase, record, maps)) => {
                let LeftClient { socket, answers: (out, into), staged, events, keeping, .. } = left;
                let (events, surplus) = KeptEvents::left(&record.events, events);
                let (client, before, is_lost) = (keeping, None, false);
                let kept = Kept { journal, out, into, client, events, before, is_lost };
                let (stream, admission) = (socket, None);
                Ok(Self { stream, kept, record, maps, surplus, admission, phase, staged })
            }
            Err(why) => {
                let baseline = Baseline::of(left.send_away());
                Err(Box::new(NotGoneOn { why, baseline }))
            }
        }
    }

    fn looked_at(
        left: &LeftClient,
        container: &Container,
        regions: &[GuestRegion],
        options: Options,
    ) -> Result<(super::Journal, Phase, Record, Maps), KeptError> {
        let memory = left.session.try_clone().map_err(KeptError::Memory)?;
        let (journal, phase, record) = super::Journal::left(memory)?;
        if phase == Phase::Torn {
            return Err(KeptError::Torn);
        }
        let events = &record.events;
        let may_lack = |vector: &(u8, u16)| events.changing.contains(vector);
        let is_there = |vector: &(u8, u16)| left.events.contains_key(&events.name(*vector));
        let lacks = |vector: &&(u8, u16)| !is_there(vector) && !may_lack(vector);
        if let Some((index, vector)) = events.held.iter().find(lacks) {
            return Err(KeptError::NoEvent(*index, *vector));
        }
        let maps = Maps::claim(&record.maps, container, regions, options);
        Ok((journal, phase, record, maps.map_err(KeptError::Mapping)?))
    }

    /// Lets it in as a client of `guest`, which [`Server::start_kept`](crate::Server::start_kept) does otherwise. Clients
    /// of functions that reach the same memory are all let in before the first of them is served: while one of them
    /// leaves, nobody is let in unless another one is there.
    pub fn admit(&mut self, guest: &Guest) {
        self.admission = Some(guest.admit_again(&self.stream));
    }

    /// It is not gone on with after all: its client is sent away, and its memory given back; what it wrote.
    pub fn abandon(mut self, container: &Container) -> Baseline {
        self.maps.clear(container);
        self.kept.journal.give_up();
        self.kept.client.abandon();
        self.send_away();
        Baseline { record: self.record.handover, client: self.kept.client }
    }

    /// [`Adopted::abandon`], once a device that nobody serves neither reaches memory nor interrupts.
    pub(crate) fn abandon_of(
        self,
        device: &dyn PassthroughDevice,
        container: &Container,
    ) -> Baseline {
        if let Err(error) = device.quiesce() {
            tracing::warn!("quiescing what was left: {error}");
        }
        self.abandon(container)
    }

    /// The client sees the end of its connection.
    pub(crate) fn send_away(&self) {
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
    }

    /// Brings it to where its next message is open: what was executed is answered and gone from the socket. Killed
    /// meanwhile, it is as far as it came. `wait` is called while the client's socket is full.
    pub(crate) fn settle(
        &mut self,
        mut wait: impl FnMut(&UnixStream) -> Result<(), KeptError>,
    ) -> Result<(), KeptError> {
        let Self { stream, kept, surplus, .. } = self;
        let io = |error: rustix::io::Errno| KeptError::Socket(error.into());
        kept.store(stream)?;
        for (index, vector) in surplus.drain(..) {
            kept.client.remove_event(index, vector);
        }
        for ((index, vector), event) in kept.events.files() {
            kept.client.event(index, vector, event).map_err(KeptError::Store)?;
        }
        let phase = self.phase;
        if let Phase::Executed { rest, length } | Phase::Staged { rest, length } = phase {
            let looked_at = sys::looked_at(stream).map_err(KeptError::Socket)?;
            let left = looked_at.saturating_sub(rest);
            if left > super::MAX_KEPT_MESSAGE || self.staged > length {
                return Err(KeptError::Absurd(format!(
                    "a message of {left} bytes, and {} of {length} bytes of an answer",
                    self.staged
                )));
            }
            if matches!(phase, Phase::Executed { .. }) {
                if self.staged < length {
                    kept.drain().map_err(io)?;
                    let answer = kept.journal.answer(length)?;
                    if !kept.stage(&answer).map_err(io)? {
                        return Err(KeptError::Torn);
                    }
                    self.staged = length;
                }
                kept.journal.set(Phase::Staged { rest, length });
            }
            let until = Deadline::after(TIMEOUT);
            while self.staged > 0 {
                match kept.send(stream, self.staged) {
                    Ok(sent) => self.staged -= sent.min(self.staged),
                    Err(rustix::io::Errno::AGAIN) if until.passed() => {
                        return Err(KeptError::Socket(std::io::ErrorKind::TimedOut.into()));
                    }
                    Err(rustix::io::Errno::AGAIN) => wait(stream)?,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(io(error)),
                }
            }
            consume(stream, left).map_err(io)?;
            kept.journal.set(Phase::Open);
            self.phase = Phase::Open;
        }
        kept.drain().map_err(io)?;
        sys::look_from_begin(stream).map_err(KeptError::Socket)
    }
}
