//! The function process: config space, trapped BAR access, interrupts and reset of one function.
//!
//! It holds one dext connection, never claimed, its tube, the signallers it was given, its mappings
//! of the BARs and of the interrupt page, and guest RAM and a tube to the connection process only
//! where it has a companion. It distrusts the guest, whose values arrive in
//! requests, and every byte of them. One thread, one wait loop over tokens. It exits at once
//! when the VMM side or the dext is gone; nothing is lost with it but what was in flight: claim,
//! DMA and BAR windows are the connection process's.

pub mod bars;
pub mod companion;
pub mod config;
pub mod interrupts;
pub mod ring;

use std::os::fd::AsFd as _;

use ipc::poll::{self, Source};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::Point;
use ipc::wire::function::{Ready, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, PciAddress, Tube, TubeError};

use self::bars::Bars;
use self::companion::Companion;
use self::interrupts::Interrupts;
use crate::dext::{self, Client, DextError};
use crate::memory::MemoryTable;
use crate::misbehave::Misbehave;
use crate::options::Common;
use crate::start::{self, RoleError};
use crate::{capabilities, failure};

/// What the main loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// A request, or the end of the VMM side.
    Tube,
    /// A notification of the dext's.
    Interrupt,
    /// The end of the dext.
    Dext,
}

/// The state of the process, owned by its one thread.
pub struct FunctionProcess {
    client: Client,
    bars: Bars,
    /// Entries of the MSI-X table.
    entries: u16,
    /// `None` in a standby: one connection at a time holds a function's interrupts.
    interrupts: Option<Interrupts>,
    /// Guest RAM, where a companion needs it.
    memory: MemoryTable,
    companion: Option<Companion>,
    misbehave: Misbehave,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(address: PciAddress, standby: bool, common: &Common) -> Result<(), RoleError> {
    start::run::<_, _, Reply>(
        common,
        Role::Function,
        |tube| prepare(address, standby, common, tube),
        |tube, mut process| process.serve(tube),
    )
}

/// Opens, sets up and confines; public so that the escape suite confines itself the same way.
///
/// # Errors
/// [`RoleError`].
pub fn prepare(
    address: PciAddress,
    standby: bool,
    common: &Common,
    tube: &Tube,
) -> Result<(FunctionProcess, Ready), RoleError> {
    let misbehave = Misbehave::new(common.misbehave);
    let registry = misbehave.over(dext::registry(&common.dext)?);
    let mut client = dext::open_function(registry.as_ref(), address)?;
    let msix = capabilities::msix(&mut client)?;
    let bars = Bars::new(&mut client, msix)?;
    let entries = msix.map_or(0, |msix| msix.vectors);
    let interrupts = if standby { None } else { Some(Interrupts::new(&mut client, entries)?) };
    let (identity, infos) = (client.identity(), bars.infos());
    let vectors = interrupts.as_ref().map_or(0, Interrupts::vectors);
    let mut open = vec![tube.as_fd()];
    open.extend(client.descriptors());
    let sandbox = start::confine(common, sandbox_profiles::Role::Function, &open)?;
    let ready = Ready { identity, bars: infos, msix, vectors, sandbox };
    let (memory, companion) = (MemoryTable::default(), None);
    let process =
        FunctionProcess { client, bars, entries, interrupts, memory, companion, misbehave };
    Ok((process, ready))
}

impl FunctionProcess {
    fn serve(&mut self, tube: &mut Tube) -> Result<(), RoleError> {
        loop {
            for token in self.wait(tube)? {
                match token {
                    Token::Interrupt => {
                        if let Some(interrupts) = &mut self.interrupts {
                            interrupts.deliver(&mut self.client)?;
                        }
                    }
                    Token::Tube => {
                        if !self.serve_one(tube)? {
                            return Ok(());
                        }
                    }
                    Token::Dext => {
                        return Err(DextError::Lost {
                            subject: format!("Function {}", self.client.address()),
                            operation: "waiting",
                        }
                        .into());
                    }
                }
            }
        }
    }

    fn wait(&self, tube: &Tube) -> Result<Vec<Token>, RoleError> {
        let liveness = self.client.liveness();
        let mut sources = vec![
            Source::readable(self.client.completion(), Token::Interrupt),
            Source::readable(tube, Token::Tube),
        ];
        if let Some(fd) = &liveness {
            sources.push(Source::hangup(fd, Token::Dext));
        }
        poll::wait(&sources, None).map_err(RoleError::Wait)
    }

    /// Serves one request; `false` when it was the last.
    fn serve_one(&mut self, tube: &mut Tube) -> Result<bool, RoleError> {
        let received = match tube.receive::<Request>(Deadline::now()) {
            Ok(received) => received,
            Err(TubeError::TimedOut) => return Ok(true),
            Err(TubeError::Disconnected) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if let Request::Misbehave(wrong) = received.message {
            let answer = self.misbehave.arm(wrong).map(|()| Reply::Done);
            start::reply::<Ready, Reply>(tube, received.id, answer, &[])?;
            return Ok(true);
        }
        let more = received.message != Request::Shutdown;
        self.misbehave.at(Point::Before, tube);
        let answer = self.handle(received.message, received.handles);
        self.misbehave.at(Point::During, tube);
        start::reply::<Ready, Reply>(tube, received.id, answer, &[])?;
        self.misbehave.at(Point::After, tube);
        Ok(more)
    }

    /// A standby becomes the one that serves; done again, it changes nothing. Refused while the
    /// dext still cleans up after the one before.
    fn take_over(&mut self) -> Result<Reply, Failure> {
        if let Some(interrupts) = &self.interrupts {
            return Ok(Reply::Vectors(interrupts.vectors()));
        }
        let set_up = Interrupts::new(&mut self.client, self.entries);
        let interrupts = set_up.map_err(|error| failure(&error))?;
        let vectors = interrupts.vectors();
        self.interrupts = Some(interrupts);
        Ok(Reply::Vectors(vectors))
    }

    fn handle(&mut self, request: Request, handles: Handles) -> Result<Reply, Failure> {
        let wants_handles = matches!(
            request,
            Request::Interrupts { .. } | Request::Companion { .. } | Request::AddMemory { .. }
        );
        if !wants_handles {
            handles.expect(0).map_err(|error| start::invalid(error.to_string()))?;
        }
        match request {
            Request::ConfigRead { offset, length } => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                config::check_length(length)?;
                let bytes = config::read(&mut self.client, offset, length);
                bytes.map(Reply::Bytes).map_err(|error| failure(&error))
            }
            Request::ConfigWrite { offset, data } => {
                config::check_length(data.len())?;
                config::write(&mut self.client, offset, &data).map(|()| Reply::Done)
            }
            Request::BarRead { bar, offset, width } => {
                self.bars.read(bar, offset, width).map(Reply::Value)
            }
            Request::BarWrite { bar, offset, width, value } => {
                self.bars.write(bar, offset, width, value).map(|()| Reply::Done)
            }
            Request::Interrupts { index, action } => {
                let standby = || start::invalid("A standby has no interrupts yet".to_owned());
                let interrupts = self.interrupts.as_mut().ok_or_else(standby)?;
                interrupts.change(&mut self.client, index, action, handles)?;
                Ok(Reply::Done)
            }
            Request::Reset => self.reset(),
            Request::Statistics => {
                let statistics = self.interrupts.as_ref().map(Interrupts::statistics);
                Ok(Reply::Statistics(statistics.unwrap_or_default()))
            }
            Request::TakeOver => self.take_over(),
            Request::Companion { layout, max_entries } => {
                let tube = handles.one().map_err(|error| start::invalid(error.to_string()))?;
                self.companion = Some(Companion::join(tube, layout, max_entries)?);
                Ok(Reply::Done)
            }
            Request::AddMemory { base, size, offset, writable } => {
                let fd = handles.one().map_err(|error| start::invalid(error.to_string()))?;
                self.memory.add(base, size, fd, offset, writable).map(|()| Reply::Done)
            }
            Request::RemoveMemory { base } => self.memory.remove(base).map(|()| Reply::Done),
            Request::Doorbell { page, batch } => {
                let none = || start::invalid("This function has no companion".to_owned());
                let companion = self.companion.as_mut().ok_or_else(none)?;
                Ok(Reply::Status(companion.doorbell(&self.memory, page, batch)))
            }
            // Misbehaving is arranged before requests are handled.
            Request::Shutdown | Request::Misbehave(_) => Ok(Reply::Done),
        }
    }

    /// P8: reset by the dext; a failure is an I/O error.
    fn reset(&mut self) -> Result<Reply, Failure> {
        self.client.reset().map(|()| Reply::Done).map_err(|error| {
            let failure = failure(&error);
            let kind = if error.is_fatal() { FailureKind::NoDevice } else { FailureKind::Io };
            Failure { kind, ..failure }
        })
    }
}
