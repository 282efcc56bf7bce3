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
use ipc::wire::connection::{Mapped, Ready, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, MemoryEntry, MemoryPort, PciAddress, Tube, TubeError};

use self::companion::Companion;
use self::slot::Slot;
use crate::dext::{self, DextError};
use crate::misbehave::Misbehave;
use crate::options::{Common, Windows};
use crate::start::{self, Answer, RoleError, nothing_beside, one_beside};

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
    start::run(
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
    let clients = dext::open_device(registry.as_ref(), address)?;
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
                            code: None,
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
        let incoming = match start::next_request::<Request>(tube) {
            Ok(Some(incoming)) => incoming,
            Ok(None) => return Ok(true),
            Err(TubeError::Disconnected) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut misbehave = std::mem::take(&mut self.misbehave);
        let goes_on = self.answer(incoming, tube, &mut misbehave);
        self.misbehave = misbehave;
        goes_on
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

    fn answer(
        &mut self,
        incoming: start::Incoming<Request>,
        tube: &mut Tube,
        misbehave: &mut Misbehave,
    ) -> Result<bool, RoleError> {
        let start::Incoming { request, id, handles } = incoming;
        if let Request::Misbehave(wrong) = request {
            start::arrange(tube, id, misbehave, &wrong)?;
            return Ok(true);
        }
        let answer = Answer::to(tube, id, misbehave);
        // What came beside a request that takes nothing is refused with the request.
        let alone = nothing_beside(&handles);
        match request {
            Request::Attach(call) => {
                let attached = alone.and_then(|()| self.slot(call.function)?.attach());
                self.send_attached(answer, &call, attached)?;
            }
            Request::Detach(call) => {
                let done = alone.and_then(|()| self.detach(call.function));
                answer.send(&call, done)?;
            }
            Request::AddMemory(call) => {
                let added = one_beside(handles).and_then(|fd| {
                    let memory = &mut self.slot(call.function)?.memory;
                    memory.add(call.base, call.size, fd, call.offset, call.writable)
                });
                answer.send(&call, added)?;
            }
            Request::RemoveMemory(call) => {
                let slot = alone.and_then(|()| self.slot(call.function));
                answer.send(&call, slot.and_then(|slot| slot.remove_memory(call.base)))?;
            }
            Request::MapDma(call) => {
                let slot = alone.and_then(|()| self.slot(call.function));
                let mapped = slot.and_then(|slot| slot.map(&call.entry));
                let mapped =
                    mapped.map(|(bus_address, bus_length)| Mapped { bus_address, bus_length });
                answer.send(&call, mapped)?;
            }
            Request::UnmapDma(call) => {
                let slot = alone.and_then(|()| self.slot(call.function));
                answer.send(&call, slot.and_then(|slot| slot.unmap(call.key)))?;
            }
            Request::GetStatistics(call) => {
                let slot = alone.and_then(|()| self.slot(call.function));
                answer.send(&call, slot.map(|slot| slot.statistics()))?;
            }
            Request::Reset(call) => {
                let slot = alone.and_then(|()| self.slot(call.function));
                answer.send(&call, slot.and_then(Slot::reset))?;
            }
            Request::Companion(call) => {
                let joined = one_beside(handles).and_then(|fd| self.join(call.function, fd));
                answer.send(&call, joined)?;
            }
            Request::ReleaseDma(call) => {
                let slot = alone.and_then(|()| self.slot(call.function));
                answer.send(&call, slot.map(|slot| slot.release_companion(None)))?;
            }
            Request::Ping(call) => answer.send::<Request, _>(&call, alone)?,
            Request::Shutdown(call) => {
                answer.send::<Request, _>(&call, alone)?;
                return Ok(false);
            }
            // Arranged for above.
            Request::Misbehave(_) => {}
        }
        Ok(true)
    }

    /// The answer to a claim: the memory of each window goes beside it, or before it.
    fn send_attached(
        &mut self,
        answer: Answer<'_>,
        call: &ipc::wire::connection::Attach,
        attached: Result<slot::Exported, Failure>,
    ) -> Result<(), RoleError> {
        let (attached, windows) = match attached {
            Ok((attached, windows)) => (Ok(Box::new(attached)), windows),
            Err(failure) => (Err(failure), Vec::new()),
        };
        let handles: Vec<_> = windows.iter().filter_map(|memory| memory.descriptor()).collect();
        let entries: Vec<_> = windows.iter().filter_map(|memory| memory.entry()).collect();
        if !entries.is_empty() {
            self.send_entries(call.function, &entries)?;
        }
        answer.send_with(call, attached, &handles)
    }

    fn detach(&mut self, function: u8) -> Result<(), Failure> {
        self.slot(function)?.release();
        self.slots.retain(|slot| slot.address().function() != function);
        self.companions.retain(|one| one.function() != function);
        Ok(())
    }

    fn join(&mut self, function: u8, fd: std::os::fd::OwnedFd) -> Result<(), Failure> {
        self.slot(function)?;
        self.companions.retain(|one| one.function() != function);
        self.companions.push(Companion::new(function, fd));
        Ok(())
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
