//! One client: its commands in order, and what is taken back when it is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::config::Config;
use crate::dma::Maps;
use crate::handover::Handover;
use crate::interrupts::{Change, Events};
use crate::kept::{Adopted, EventsRecord, Record, step};
use crate::limits::{MAX_DATA, MAX_KEPT_DATA};
use crate::negotiate::Capabilities;
use crate::options::{AtBudget, BudgetKind, Options};
use crate::protocol::{Header, Refusal, command, flag, refuse};
use crate::reports::Reports;
use crate::socket::{Message, Socket, SocketError};
use crate::timed::Timed;
use crate::{access, info, negotiate};
use cordon_vmm::device::BarMemory;
use cordon_vmm::kept::KeptClient;
use cordon_vmm::{Container, PassthroughDevice};

/// A connected client.
pub(super) struct Session<'d> {
    socket: Socket<'d>,
    device: &'d dyn PassthroughDevice,
    container: &'d Container,
    handover: &'d mut Handover,
    options: Options,
    config: Config,
    maps: Maps,
    events: Events,
    reports: Reports,
    /// Budgets that it came to be at.
    told: Vec<BudgetKind>,
    /// The last of them, until it is told.
    at_budget: Option<AtBudget>,
    /// Once it has said what it takes.
    negotiated: Option<Capabilities>,
    /// Of the memory behind the windows when this client came.
    windows: u64,
    /// What of the session is recorded already, where it is: how often config space and what is put back had changed;
    /// nothing while something else has.
    recorded: Option<(u64, u64)>,
}

/// A client that cannot be gone on with, and why.
#[derive(Debug)]
pub(super) struct NotAdopted {
    pub(super) adopted: Adopted,
    pub(super) why: String,
}

/// What is sent back.
#[derive(Default)]
struct Answer {
    body: Vec<u8>,
    memory: Option<BarMemory>,
}

impl From<Vec<u8>> for Answer {
    fn from(body: Vec<u8>) -> Self {
        Self { body, memory: None }
    }
}

impl<'d> Session<'d> {
    pub(super) fn new(
        socket: Socket<'d>,
        device: &'d dyn PassthroughDevice,
        container: &'d Container,
        handover: &'d mut Handover,
        options: Options,
    ) -> Self {
        Self {
            socket,
            device,
            container,
            handover,
            options,
            config: Config::default(),
            maps: Maps::new(options),
            events: Events::new(options.budget.events),
            reports: Reports::new(options.budget.reports, Instant::now()),
            told: Vec::new(),
            at_budget: None,
            negotiated: None,
            windows: device.windows_generation(),
            recorded: None,
        }
    }

    /// A client that another server had, on whose next message this one goes on.
    pub(super) fn adopt(
        adopted: Adopted,
        stopped: &'d ipc::Event,
        device: &'d dyn PassthroughDevice,
        container: &'d Container,
        handover: &'d mut Handover,
        options: Options,
    ) -> Result<Self, Box<NotAdopted>> {
        let handed = adopted.kept.events.handed().map_err(|error| error.to_string());
        let events = handed.and_then(|events| {
            Events::adopt(options.budget.events, device, &adopted.record.events, events)
        });
        let events = match events {
            Ok(events) => events,
            Err(why) => return Err(Box::new(NotAdopted { adopted, why })),
        };
        let Adopted { stream, kept, record, maps, .. } = adopted;
        let Record { negotiated, config, told, .. } = record;
        let socket = Socket::kept(stream, kept, stopped);
        let session = Self::new(socket, device, container, handover, options);
        let negotiated = negotiated.map(|(descriptors, data)| Capabilities { descriptors, data });
        let config = config.map_or_else(Config::default, |config| Config::of(config, device));
        let told = told.into_iter().filter_map(BudgetKind::of_number).collect();
        Ok(Self { config, maps, events, negotiated, told, ..session })
    }

    /// What of the session another server needs.
    pub(super) fn record(&self) -> Record {
        let negotiated = self.negotiated.map(|one| (one.descriptors, one.data));
        let names = self.socket.kept.as_ref().map(|kept| kept.events.recorded());
        let names = names.unwrap_or_default();
        Record {
            negotiated,
            maps: self.maps.recorded(),
            config: self.config.record(),
            events: EventsRecord { names, ..self.events.record() },
            handover: self.handover.record(),
            told: self.told.iter().map(|kind| kind.number()).collect(),
        }
    }

    /// Has what is new of the session recorded with the next answer, where the client is kept.
    fn keep(&mut self) {
        if self.socket.kept.is_none() {
            return;
        }
        let now = (self.config.changes(), self.handover.changes());
        if self.recorded == Some(now) {
            return;
        }
        let record = self.record();
        if let Some(kept) = &mut self.socket.kept {
            kept.write(&record);
        }
        self.recorded = Some(now);
    }

    /// Whether this client may still map windows of memory that is not the device's any more: its
    /// dext died, and a client cannot be told to map again. All ones, until another client comes.
    fn is_stale(&self) -> bool {
        self.device.windows_generation() != self.windows
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something of the next message is here already, so that no wait would show it.
    pub(super) fn is_begun(&self) -> bool {
        self.socket.is_begun()
    }

    /// Receives the beginning of the next message if it has come; whether there is one.
    pub(super) fn look(&mut self) -> bool {
        self.socket.look()
    }

    /// Receives one message and answers it; what to report of it, if anything.
    pub(super) fn serve_one(&mut self) -> Result<Option<String>, SocketError> {
        let message = match self.socket.receive() {
            Err(error @ SocketError::Size { id, command, .. }) => {
                // Out of step from here on, but the client may still be told.
                let header = Header { id, command, size: 0, flags: 0, error: 0 };
                let _ = self.socket.error(&header, libc::EINVAL);
                return Err(error);
            }
            other => other?,
        };
        let header = message.header;
        let changes = !matches!(header.command, command::REGION_READ | command::REGION_WRITE);
        if changes {
            self.recorded = None;
        }
        let silent = header.flags & flag::NO_REPLY != 0;
        let timed = Timed::new(self.device);
        step("looked");
        let answer = self.handle(message, &timed);
        step("executed");
        let late = timed.was_late();
        timed.wrote().into_iter().for_each(|bytes| self.handover.note_write(bytes));
        let budget = answer.as_ref().err().and_then(|refusal| refusal.at_budget);
        self.note_budget(budget);
        self.keep();
        let why = match answer {
            Ok(answer) => {
                let memory = answer.memory.as_ref().and_then(|memory| memory.memory.descriptor());
                match silent {
                    true => self.socket.no_reply()?,
                    false => self.socket.reply(&header, &answer.body, memory)?,
                }
                let why =
                    "it took too long: from some point on it reads as ones and writes nothing";
                late.then(|| why.to_owned())
            }
            Err(refusal) => {
                match silent {
                    true => self.socket.no_reply()?,
                    false => self.socket.error(&header, refusal.errno)?,
                }
                Some(refusal.why)
            }
        };
        let why = why.map(|why| format!("command {}: {why}", header.command));
        Ok(why.and_then(|why| self.reports.admit(why, Instant::now())))
    }

    /// A budget that the client is at and that was not told of before.
    fn note_budget(&mut self, at_budget: Option<AtBudget>) {
        if let Some(at) = at_budget
            && !self.told.contains(&at.kind)
        {
            self.told.push(at.kind);
            self.recorded = None;
            self.at_budget = Some(at);
        }
    }

    /// A budget of its own that this client has come to be at, each told once.
    pub(super) fn take_at_budget(&mut self) -> Option<AtBudget> {
        self.at_budget.take()
    }

    fn handle(&mut self, message: Message, device: &Timed<'_>) -> Result<Answer, Refusal> {
        let Message { header, body, mut descriptors, too_many } = message;
        if header.flags & flag::TYPE != flag::COMMAND {
            return refuse(libc::EINVAL, format!("flags {:#x} are no command's", header.flags));
        }
        if !matches!(header.command, command::DMA_MAP | command::SET_IRQS) {
            // SPDK's client sends its memory along with DMA_UNMAP: refused for that, it would
            // believe that the device does not reach the memory any more.
            descriptors.clear();
        } else if too_many {
            return refuse(libc::EINVAL, "too many descriptors came and were closed");
        }
        let capabilities = match (self.negotiated, header.command) {
            (None, command::VERSION) => {
                let regions = self.options.budget.regions;
                let most = if self.socket.kept.is_some() { MAX_KEPT_DATA } else { MAX_DATA };
                let (capabilities, answer) = negotiate::version(&body, regions, most)?;
                self.negotiated = Some(capabilities);
                return Ok(answer.into());
            }
            (None, _) => return refuse(libc::EINVAL, "VERSION must come first"),
            (Some(_), command::VERSION) => return refuse(libc::EINVAL, "VERSION came twice"),
            (Some(capabilities), _) => capabilities,
        };
        let most = capabilities.data;
        Ok(match header.command {
            command::DMA_MAP => {
                self.maps.map(self.container, &body, descriptors)?;
                Answer::default()
            }
            command::DMA_UNMAP => self.maps.unmap(self.container, &body)?.into(),
            command::GET_INFO => info::device(&body, device.info().resettable)?.into(),
            command::REGION_INFO => {
                let region = info::region(device, &body, capabilities.descriptors > 0)?;
                Answer { body: region.body, memory: region.memory }
            }
            command::IRQ_INFO => info::interrupt(device, &body)?.into(),
            command::SET_IRQS => {
                self.set_interrupts(device, &body, descriptors)?;
                Answer::default()
            }
            command::REGION_READ if self.is_stale() => {
                access::read_nothing(device, &body, most)?.into()
            }
            command::REGION_WRITE if self.is_stale() => {
                access::write_nothing(device, &body, most)?.into()
            }
            command::REGION_READ | command::REGION_WRITE | command::RESET => {
                let done = self.access(header.command, device, &body, most);
                // As COMMAND is now, also where the rest of it failed.
                self.events.disable_intx(device, self.config.intx_disabled())?;
                done?
            }
            other => return refuse(libc::EOPNOTSUPP, format!("command {other} is not served")),
        })
    }

    /// SET_IRQS: where the client is kept, its events are too.
    fn set_interrupts(
        &mut self,
        device: &Timed<'_>,
        body: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let mut record = self.socket.kept.as_ref().map(|_| self.record());
        let kept = &mut self.socket.kept;
        let mut keep = |change: Change<'_>| {
            let (Some(kept), Some(record)) = (kept.as_mut(), record.as_mut()) else { return };
            match change {
                Change::Begins { before, events } => {
                    let changing = events.iter().map(|(vector, _)| *vector).collect();
                    let names = std::mem::take(&mut record.events.names);
                    record.events = EventsRecord { changing, names, ..before };
                    let events = events.iter();
                    let events = events.map(|(vector, one)| (*vector, one.map(AsFd::as_fd)));
                    kept.change_events(record, &events.collect::<Vec<_>>());
                }
                Change::Refused => kept.events_refused(),
            }
        };
        self.events.set(device, body, descriptors, &mut keep)
    }

    /// What the device itself does, or the model of its config space.
    fn access(
        &mut self,
        command: u16,
        device: &Timed<'_>,
        body: &[u8],
        most: u32,
    ) -> Result<Answer, Refusal> {
        let config = &mut self.config;
        Ok(match command {
            command::REGION_READ => access::read(device, config, body, most)?.into(),
            command::REGION_WRITE => access::write(device, config, body, most)?.into(),
            _ => {
                device.reset()?;
                config.reset(device)?;
                Answer::default()
            }
        })
    }

    /// The client is gone, and its memory is taken back; what to report, if anything. The device
    /// was stopped before, as far as that was possible, and in any case nothing reaches the memory
    /// after this.
    pub(super) fn end(&mut self) -> Option<String> {
        self.socket.end();
        self.maps.clear(self.container);
        self.reports.end()
    }

    /// What keeps the client, which is gone: until what it left is cleaned it is there for another server to clean.
    pub(super) fn into_kept(self) -> Option<KeptClient> {
        self.socket.kept.map(|kept| kept.client)
    }
}
