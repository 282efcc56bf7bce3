//! The simulated dext's side of [`UserClient`]: one socket is one connection.
//!
//! Replies come in order and within [`TIMEOUT`]; a dext that breaks that is out of step and the
//! process gives up on it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc::wire::dext::{Backing, IoReturn, Reply, Request, Service};
use ipc::wire::handshake::Role;
use ipc::{Access, Deadline, Event, Handles, SharedMemory, Tube, TubeError};

use crate::{Behind, DextError, Mapped, Registry, SelectorError, UserClient};

/// How long the dext may take: a reset of a real device takes up to a second.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The services of a simulated dext.
#[derive(Debug)]
pub struct SimulatedRegistry {
    path: PathBuf,
}

impl SimulatedRegistry {
    /// The dext that listens at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Connects and asks the first question, which does not wait for the dext to introduce itself.
    fn ask(
        &self,
        operation: &'static str,
        request: &Request,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(Socket, Reply), DextError> {
        let no_dext =
            |why: String| DextError::NoDext { place: format!("sim:{}", self.path.display()), why };
        let failed = |error| naming(operation, SelectorError::Tube(error));
        let deadline = Deadline::after(TIMEOUT);
        let mut tube = Tube::connect(&self.path).map_err(|error| no_dext(error.to_string()))?;
        tube.introduce(Role::DextClient, deadline).map_err(|error| no_dext(ipc::chain(&error)))?;
        let mut socket = Socket { tube, next: 1 };
        let asked = socket.send(request, handles, deadline);
        // Before whatever became of the question: it says why.
        let met = socket.tube.meet(Role::DextClient, Role::Dext, deadline);
        met.map_err(|error| no_dext(ipc::chain(&error)))?;
        let (reply, _) = asked.and_then(|id| socket.receive(id, deadline)).map_err(failed)?;
        Ok((socket, reply))
    }
}

impl Registry for SimulatedRegistry {
    fn services(&self) -> Result<Vec<Service>, DextError> {
        match self.ask("Services", &Request::Services, &[])? {
            (_, Reply::Services(services)) => Ok(services),
            _ => Err(naming("Services", SelectorError::Invalid("another reply".to_owned()))),
        }
    }

    fn open(&self, service: u64, kind: u32) -> Result<Box<dyn UserClient>, DextError> {
        let no_event = |error: std::io::Error| naming("Open", SelectorError::Tube(error.into()));
        let completion = Event::new().map_err(no_event)?;
        let signaller = completion.signaller().map_err(no_event)?;
        let open = Request::Open { service, kind };
        let (socket, reply) = self.ask("Open", &open, &[signaller.as_fd()])?;
        returned(reply, &mut []).map_err(|error| naming("Open", error))?;
        Ok(Box::new(SimulatedClient { socket, completion }))
    }
}

fn naming(operation: &'static str, error: SelectorError) -> DextError {
    crate::client::named("dext", operation, error)
}

struct Socket {
    tube: Tube,
    next: u32,
}

impl Socket {
    fn send(
        &mut self,
        request: &Request,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<u32, TubeError> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.tube.send(id, request, handles, deadline)?;
        Ok(id)
    }

    fn receive(&mut self, id: u32, deadline: Deadline) -> Result<(Reply, Handles), TubeError> {
        let received = self.tube.receive::<Reply>(deadline)?;
        if received.id == id {
            Ok((received.message, received.handles))
        } else {
            Err(TubeError::Poisoned)
        }
    }

    fn call(
        &mut self,
        request: &Request,
        handles: &[BorrowedFd<'_>],
        outputs: &mut [u64],
    ) -> Result<Handles, SelectorError> {
        let deadline = Deadline::after(TIMEOUT);
        let (reply, handles) = self
            .send(request, handles, deadline)
            .and_then(|id| self.receive(id, deadline))
            .map_err(SelectorError::Tube)?;
        returned(reply, outputs)?;
        Ok(handles)
    }
}

/// What a call returned; fills `outputs`.
fn returned(reply: Reply, outputs: &mut [u64]) -> Result<(), SelectorError> {
    let Reply::Return { code, outputs: filled } = reply else {
        return Err(SelectorError::Invalid("another reply than asked for".to_owned()));
    };
    if code != IoReturn::SUCCESS {
        return Err(SelectorError::Code(code));
    }
    SelectorError::unless_filled(filled.len(), outputs.len())?;
    for (output, value) in outputs.iter_mut().zip(filled) {
        *output = value;
    }
    Ok(())
}

struct SimulatedClient {
    socket: Socket,
    completion: Event,
}

impl UserClient for SimulatedClient {
    fn call(
        &mut self,
        selector: u32,
        inputs: &[u64],
        outputs: &mut [u64],
        behind: Option<Behind<'_>>,
    ) -> Result<(), SelectorError> {
        let request = Request::Call {
            selector,
            inputs: inputs.to_vec(),
            outputs: u32::try_from(outputs.len()).unwrap_or(u32::MAX),
            backing: behind
                .map(|behind| Backing { offset: behind.offset, writable: behind.writable }),
        };
        let handle = behind.map(|behind| behind.memory.as_fd());
        self.socket.call(&request, handle.as_slice(), outputs).map(drop)
    }

    fn call_async(&mut self, selector: u32, inputs: &[u64]) -> Result<(), SelectorError> {
        let request = Request::CallAsync { selector, inputs: inputs.to_vec() };
        self.socket.call(&request, &[], &mut []).map(drop)
    }

    fn map(&mut self, kind: u32) -> Result<Mapped, SelectorError> {
        let mut size = [0];
        let handles = self.socket.call(&Request::Map { kind }, &[], &mut size)?;
        let invalid = |why: String| SelectorError::Invalid(why);
        let fd = handles.one().map_err(|error| invalid(error.to_string()))?;
        let memory = SharedMemory::from_peer(fd, size[0]);
        let memory = memory.map_err(|error| invalid(error.to_string()))?;
        let window =
            memory.map_all(Access::ReadWrite).map_err(|error| invalid(error.to_string()))?;
        Ok(Mapped { window, memory: Some(memory) })
    }

    fn completion(&self) -> &Event {
        &self.completion
    }

    fn liveness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.tube.as_fd())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut open = self.completion.descriptors();
        open.push(self.socket.tube.as_fd());
        open
    }
}
