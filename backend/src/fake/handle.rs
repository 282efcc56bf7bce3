//! A function of the fake's that a process has open.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, MutexGuard};

use ipc::wire::common::{BarInfo, Identity};
use ipc::{DeviceMemory, Event, PciAddress, SharedMemory, Window};

use super::description::FakeInterrupts;
use super::state::{Claim, FakeShared, FakeState, FunctionState, Holder, Notified};
use super::{NOT_CLAIMED, ON_PURPOSE, Operation};
use crate::Source;
use crate::error::{BackendError, ErrorKind};
use crate::function::{Liveness, OpenFunction, Reset, ResetKind, ServedFunction};
use crate::group::DmaSpace;
use crate::interrupts::{Delivery, VectorSet};

/// One function, open in one process.
pub(super) struct Handle {
    shared: Arc<FakeShared>,
    pub(super) holder: Holder,
    life: u64,
    identity: Identity,
    interrupts: FakeInterrupts,
    pub(super) dma: DmaSpace,
    pub(super) window_granule: u64,
    pub(super) handed: bool,
    survives: bool,
    opened: [bool; 6],
    completion: Event,
    liveness: UnixStream,
    pub(super) token: Arc<SharedMemory>,
    pub(super) request: Arc<Event>,
}

impl Handle {
    pub(super) fn new(
        shared: &Arc<FakeShared>,
        state: &FakeState,
        function: &FunctionState,
        holder: Holder,
    ) -> io::Result<Self> {
        let made = &function.made;
        Ok(Self {
            shared: Arc::clone(shared),
            holder,
            life: state.life,
            identity: made.identity,
            interrupts: made.interrupts,
            dma: made.dma,
            window_granule: made.window_granule,
            handed: made.handed,
            survives: made.survives,
            opened: [false; 6],
            completion: Event::new()?,
            liveness: state.liveness()?,
            token: Arc::clone(&function.token),
            request: Arc::clone(&function.request),
        })
    }

    pub(super) fn survives(&self) -> bool {
        self.survives
    }

    pub(super) fn token(&self) -> Arc<SharedMemory> {
        Arc::clone(&self.token)
    }

    /// Whether this is how a process comes by it that serves it.
    pub(super) fn is_opened_by(&self, source: &Source) -> bool {
        match source {
            Source::Own | Source::OwnAt(_) => !self.handed,
            Source::Handed(descriptors) => self.handed && self.recognises(descriptors),
            Source::Adopted(_) | Source::HandedGroup(_) | Source::HandedDevices(_) => false,
        }
    }

    /// Takes over what a dead process left, with what it left for that.
    pub(super) fn adopt(&self, descriptors: &[OwnedFd]) -> bool {
        let mut state = self.shared.state();
        let Some(function) = state.functions.get_mut(&self.identity.address) else { return false };
        if !self.recognises(descriptors) {
            return false;
        }
        match function.claim {
            Some(Claim::Left) => {}
            // It was given back before the process died.
            None => return true,
            Some(Claim::By(_)) => return false,
        }
        function.claim = Some(Claim::By(self.holder));
        for region in function.dma.values_mut() {
            (region.holder, region.adopted) = (self.holder, true);
        }
        true
    }

    /// What a dead process left is not kept any more by whoever opens the function again.
    pub(super) fn begin_anew(&self) {
        let mut state = self.shared.state();
        let function = state.functions.get_mut(&self.identity.address);
        if let Some(function) = function.filter(|one| one.claim == Some(Claim::Left)) {
            (function.claim, function.kernel) = (None, None);
            function.dma.clear();
        }
    }

    /// Whether one of these descriptors is this function's own.
    fn recognises(&self, descriptors: &[OwnedFd]) -> bool {
        let memory = |fd: BorrowedFd<'_>| {
            let memory = SharedMemory::from_trusted(fd.try_clone_to_owned().ok()?, 0).ok()?;
            Some(DeviceMemory::from(memory))
        };
        let Some(own) = memory(self.token.as_fd()) else { return false };
        descriptors.iter().filter_map(|fd| memory(fd.as_fd())).any(|one| one.is_same(&own))
    }

    pub(super) fn error(&self, kind: ErrorKind, operation: Operation, text: &str) -> BackendError {
        BackendError::new(
            kind,
            format!("Function {}", self.identity.address),
            operation.name(),
            text,
        )
    }

    /// A call begins: it waits if it is stalled, and fails if it is to.
    fn enter(&self, operation: Operation) -> Result<MutexGuard<'_, FakeState>, BackendError> {
        let mut state = self.shared.state();
        loop {
            if state.is_dead() || state.life != self.life {
                return Err(self.error(ErrorKind::Lost, operation, "the fake backend is gone"));
            }
            if state.dead.contains(&self.holder.process) {
                return Err(self.error(ErrorKind::Lost, operation, "the process was killed"));
            }
            let suspended = state.suspended.contains(&self.holder.process);
            if !suspended && !state.stalled.contains(&operation) {
                break;
            }
            *state.waiting.entry(operation).or_default() += 1;
            state = self.shared.wait(state);
            *state.waiting.entry(operation).or_default() -= 1;
        }
        let call = (self.identity.address, operation);
        let calls = state.calls.entry(call).or_default();
        *calls += 1;
        let calls = *calls;
        match state.failing.get(&call) {
            Some((good, kind)) if calls > *good => {
                Err(self.error(*kind, operation, "on purpose").with_code(Some(ON_PURPOSE)))
            }
            _ => Ok(state),
        }
    }

    pub(super) fn call<T>(
        &self,
        operation: Operation,
        does: impl FnOnce(&mut FunctionState) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let mut state = self.enter(operation)?;
        match state.functions.get_mut(&self.identity.address) {
            Some(function) => does(function),
            None => Err(self.error(ErrorKind::Gone, operation, "it is not there any more")),
        }
    }

    /// [`Handle::call`] of what needs that somebody holds the claim.
    pub(super) fn claimed<T>(
        &self,
        operation: Operation,
        does: impl FnOnce(&mut FunctionState) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.call(operation, |function| {
            if function.claim.is_none() {
                let refused = self.error(ErrorKind::Refused, operation, "it is not claimed");
                return Err(refused.with_code(Some(NOT_CLAIMED)));
            }
            does(function)
        })
    }

    /// The bytes of an access to config space.
    fn config<'f>(
        &self,
        operation: Operation,
        function: &'f mut FunctionState,
        offset: u32,
        width: u8,
    ) -> Result<&'f mut [u8], BackendError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = function.config.get_mut(start..start.saturating_add(width.into()));
        let bytes = bytes.filter(|_| [1, 2, 4].contains(&width));
        bytes.ok_or_else(|| self.error(ErrorKind::Refused, operation, "it is no access"))
    }

    fn window(
        &self,
        operation: Operation,
        function: &FunctionState,
        bar: u8,
    ) -> Result<Arc<Window>, BackendError> {
        let bar = function.bars.get(usize::from(bar)).and_then(Option::as_ref);
        let none = || self.error(ErrorKind::Refused, operation, "there is no such BAR");
        bar.map(|bar| Arc::clone(&bar.window)).ok_or_else(none)
    }

    fn opened(
        &self,
        operation: Operation,
        function: &FunctionState,
        bar: u8,
    ) -> Result<Arc<Window>, BackendError> {
        if self.opened.get(usize::from(bar)).copied().unwrap_or_default() {
            return self.window(operation, function, bar);
        }
        Err(self.error(ErrorKind::Invalid, operation, "the BAR was not opened"))
    }

    /// The interrupts that this handle has set up.
    pub(super) fn notified<T>(
        &self,
        operation: Operation,
        does: impl FnOnce(&mut Notified) -> T,
    ) -> Result<T, BackendError> {
        self.call(operation, |function| {
            let notified = function.notified.as_mut();
            let own = notified.filter(|notified| notified.holder == self.holder);
            let none = || self.error(ErrorKind::Refused, operation, "interrupts are not set up");
            own.map(does).ok_or_else(none)
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.while_suspended(self.holder.process);
        if state.life == self.life
            && let Some(function) = state.functions.get_mut(&self.identity.address)
        {
            function.release(|holder| holder == self.holder);
        }
    }
}

impl OpenFunction for Handle {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn address(&self) -> PciAddress {
        self.identity.address
    }

    fn bars(&mut self) -> Result<[Option<BarInfo>; 6], BackendError> {
        self.call(Operation::Bars, |function| Ok(function.made.bars))
    }

    fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, BackendError> {
        let operation = Operation::ConfigRead;
        self.call(operation, |function| {
            let mut value = [0; 4];
            let bytes = self.config(operation, function, offset, width)?;
            value[..bytes.len()].copy_from_slice(bytes);
            Ok(u32::from_le_bytes(value))
        })
    }

    fn is_claimed(&mut self) -> Result<bool, BackendError> {
        let own = Claim::By(self.holder);
        self.call(Operation::IsClaimed, |function| {
            Ok(function.claim.is_some_and(|claim| claim != own))
        })
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        Some(Liveness::Hangup(self.liveness.as_fd()))
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        let subject = format!("Function {}", self.identity.address);
        BackendError::new(ErrorKind::Lost, subject, operation, "the fake backend is gone")
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut open = self.completion.descriptors();
        open.extend([self.liveness.as_fd(), self.token.as_fd()]);
        open
    }
}

impl Reset for Handle {
    fn reset_kinds(&self) -> &[ResetKind] {
        &[ResetKind::Function]
    }

    fn reset(&mut self, kind: ResetKind) -> Result<(), BackendError> {
        let operation = Operation::Reset;
        if kind != ResetKind::Function {
            return Err(self.error(ErrorKind::Unsupported, operation, "it has no reset of a bus"));
        }
        self.claimed(operation, |function| {
            function.config = function.made.config_space();
            function.resets += 1;
            Ok(())
        })
    }
}

impl ServedFunction for Handle {
    fn config_write(&mut self, offset: u32, width: u8, value: u32) -> Result<(), BackendError> {
        let operation = Operation::ConfigWrite;
        self.call(operation, |function| {
            let bytes = self.config(operation, function, offset, width)?;
            bytes.copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
            Ok(())
        })
    }

    fn open_bar(&mut self, bar: u8) -> Result<u64, BackendError> {
        let operation = Operation::OpenBar;
        let window = self.call(operation, |function| self.window(operation, function, bar))?;
        self.opened[usize::from(bar)] = true;
        Ok(window.length() as u64)
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> Result<u64, BackendError> {
        let operation = Operation::BarRead;
        let window = self.call(operation, |function| self.opened(operation, function, bar))?;
        let read = window.read_width(offset, width);
        read.map_err(|error| self.error(ErrorKind::Refused, operation, &error.to_string()))
    }

    fn bar_write(
        &mut self,
        bar: u8,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), BackendError> {
        let operation = Operation::BarWrite;
        let window = self.call(operation, |function| self.opened(operation, function, bar))?;
        let written = window.write_width(offset, width, value);
        written.map_err(|error| self.error(ErrorKind::Refused, operation, &error.to_string()))
    }

    fn set_up_interrupts(&mut self) -> Result<u16, BackendError> {
        let operation = Operation::SetUpInterrupts;
        self.claimed(operation, |function| {
            if function.made.interrupts == FakeInterrupts::Kernel {
                return Ok(function.made.vectors);
            }
            if function.notified.is_some() {
                return Err(self.error(ErrorKind::Busy, operation, "another process has them"));
            }
            let signaller = self.completion.signaller();
            let signaller = signaller
                .map_err(|error| self.error(ErrorKind::NoSpace, operation, &error.to_string()))?;
            function.notified = Some(Notified {
                holder: self.holder,
                recorded: VectorSet::EMPTY,
                pending: VectorSet::EMPTY,
                armed: true,
                signaller,
            });
            Ok(function.made.vectors)
        })
    }

    fn notification(&self) -> Option<&Event> {
        (self.interrupts == FakeInterrupts::Notified).then_some(&self.completion)
    }

    fn delivery(&mut self) -> Delivery<'_> {
        match self.interrupts {
            FakeInterrupts::Notified => Delivery::Notified(self),
            FakeInterrupts::Kernel => Delivery::Kernel(self),
        }
    }
}
