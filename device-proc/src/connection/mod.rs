//! The connection process: claim, DMA registrations and BAR windows of one physical device.
//!
//! It opens the isolation group of the device without claiming any function of it, confines
//! itself, and then does as the VMM side says: claim a function and export its BARs, take regions
//! of guest memory, register ranges of them. It never sees a byte that a guest wrote. It distrusts
//! function processes: one that serves a companion may ask for registrations of its own function,
//! and every range is checked against the memory table. It exits at once when the VMM side or the
//! backend is gone; what survives that is the backend's.

mod companion;
pub mod slot;
pub mod windows;

use std::os::fd::AsFd as _;

use cordon_backend::{Backend, BusRange, Group, Liveness, OpenGroup, Source as Origin};
use ipc::poll::{self, Source};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::connection::{Mapped, Ready, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, MemoryEntry, MemoryPort, PciAddress, Tube, TubeError};

use self::companion::Companion;
use self::slot::Slot;
use crate::hooks::Hooks;
use crate::options::{Common, Windows};
use crate::start::{self, Answer, Confinement, RoleError, nothing_beside, one_beside};

/// What the main loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Tube,
    Backend,
    /// A function process, of the function with this number.
    Companion(u8),
}

/// The state of the process, owned by its one thread.
pub struct ConnectionProcess {
    address: PciAddress,
    group: Box<dyn Group>,
    slots: Vec<Slot>,
    companions: Vec<Companion>,
    /// Where memory without a descriptor goes.
    port: Option<MemoryPort>,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(
    address: PciAddress,
    windows: Windows,
    common: &Common,
    hooks: &mut dyn Hooks,
) -> Result<(), RoleError> {
    let mut tube = start::greet(start::inherited_tube(common)?, Role::Connection)?;
    let backend = hooks.backend(&common.dext).map_err(RoleError::from);
    let port = MemoryPort::inherited();
    let confinement = common.confinement();
    let prepared = backend
        .and_then(|backend| prepare(backend.as_ref(), address, windows, port, confinement, &tube));
    start::announce(&mut tube, prepared)?.serve(&mut tube, hooks)
}

/// Runs the role over a tube and a backend that are there already, until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn serve_on(
    tube: Tube,
    backend: &dyn Backend,
    address: PciAddress,
    windows: Windows,
    confinement: Confinement,
    hooks: &mut dyn Hooks,
) -> Result<(), RoleError> {
    let mut tube = start::greet(tube, Role::Connection)?;
    let prepared = prepare(backend, address, windows, None, confinement, &tube);
    start::announce(&mut tube, prepared)?.serve(&mut tube, hooks)
}

/// Opens and confines; public so that the escape suite confines itself the same way.
///
/// # Errors
/// [`RoleError`].
pub fn prepare(
    backend: &dyn Backend,
    address: PciAddress,
    windows: Windows,
    port: Option<MemoryPort>,
    confinement: Confinement,
    tube: &Tube,
) -> Result<(ConnectionProcess, Ready), RoleError> {
    let OpenGroup { group, functions } = backend.open_group(address, Origin::Own)?;
    let identities = functions.iter().map(|function| function.identity()).collect();
    let slots: Vec<Slot> =
        functions.into_iter().map(|function| Slot::new(function, windows)).collect();
    let mut open = vec![tube.as_fd()];
    open.extend(group.descriptors());
    open.extend(slots.iter().flat_map(Slot::descriptors));
    let sandbox = start::confine(confinement, sandbox_profiles::Role::Connection, &open)?;
    let companions = Vec::new();
    let process = ConnectionProcess { address, group, slots, companions, port };
    Ok((process, Ready { functions: identities, sandbox }))
}

impl ConnectionProcess {
    fn serve(&mut self, tube: &mut Tube, hooks: &mut dyn Hooks) -> Result<(), RoleError> {
        loop {
            for token in self.wait(tube)? {
                match token {
                    Token::Tube => {
                        if !self.serve_one(tube, hooks)? {
                            return Ok(());
                        }
                    }
                    Token::Companion(function) => self.serve_companion(function),
                    Token::Backend => return Err(self.group.lost("waiting").into()),
                }
            }
        }
    }

    fn wait(&self, tube: &Tube) -> Result<Vec<Token>, RoleError> {
        let of_functions = self.slots.iter().filter_map(Slot::liveness);
        let liveness: Vec<Liveness<'_>> =
            self.group.liveness().into_iter().chain(of_functions).collect();
        let mut sources = vec![Source::readable(tube, Token::Tube)];
        sources.extend(liveness.iter().map(|liveness| liveness.source(Token::Backend)));
        sources.extend(self.companions.iter().map(|companion| {
            Source::readable(companion.tube(), Token::Companion(companion.function()))
        }));
        poll::wait(&sources, None).map_err(RoleError::Wait)
    }

    /// Serves one request; `false` when it was the last.
    fn serve_one(&mut self, tube: &mut Tube, hooks: &mut dyn Hooks) -> Result<bool, RoleError> {
        let incoming = match start::next_request::<Request>(tube) {
            Ok(Some(incoming)) => incoming,
            Ok(None) => return Ok(true),
            Err(TubeError::Disconnected) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        self.answer(incoming, tube, hooks)
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
        let deadline = Deadline::after(start::PEER_TIMEOUT);
        let none = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        let sent = self.port.as_ref().ok_or_else(none);
        let sent = sent.and_then(|port| port.send(function.into(), entries, deadline));
        sent.map_err(RoleError::Wait)
    }

    fn answer(
        &mut self,
        incoming: start::Incoming<Request>,
        tube: &mut Tube,
        hooks: &mut dyn Hooks,
    ) -> Result<bool, RoleError> {
        let start::Incoming { request, id, handles } = incoming;
        if let Request::Misbehave(wrong) = request {
            start::arrange(tube, id, hooks, &wrong)?;
            return Ok(true);
        }
        let answer = Answer::to(tube, id, hooks);
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
                let mapped = mapped.map(|BusRange { address, length }| Mapped {
                    bus_address: address,
                    bus_length: length,
                });
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
        self.slot(function)?;
        let is_it = |slot: &mut Slot| slot.address().function() == function;
        self.slots.extract_if(.., is_it).for_each(Slot::release);
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
