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

    fn connect(&self) -> Result<Tube, DextError> {
        let no_dext =
            |why: String| DextError::NoDext { place: format!("sim:{}", self.path.display()), why };
        let mut tube = Tube::connect(&self.path).map_err(|error| no_dext(error.to_string()))?;
        tube.handshake(Role::DextClient, Role::Dext, Deadline::after(TIMEOUT))
            .map_err(|error| no_dext(ipc::chain(&error)))?;
        Ok(tube)
    }
}

impl Registry for SimulatedRegistry {
    fn services(&self) -> Result<Vec<Service>, DextError> {
        let mut socket = Socket { tube: self.connect()?, next: 1 };
        match socket.exchange(&Request::Services, &[]) {
            Ok((Reply::Services(services), _)) => Ok(services),
            Ok(_) => Err(naming("Services", SelectorError::Invalid("another reply".to_owned()))),
            Err(error) => Err(naming("Services", SelectorError::Tube(error))),
        }
    }

    fn open(&self, service: u64, kind: u32) -> Result<Box<dyn UserClient>, DextError> {
        let no_event = |error: std::io::Error| naming("Open", SelectorError::Tube(error.into()));
        let completion = Event::new().map_err(no_event)?;
        let signaller = completion.signaller().map_err(no_event)?;
        let mut socket = Socket { tube: self.connect()?, next: 1 };
        socket
            .call(&Request::Open { service, kind }, &[signaller.as_fd()], &mut [])
            .map_err(|error| naming("Open", error))?;
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
    fn exchange(
        &mut self,
        request: &Request,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Handles), TubeError> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let deadline = Deadline::after(TIMEOUT);
        self.tube.send(id, request, handles, deadline)?;
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
        let (reply, handles) = self.exchange(request, handles).map_err(SelectorError::Tube)?;
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
        Ok(handles)
    }
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
        let memory = SharedMemory::from_peer(fd).map_err(|error| invalid(error.to_string()))?;
        if memory.size() != size[0] {
            return Err(invalid(format!("size is {}, the dext said {}", memory.size(), size[0])));
        }
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
        vec![self.socket.tube.as_fd(), self.completion.as_fd()]
    }
}
