//! The connection process: claim, DMA registrations and BAR windows of one physical device.
//!
//! It opens every function of the device without claiming any, confines itself, and then does as
//! the VMM side says: claim a function and export its BARs, take regions of guest memory, register
//! ranges of them. It never sees a byte that a guest wrote. It distrusts function processes: one
//! that serves a companion may ask for registrations of its own function , and every
//! range is checked against the memory table. It exits at once when the
//! VMM side or the dext is gone; the dext then releases everything.

mod companion;
pub mod slot;
pub mod windows;

use std::os::fd::{AsFd as _, BorrowedFd};

use ipc::poll::{self, Source};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::connection::{Ready, Reply, Request};
use ipc::wire::faults::Point;
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, MemoryEntry, MemoryPort, PciAddress, Tube, TubeError};

use self::companion::Companion;
use self::slot::Slot;
use crate::dext::{self, DextError};
use crate::misbehave::Misbehave;
use crate::options::{Common, Windows};
use crate::start::{self, RoleError};

/// What the main loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Tube,
    Dext,
    /// A function process, of the function with this number.
    Companion(u8),
}

/// The state of the process, owned by its one thread.
pub struct ConnectionProcess {
    address: PciAddress,
    slots: Vec<Slot>,
    companions: Vec<Companion>,
    /// Where memory without a descriptor goes.
    port: Option<MemoryPort>,
    misbehave: Misbehave,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(address: PciAddress, windows: Windows, common: &Common) -> Result<(), RoleError> {
    start::run::<_, _, Reply>(
        common,
        Role::Connection,
        |tube| prepare(address, windows, common, tube),
        |tube, mut process| process.serve(tube),
    )
}

/// Opens and confines; public so that the escape suite confines itself the same way.
///
/// # Errors
/// [`RoleError`].
pub fn prepare(
    address: PciAddress,
    windows: Windows,
    common: &Common,
    tube: &Tube,
) -> Result<(ConnectionProcess, Ready), RoleError> {
    let misbehave = Misbehave::new(common.misbehave);
    let port = MemoryPort::inherited();
    let registry = misbehave.over(dext::registry(&common.dext)?);
    let clients = dext::open_matching(registry.as_ref(), |found| found.same_device(address))?;
    if !clients.iter().any(|client| client.address() == address) {
        return Err(DextError::NoSuchDevice(address).into());
    }
    let functions = clients.iter().map(dext::Client::identity).collect();
    let slots: Vec<Slot> = clients.into_iter().map(|client| Slot::new(client, windows)).collect();
    let mut open = vec![tube.as_fd()];
    open.extend(slots.iter().flat_map(Slot::descriptors));
    let sandbox = start::confine(common, sandbox_profiles::Role::Connection, &open)?;
    let companions = Vec::new();
    let process = ConnectionProcess { address, slots, companions, port, misbehave };
    Ok((process, Ready { functions, sandbox }))
}

impl ConnectionProcess {
    fn serve(&mut self, tube: &mut Tube) -> Result<(), RoleError> {
        loop {
            for token in self.wait(tube)? {
                match token {
                    Token::Tube => {
                        if !self.serve_one(tube)? {
                            return Ok(());
                        }
                    }
                    Token::Companion(function) => self.serve_companion(function),
                    Token::Dext => {
                        return Err(DextError::Lost {
                            subject: format!("Device of {}", self.address),
                            operation: "waiting",
                        }
                        .into());
                    }
                }
            }
        }
    }

    fn wait(&self, tube: &Tube) -> Result<Vec<Token>, RoleError> {
        let liveness: Vec<BorrowedFd<'_>> = self.slots.iter().filter_map(Slot::liveness).collect();
        let mut sources = vec![Source::readable(tube, Token::Tube)];
        sources.extend(liveness.iter().map(|fd| Source::hangup(fd, Token::Dext)));
        sources.extend(self.companions.iter().map(|companion| {
            Source::readable(companion.tube(), Token::Companion(companion.function()))
        }));
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
        let id = received.id;
        if let Request::Misbehave(wrong) = received.message {
            let answer = self.misbehave.arm(wrong).map(|()| Reply::Done);
            start::reply::<Ready, Reply>(tube, id, answer, &[])?;
            return Ok(true);
        }
        self.misbehave.at(Point::Before, tube);
        if let Request::Attach { function } = received.message {
            let attached = self.attach(function, &received.handles);
            let (answer, windows) = match attached {
                Ok((attached, windows)) => (Ok(Reply::Attached(Box::new(attached))), windows),
                Err(failure) => (Err(failure), Vec::new()),
            };
            let handles: Vec<_> = windows.iter().filter_map(|memory| memory.descriptor()).collect();
            let entries: Vec<_> = windows.iter().filter_map(|memory| memory.entry()).collect();
            if !entries.is_empty() {
                self.send_entries(function, &entries)?;
            }
            self.misbehave.at(Point::During, tube);
            start::reply::<Ready, Reply>(tube, id, answer, &handles)?;
            self.misbehave.at(Point::After, tube);
            return Ok(true);
        }
        let more = received.message != Request::Shutdown;
        let answer = self.handle(received.message, received.handles);
        self.misbehave.at(Point::During, tube);
        start::reply::<Ready, Reply>(tube, id, answer, &[])?;
        self.misbehave.at(Point::After, tube);
        Ok(more)
    }

    /// Serves one request of a function process; one that is gone or out of step is forgotten, and
    /// what it registered stays: its successor may need it.
    fn serve_companion(&mut self, function: u8) {
        let Some(at) = self.companions.iter().position(|one| one.function() == function) else {
            return;
        };
        let slot = self.slots.iter_mut().find(|slot| slot.address().function() == function);
        let goes_on = slot.is_some_and(|slot| self.companions[at].serve_one(slot));
        if !goes_on {
            self.companions.remove(at);
        }
    }

    /// Memory without descriptors goes before the message that speaks of it.
    fn send_entries(&self, function: u8, entries: &[&MemoryEntry]) -> Result<(), RoleError> {
        let deadline = Deadline::after(start::PATIENCE);
        let none = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        let sent = self.port.as_ref().ok_or_else(none);
        let sent = sent.and_then(|port| port.send(function.into(), entries, deadline));
        sent.map_err(RoleError::Wait)
    }

    fn attach(&mut self, function: u8, handles: &Handles) -> Result<slot::Exported, Failure> {
        handles.expect(0).map_err(|error| start::invalid(error.to_string()))?;
        self.slot(function)?.attach()
    }

    fn handle(&mut self, request: Request, handles: Handles) -> Result<Reply, Failure> {
        if let Request::AddMemory { function, base, size, offset, writable } = request {
            let fd = handles.one().map_err(|error| start::invalid(error.to_string()))?;
            self.slot(function)?.memory.add(base, size, fd, offset, writable)?;
            return Ok(Reply::Done);
        }
        if let Request::Companion { function } = request {
            let fd = handles.one().map_err(|error| start::invalid(error.to_string()))?;
            self.slot(function)?;
            self.companions.retain(|one| one.function() != function);
            self.companions.push(Companion::new(function, fd));
            return Ok(Reply::Done);
        }
        handles.expect(0).map_err(|error| start::invalid(error.to_string()))?;
        match request {
            Request::Detach { function } => {
                self.slot(function)?.release();
                self.slots.retain(|slot| slot.address().function() != function);
                self.companions.retain(|one| one.function() != function);
                Ok(Reply::Done)
            }
            Request::RemoveMemory { function, base } => {
                self.slot(function)?.remove_memory(base).map(|()| Reply::Done)
            }
            Request::MapDma { function, entry } => {
                let (bus_address, bus_length) = self.slot(function)?.map(&entry)?;
                Ok(Reply::Mapped { bus_address, bus_length })
            }
            Request::UnmapDma { function, key } => {
                self.slot(function)?.unmap(key).map(|()| Reply::Done)
            }
            Request::ReleaseDma { function } => {
                self.slot(function)?.release_companion(None);
                Ok(Reply::Done)
            }
            Request::Statistics { function } => {
                Ok(Reply::Statistics(self.slot(function)?.statistics()))
            }
            Request::Reset { function } => self.slot(function)?.reset().map(|()| Reply::Done),
            Request::Shutdown => Ok(Reply::Done),
            Request::Attach { .. }
            | Request::AddMemory { .. }
            | Request::Companion { .. }
            | Request::Misbehave(_) => Err(start::invalid("Handled before".to_owned())),
        }
    }

    fn slot(&mut self, function: u8) -> Result<&mut Slot, Failure> {
        let address = self.address;
        let slot = self.slots.iter_mut().find(|slot| slot.address().function() == function);
        slot.ok_or_else(|| Failure {
            kind: FailureKind::NoDevice,
            code: None,
            message: format!(
                "Function {function} of {:02x}:{:02x} is not open in its connection process",
                address.bus(),
                address.device()
            ),
        })
    }
}
