//! The connection process: claim, DMA registrations and BAR windows of one physical device.
//!
//! It opens the isolation group of the device without claiming any function of it, by files that a manager opened
//! where there are some, or takes over what a process before it left that died (where the backend has devices go
//! on meanwhile), confines itself, and then does as the VMM side says: claim a function and export its BARs, take regions
//! of guest memory, register ranges of them. It never sees a byte that a guest wrote. It distrusts
//! function processes: one that serves a companion may ask for registrations of its own function,
//! and every range is checked against the memory table. It exits at once when the VMM side or the
//! backend is gone; what survives that is the backend's, or goes on with the descriptors that the VMM side keeps
//! (`Escrow`).
//!
//! One thread serves all functions, which may belong to different guests. So what takes a call of the
//! backend for each of many registrations is done in slices of [`SLICE`]: nobody waits for more than
//! one of them.

pub mod claimed;
mod companion;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

use std::os::fd::AsFd as _;
use std::time::Duration;

use cordon_backend::{
    Backend, BackendKind, BusRange, Group, GroupFunction, Liveness, OpenGroup, Source as Origin,
    Survives,
};
use ipc::poll::{self, Source};
use ipc::tube::MAX_HANDLES;
use ipc::wire::common::{Failure, FailureKind, Identity};
use ipc::wire::connection::{Escrowed, EscrowedFunction, Mapped, Ready, Request};
use ipc::wire::dma::Reply;
use ipc::wire::faults::Misbehave;
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, MemoryEntry, MemoryPort, PciAddress, Tube, TubeError};

use self::claimed::ClaimedFunction;
use self::companion::Companion;
use crate::hooks::Hooks;
use crate::options::{Common, Holding, Opening, Windows};
use crate::start::{self, Answer, Confinement, RoleError, Serve, nothing_beside, one_beside};

/// How long registrations are made or removed before whoever else waits is served: a few hundred of
/// them where the backend is as fast as it should be, and one where it is very slow.
pub const SLICE: Duration = Duration::from_millis(5);

/// What the main loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Tube,
    Backend,
    /// The loss of the function with this number.
    Function(u8),
    /// A function process, of the function with this number.
    Companion(u8),
}

/// The state of the process, owned by its one thread.
pub struct ConnectionProcess {
    address: PciAddress,
    group: Box<dyn Group>,
    functions: Vec<ClaimedFunction>,
    companions: Vec<Companion>,
    /// The function whose work is looked for next.
    turn: usize,
    /// Where memory without a descriptor goes.
    port: Option<MemoryPort>,
    /// The VMM side has asked it to end.
    is_stopped: bool,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(
    address: PciAddress,
    holding: Holding,
    common: &Common,
    hooks: &mut dyn Hooks,
) -> Result<(), RoleError> {
    let mut tube = start::greet(start::inherited_tube(common)?, Role::Connection)?;
    let backend = hooks.backend(&common.dext).map_err(RoleError::from);
    let port = MemoryPort::inherited();
    let (confinement, windows) = (common.confinement(), holding.windows);
    let prepared = backend.and_then(|backend| {
        let origin = origin(holding, &mut tube)?;
        prepare_from(backend.as_ref(), address, origin, windows, port, confinement, &tube)
    });
    let mut process = start::announce(&mut tube, prepared)?;
    let ended = process.serve(&mut tube, hooks);
    if process.is_orphaned(&ended) {
        // Somebody may keep what its functions go on with. Where nobody does, the kernel or the dext ends what this
        // process had when its descriptors are closed, which its end does.
        std::mem::forget(process);
    }
    ended
}

/// Runs the role over a tube and a backend that are there already, until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn serve_on(
    tube: Tube,
    backend: &dyn Backend,
    address: PciAddress,
    holding: impl Into<Holding>,
    confinement: Confinement,
    hooks: &mut dyn Hooks,
) -> Result<(), RoleError> {
    let mut tube = start::greet(tube, Role::Connection)?;
    let holding = holding.into();
    let prepared = origin(holding, &mut tube).and_then(|origin| {
        prepare_from(backend, address, origin, holding.windows, None, confinement, &tube)
    });
    start::announce(&mut tube, prepared)?.serve(&mut tube, hooks)
}

/// How it comes by the group.
fn origin(holding: Holding, tube: &mut Tube) -> Result<Origin, RoleError> {
    match holding.opening {
        Opening::Own => Ok(Origin::Own),
        Opening::Handed => start::handed_files(tube),
        Opening::Adopt => start::left(tube).map(Origin::Adopted),
        Opening::AdoptHanded => start::left_and_handed(tube).map(Origin::Adopted),
    }
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
    prepare_from(backend, address, Origin::Own, windows, port, confinement, tube)
}

fn prepare_from(
    backend: &dyn Backend,
    address: PciAddress,
    origin: Origin,
    windows: Windows,
    port: Option<MemoryPort>,
    confinement: Confinement,
    tube: &Tube,
) -> Result<(ConnectionProcess, Ready), RoleError> {
    let OpenGroup { group, functions } = backend.open_group(address, origin)?;
    let identities: Vec<Identity> = functions.iter().map(|function| function.identity()).collect();
    let numbers: Vec<_> =
        ipc::numbered(address, identities.iter().map(|identity| identity.address)).collect();
    let numbered = |function: Box<dyn GroupFunction>| {
        let (number, _) = numbers.iter().find(|(_, address)| *address == function.address())?;
        Some(ClaimedFunction::new(function, windows).with_number(*number))
    };
    let mut functions: Vec<ClaimedFunction> = functions.into_iter().filter_map(numbered).collect();
    let later = crate::budget::connection(confinement, &mut functions)?;
    let mut open = vec![tube.as_fd()];
    open.extend(group.descriptors());
    open.extend(functions.iter().flat_map(ClaimedFunction::descriptors));
    let role = match backend.kind() {
        BackendKind::Calls => sandbox_profiles::Role::Connection,
        BackendKind::Vfio if group.uses_iommufd() => sandbox_profiles::Role::IommufdConnection,
        BackendKind::Vfio => sandbox_profiles::Role::VfioConnection,
    };
    let sandbox = start::confine(confinement, role, &open, later)?;
    let (companions, turn) = (Vec::new(), 0);
    let is_stopped = false;
    let process =
        ConnectionProcess { address, group, functions, companions, turn, port, is_stopped };
    Ok((process, Ready { functions: identities, sandbox }))
}

impl ConnectionProcess {
    fn serve(&mut self, tube: &mut Tube, hooks: &mut dyn Hooks) -> Result<(), RoleError> {
        loop {
            for token in self.wait(tube)? {
                match token {
                    Token::Tube => {
                        if !start::serve_one(self, tube, Deadline::now(), hooks)? {
                            return Ok(());
                        }
                    }
                    Token::Companion(function) => self.serve_companion(function),
                    Token::Backend => return Err(self.group.lost("waiting").into()),
                    Token::Function(number) => self.lose(number)?,
                }
            }
            self.work();
        }
    }

    /// Whether it ends since the VMM side is gone without a word, and what that was told is not to be undone.
    fn is_orphaned(&self, ended: &Result<(), RoleError>) -> bool {
        match ended {
            Ok(()) => !self.is_stopped,
            Err(error) => matches!(error, RoleError::Tube(TubeError::Disconnected)),
        }
    }

    fn wait(&self, tube: &Tube) -> Result<poll::Tokens<Token>, RoleError> {
        let of_functions = self.functions.iter().filter_map(|function| {
            Some((function.liveness()?, Token::Function(function.number())))
        });
        let liveness: Vec<(Liveness<'_>, Token)> = self
            .group
            .liveness()
            .into_iter()
            .map(|group| (group, Token::Backend))
            .chain(of_functions)
            .collect();
        let mut sources = vec![Source::readable(tube, Token::Tube)];
        sources.extend(liveness.iter().map(|(liveness, token)| liveness.source(*token)));
        for companion in &self.companions {
            let (tube, token) = (companion.tube(), Token::Companion(companion.function()));
            sources.push(Source::readable(tube, token));
            if tube.has_unsent() {
                sources.push(Source::writable(tube, token));
            }
        }
        let has_work = self.functions.iter().any(ClaimedFunction::has_work);
        poll::wait(&sources, has_work.then(Deadline::now)).map_err(RoleError::Wait)
    }

    /// A function is to go. One that nobody uses is closed, which is all that it takes, if the rest of the
    /// group does not go with it.
    fn lose(&mut self, number: u8) -> Result<(), RoleError> {
        let is_it = |one: &ClaimedFunction| one.number() == number;
        match self.functions.iter().position(is_it) {
            Some(at) if self.functions[at].is_unused_alone() => drop(self.functions.remove(at)),
            Some(at) => return Err(self.functions[at].lost(self.group.as_ref())),
            None => {}
        }
        Ok(())
    }

    /// Works for one slice for the next function that has work: others, and their requests, come in
    /// between.
    fn work(&mut self) {
        let count = self.functions.len();
        let mut turns = (0..count).map(|behind| (self.turn + behind) % count);
        let Some(at) = turns.find(|at| self.functions[*at].has_work()) else { return };
        self.turn = at + 1;
        let function = &mut self.functions[at];
        let number = function.number();
        if let Some((request, reply)) = function.work(Deadline::after(SLICE)) {
            self.answer_companion(number, request, &reply);
        }
    }

    fn answer_companion(&mut self, number: u8, request: u32, reply: &Reply) {
        let Some(at) = self.companions.iter().position(|one| one.function() == number) else {
            return;
        };
        if !self.companions[at].answer(request, reply) {
            self.forget_companion(at);
        }
    }

    /// A function process is gone or out of step. What it has asked for is not carried out any further,
    /// and what it registered stays: its successor may need it.
    fn forget_companion(&mut self, at: usize) {
        let number = self.companions.remove(at).function();
        if let Some(function) = self.functions.iter_mut().find(|one| one.number() == number) {
            function.close_batch();
        }
    }

    /// Takes one request of a function process; one that is gone or out of step is forgotten.
    fn serve_companion(&mut self, number: u8) {
        let Some(at) = self.companions.iter().position(|one| one.function() == number) else {
            return;
        };
        let function = self.functions.iter_mut().find(|one| one.number() == number);
        let goes_on = function.is_some_and(|function| self.companions[at].serve_one(function));
        if !goes_on {
            self.forget_companion(at);
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

    /// The answer to a claim: the memory of each window goes beside it, or before it.
    fn send_attached(
        &mut self,
        answer: Answer<'_>,
        call: &ipc::wire::connection::Attach,
        attached: Result<claimed::Exported, Failure>,
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

    /// The answer to the question what keeps the functions going without this process: the descriptors go
    /// beside it.
    fn send_escrow(
        &self,
        answer: Answer<'_>,
        call: &ipc::wire::connection::Escrow,
    ) -> Result<(), RoleError> {
        let Survives::Descriptors(mut handles) = self.group.survives() else {
            return answer.send(call, Ok(Escrowed::default()));
        };
        let count = |handles: &[_]| u8::try_from(handles.len()).unwrap_or(u8::MAX);
        let mut escrowed = Escrowed { group: count(&handles), functions: Vec::new() };
        for function in self.functions.iter().filter(|one| one.is_attached()) {
            let left = function.survives();
            escrowed.functions.push(EscrowedFunction {
                address: function.address(),
                descriptors: count(&left.descriptors),
                request: left.request.is_some(),
            });
            handles.extend(left.descriptors.into_iter().chain(left.request));
        }
        if handles.len() > MAX_HANDLES {
            // So many functions of one group go with the process.
            return answer.send(call, Ok(Escrowed::default()));
        }
        answer.send_with(call, Ok(escrowed), &handles)
    }

    fn detach(&mut self, number: u8) -> Result<(), Failure> {
        self.function(number)?;
        let is_it = |one: &mut ClaimedFunction| one.number() == number;
        let until = Deadline::after(SLICE);
        let gone: Vec<_> = self.functions.extract_if(.., is_it).collect();
        self.functions.extend(gone.into_iter().filter_map(|one| one.release(until)));
        self.companions.retain(|one| one.function() != number);
        Ok(())
    }

    fn join(&mut self, number: u8, fd: std::os::fd::OwnedFd) -> Result<(), Failure> {
        // The one before cannot be answered any more, and may send its batch again.
        self.function(number)?.close_batch();
        self.companions.retain(|one| one.function() != number);
        self.companions.push(Companion::new(number, fd));
        Ok(())
    }

    /// Removes what a companion registered, and abandons what it carries out; whether that is done.
    fn release_companion(&mut self, number: u8) -> Result<bool, Failure> {
        let function = self.function(number)?;
        let abandoned = function.abandon_open();
        let is_done = function.release_companion(None, Deadline::after(SLICE));
        if let Some(request) = abandoned {
            self.answer_companion(number, request, &Err(FailureKind::Busy));
        }
        Ok(is_done)
    }

    fn function(&mut self, number: u8) -> Result<&mut ClaimedFunction, Failure> {
        let address = self.address;
        let function = self.functions.iter_mut().find(|one| one.number() == number);
        function.ok_or_else(|| Failure {
            kind: FailureKind::NoDevice,
            code: None,
            message: format!(
                "Function number {number} of the connection process of {address} is not open there"
            ),
        })
    }
}

impl Serve for ConnectionProcess {
    type Request = Request;

    fn fault(request: &Request) -> Option<Misbehave> {
        if let Request::Misbehave(wrong) = request { Some(*wrong) } else { None }
    }

    fn carry_out(
        &mut self,
        request: Request,
        handles: Handles,
        answer: Answer<'_>,
    ) -> Result<bool, RoleError> {
        // What came beside a request that takes nothing is refused with the request.
        let alone = nothing_beside(&handles);
        match request {
            Request::Attach(call) => {
                let attached = alone.and_then(|()| self.function(call.function)?.attach());
                self.send_attached(answer, &call, attached)?;
            }
            Request::Detach(call) => {
                let done = alone.and_then(|()| self.detach(call.function));
                answer.send(&call, done)?;
            }
            Request::AddMemory(call) => {
                let added = one_beside(handles).and_then(|fd| {
                    let memory = &mut self.function(call.function)?.memory;
                    memory.add(call.base, call.size, fd, call.offset, call.writable)
                });
                answer.send(&call, added)?;
            }
            Request::RemoveMemory(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                let removed = function
                    .and_then(|function| function.remove_memory(call.base, Deadline::after(SLICE)));
                answer.send(&call, removed)?;
            }
            Request::MapDma(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                let mapped = function.and_then(|function| function.map(&call.entry));
                let mapped = mapped.map(|BusRange { address, length }| Mapped {
                    bus_address: address,
                    bus_length: length,
                });
                answer.send(&call, mapped)?;
            }
            Request::AdoptDma(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                let mapped = function.and_then(|function| function.adopt(&call.entry));
                let mapped = mapped.map(|BusRange { address, length }| Mapped {
                    bus_address: address,
                    bus_length: length,
                });
                answer.send(&call, mapped)?;
            }
            Request::UnmapDma(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                answer.send(&call, function.and_then(|function| function.unmap(call.key)))?;
            }
            Request::GetStatistics(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                answer.send(&call, function.map(|function| function.statistics()))?;
            }
            Request::Reset(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                answer.send(&call, function.and_then(ClaimedFunction::reset))?;
            }
            Request::Companion(call) => {
                let joined = one_beside(handles).and_then(|fd| self.join(call.function, fd));
                answer.send(&call, joined)?;
            }
            Request::ReleaseDma(call) => {
                let released = alone.and_then(|()| self.release_companion(call.function));
                answer.send(&call, released)?;
            }
            Request::AbandonBatch(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                answer.send(&call, function.map(|function| function.abandon_batch(call.batch)))?;
            }
            Request::Ping(call) => {
                let look = |()| self.functions.iter_mut().try_for_each(ClaimedFunction::look);
                answer.send::<Request, _>(&call, alone.and_then(look))?;
            }
            Request::HandOver(call) => {
                let function = alone.and_then(|()| self.function(call.function));
                match function.and_then(|function| function.handed()) {
                    Ok(handed) => answer.send_with(&call, Ok(()), &handed)?,
                    Err(failure) => answer.send(&call, Err(failure))?,
                }
            }
            Request::Escrow(call) => match alone {
                Ok(()) => self.send_escrow(answer, &call)?,
                Err(failure) => answer.send(&call, Err(failure))?,
            },
            Request::Shutdown(call) => {
                self.is_stopped = true;
                answer.send::<Request, _>(&call, alone)?;
                return Ok(false);
            }
            // See `fault`.
            Request::Misbehave(_) => {}
        }
        Ok(true)
    }
}
