//! The function process: config space, trapped BAR access, interrupts and reset of one function.
//!
//! It holds one function of the backend's, never claimed, its tube, the signallers it was given,
//! and guest RAM and a tube to the connection process only where it has a companion. It distrusts
//! the guest, whose values arrive in requests, and every byte of them. One thread, one wait loop
//! over tokens: what takes the work of another process (a doorbell) is owed its answer, and paid when
//! that work is done. It exits at once when the VMM side or the backend is gone; nothing is lost with it
//! but what was in flight: claim, DMA and BAR windows are the connection process's.

pub mod bars;
pub mod companion;
pub mod config;
pub mod interrupts;
mod lane;
pub mod ring;

use std::os::fd::{AsFd as _, OwnedFd};

use cordon_backend::{Backend, BackendKind, ServedFunction, Source as Origin};
use cordon_pci::permission::Layout;
use ipc::poll::{self, Source};
use ipc::wire::common::Failure;
use ipc::wire::faults::Misbehave;
use ipc::wire::function::{
    Access, Companion as JoinCompanion, Doorbell, Known, Ready, Request, Space,
};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, PciAddress, Tube};

use self::bars::Bars;
use self::companion::{Companion, Done};
use self::interrupts::Interrupts;
use self::lane::Lane;
use crate::hooks::Hooks;
use crate::memory::MemoryTable;
use crate::options::{Common, Serving};
use crate::start::{self, Answer, Confinement, RoleError, Serve, nothing_beside, one_beside};
use crate::{failure, pci};

/// What the main loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// A request, or the end of the VMM side.
    Tube,
    /// A request in the lane.
    Lane,
    /// A notification of the backend's.
    Interrupt,
    /// The connection process, about the companion.
    Companion,
    /// The end of the backend.
    Backend,
}

/// The state of the process, owned by its one thread.
pub struct FunctionProcess {
    function: Box<dyn ServedFunction>,
    /// What a guest may write to its config space, from the capabilities that it showed when it was
    /// opened.
    permissions: Layout,
    bars: Bars,
    /// Entries of the MSI-X table.
    entries: u16,
    /// `None` in a standby: one connection at a time holds a function's interrupts.
    interrupts: Option<Interrupts>,
    /// Guest RAM, where a companion needs it.
    memory: MemoryTable,
    companion: Option<Companion>,
    lane: Option<Lane>,
    /// What a companion left to be answered that was replaced.
    left: Vec<Done>,
}

/// Runs the role until the VMM side ends it.
///
/// # Errors
/// [`RoleError`].
pub fn run(
    address: PciAddress,
    serving: Serving,
    common: &Common,
    hooks: &mut dyn Hooks,
) -> Result<(), RoleError> {
    let mut tube = start::greet(start::inherited_tube(common)?, Role::Function)?;
    let backend = hooks.backend(&common.dext).map_err(RoleError::from);
    let confinement = common.confinement();
    let prepared = backend.and_then(|backend| {
        let handed = start::handed(backend.as_ref(), &mut tube)?;
        prepare(backend.as_ref(), address, serving, handed, confinement, &tube)
    });
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
    serving: Serving,
    confinement: Confinement,
    hooks: &mut dyn Hooks,
) -> Result<(), RoleError> {
    let mut tube = start::greet(tube, Role::Function)?;
    let prepared = start::handed(backend, &mut tube)
        .and_then(|handed| prepare(backend, address, serving, handed, confinement, &tube));
    start::announce(&mut tube, prepared)?.serve(&mut tube, hooks)
}

/// Opens, or takes what was `handed` on, sets up and confines; public so that the escape suite confines itself the same way.
///
/// # Errors
/// [`RoleError`].
pub fn prepare(
    backend: &dyn Backend,
    address: PciAddress,
    serving: Serving,
    handed: Option<Vec<OwnedFd>>,
    confinement: Confinement,
    tube: &Tube,
) -> Result<(FunctionProcess, Ready), RoleError> {
    // Whoever brought a signaller may have it hang, and it must not hang this process.
    if matches!(confinement, Confinement::Process { .. }) {
        ipc::event::bound_signals().map_err(RoleError::Timer)?;
    }
    let Serving { standby, max_read_request, known } = serving;
    let found = known.as_ref().and_then(|known| known.place);
    let own = found.map_or(Origin::Own, Origin::OwnAt);
    let origin = handed.map_or(own, Origin::Handed);
    let mut function = backend.open_function(address, origin)?;
    let config = known.as_ref().map_or(&[][..], |known| &known.config);
    let (permissions, config) = pci::permissions(function.as_mut(), max_read_request, config)?;
    let msix = permissions.msix();
    let infos = match known {
        Some(known) => known.bars,
        None => function.bars()?,
    };
    let bars = Bars::new(function.as_mut(), infos, msix)?;
    let entries = msix.map_or(0, |msix| msix.vectors);
    let interrupts =
        if standby { None } else { Some(Interrupts::new(function.as_mut(), entries)?) };
    let identity = function.identity();
    let known = Known { place: function.place(), bars: bars.infos(), config };
    let vectors = interrupts.as_ref().map_or(0, Interrupts::vectors);
    let mut open = vec![tube.as_fd()];
    open.extend(function.descriptors());
    let later = confinement.guest_memory();
    let role = match backend.kind() {
        BackendKind::Calls => sandbox_profiles::Role::Function,
        BackendKind::Vfio => sandbox_profiles::Role::VfioFunction,
    };
    let sandbox = start::confine(confinement, role, &open, later)?;
    let ready = Ready {
        identity,
        known,
        msix: msix.map(pci::msix_info),
        vectors,
        max_read_request: permissions.max_read_request(),
        sandbox,
    };
    let process = FunctionProcess {
        function,
        permissions,
        bars,
        entries,
        interrupts,
        memory: MemoryTable::new(true),
        companion: None,
        lane: None,
        left: Vec::new(),
    };
    Ok((process, ready))
}

impl FunctionProcess {
    fn serve(&mut self, tube: &mut Tube, hooks: &mut dyn Hooks) -> Result<(), RoleError> {
        loop {
            // What is in the lane first, a little at a time; then a look at everything else.
            self.serve_lane(tube, hooks)?;
            if let Some(interrupts) = &mut self.interrupts {
                interrupts.settle(self.function.as_mut())?;
            }
            for token in self.wait(tube)? {
                match token {
                    Token::Lane => {}
                    Token::Interrupt => {
                        if let Some(interrupts) = &mut self.interrupts {
                            interrupts.deliver(self.function.as_mut())?;
                        }
                    }
                    Token::Tube => {
                        if !start::serve_one(self, tube, Deadline::now(), hooks)? {
                            return Ok(());
                        }
                    }
                    Token::Companion => {
                        if let Some(companion) = &mut self.companion {
                            companion.on_ready(&self.memory);
                        }
                    }
                    Token::Backend => return Err(self.function.lost("waiting").into()),
                }
                self.pay(tube, hooks)?;
            }
            if let Some(companion) = &mut self.companion {
                companion.expire(&self.memory);
            }
            self.pay(tube, hooks)?;
        }
    }

    /// Answers what was owed and is known by now.
    fn pay(&mut self, tube: &mut Tube, hooks: &mut dyn Hooks) -> Result<(), RoleError> {
        let mut done = std::mem::take(&mut self.left);
        done.extend(self.companion.as_mut().map(Companion::take_done).unwrap_or_default());
        for one in done {
            match one {
                Done::Joined(owed, joined) => {
                    owed.pay(tube, hooks).reply::<Request, JoinCompanion>(joined)?;
                }
                Done::Rung(owed, status) => {
                    owed.pay(tube, hooks).reply::<Request, Doorbell>(status)?;
                }
            }
        }
        Ok(())
    }

    fn wait(&self, tube: &Tube) -> Result<poll::Tokens<Token>, RoleError> {
        let liveness = self.function.liveness();
        let mut sources = poll::Sources::new();
        sources.extend(
            self.function.notification().map(|event| Source::readable(event, Token::Interrupt)),
        );
        sources.push(Source::readable(tube, Token::Tube));
        sources.extend(self.lane.iter().map(|lane| Source::readable(lane, Token::Lane)));
        sources.extend(self.companion.iter().flat_map(|one| one.sources(Token::Companion)));
        sources.extend(liveness.as_ref().map(|liveness| liveness.source(Token::Backend)));
        let sleeps = self.lane.as_ref().is_none_or(Lane::will_sleep);
        let due = self.interrupts.as_ref().and_then(Interrupts::due);
        let due =
            due.into_iter().chain(self.companion.as_ref().and_then(Companion::deadline)).min();
        let deadline = if sleeps { due } else { Some(Deadline::now()) };
        let ready = poll::wait(&sources, deadline).map_err(RoleError::Wait)?;
        if let Some(lane) = &self.lane {
            lane.woke(ready.contains(&Token::Lane)).map_err(RoleError::Wait)?;
        }
        Ok(ready)
    }

    /// One access of at most 8 bytes; 0 for a write.
    fn access(&mut self, access: &Access) -> Result<u64, Failure> {
        let Access { space, offset, width, write, value } = *access;
        match (space, write) {
            (Space::Config, false) => {
                let mut bytes = [0; 8];
                let width = usize::from(width);
                let into = bytes.get_mut(..width).filter(|into| !into.is_empty());
                let into = into.ok_or_else(|| config::no_width(width))?;
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                config::read(self.function.as_mut(), offset, into)
                    .map_err(|error| failure(&error))?;
                Ok(u64::from_le_bytes(bytes))
            }
            (Space::Config, true) => {
                let bytes = value.to_le_bytes();
                let width = usize::from(width);
                let data = bytes.get(..width).filter(|data| !data.is_empty());
                let data = data.ok_or_else(|| config::no_width(width))?;
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                config::write(self.function.as_mut(), &self.permissions, offset, data).map(|()| 0)
            }
            (Space::Bar(bar), false) => self.bars.read(self.function.as_mut(), bar, offset, width),
            (Space::Bar(bar), true) => {
                self.bars.write(self.function.as_mut(), bar, offset, width, value).map(|()| 0)
            }
        }
    }

    fn read_config(&mut self, offset: u32, length: u32) -> Result<Vec<u8>, Failure> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        config::check_length(length)?;
        let mut bytes = vec![0; length];
        config::read(self.function.as_mut(), offset, &mut bytes)
            .map_err(|error| failure(&error))?;
        Ok(bytes)
    }

    fn change_interrupts(
        &mut self,
        call: &ipc::wire::function::Interrupts,
        handles: Handles,
    ) -> Result<(), Failure> {
        let standby = || start::invalid("A standby has no interrupts yet".to_owned());
        let interrupts = self.interrupts.as_mut().ok_or_else(standby)?;
        interrupts.change(self.function.as_mut(), call.index, &call.action, handles)
    }

    /// A standby becomes the one that serves; done again, it changes nothing. Refused while the
    /// backend still cleans up after the one before.
    fn take_over(&mut self) -> Result<u16, Failure> {
        if let Some(interrupts) = &self.interrupts {
            return Ok(interrupts.vectors());
        }
        let set_up = Interrupts::new(self.function.as_mut(), self.entries);
        let interrupts = set_up.map_err(|error| failure(&error))?;
        let vectors = interrupts.vectors();
        self.interrupts = Some(interrupts);
        Ok(vectors)
    }
}

impl Serve for FunctionProcess {
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
            Request::Access(call) => {
                let value = alone.and_then(|()| self.access(&call));
                answer.send(&call, value)?;
            }
            Request::ReadConfig(call) => {
                let bytes = alone.and_then(|()| self.read_config(call.offset, call.length));
                answer.send(&call, bytes)?;
            }
            Request::Interrupts(call) => {
                let done = self.change_interrupts(&call, handles);
                answer.send(&call, done)?;
            }
            Request::Reset(call) => {
                let done = alone.and_then(|()| config::reset(self.function.as_mut()));
                answer.send(&call, done)?;
            }
            Request::GetStatistics(call) => {
                let statistics = self.interrupts.as_ref().map(Interrupts::statistics);
                answer.send(&call, alone.map(|()| statistics.unwrap_or_default()))?;
            }
            Request::TakeOver(call) => {
                let vectors = alone.and_then(|()| self.take_over());
                answer.send(&call, vectors)?;
            }
            Request::Companion(call) => match one_beside(handles) {
                Ok(tube) => {
                    if let Some(before) = self.companion.take() {
                        self.left = before.end(&self.memory);
                    }
                    let owed = answer.owed();
                    let joins = Companion::join(tube, call.layout, call.max_entries, owed);
                    self.companion = Some(joins);
                }
                Err(failure) => answer.send(&call, Err(failure))?,
            },
            Request::AddMemory(call) => {
                let added = one_beside(handles).and_then(|fd| {
                    self.memory.add(call.base, call.size, fd, call.offset, call.writable)
                });
                answer.send(&call, added)?;
            }
            Request::RemoveMemory(call) => {
                let removed = alone.and_then(|()| self.memory.remove(call.base));
                answer.send(&call, removed)?;
            }
            Request::Doorbell(call) => match (alone, &mut self.companion) {
                (Ok(()), Some(companion)) => companion.ring(&self.memory, &call, answer.owed()),
                (Ok(()), None) => {
                    let none = start::invalid("This function has no companion".to_owned());
                    answer.send(&call, Err(none))?;
                }
                (Err(failure), _) => answer.send(&call, Err(failure))?,
            },
            Request::Ping(call) => answer.send::<Request, _>(&call, alone)?,
            Request::Shutdown(call) => {
                answer.send::<Request, _>(&call, alone)?;
                return Ok(false);
            }
            Request::UseLane(call) => {
                self.lane = Some(Lane::join(handles, &call)?);
                answer.send::<Request, _>(&call, Ok(()))?;
            }
            // See `fault`.
            Request::Misbehave(_) => {}
        }
        Ok(true)
    }
}
