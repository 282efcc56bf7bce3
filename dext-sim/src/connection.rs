//! One connection: a registry look-up, or after `Open` one `io_connect_t`.
//!
//! Runs in a thread of its own. It distrusts the client, which may send anything, read nothing, and
//! stay for as long as it likes once it has opened a function.

use std::time::Duration;

use ipc::event::Signaller;
use ipc::tube::HandshakeError;
use ipc::wire::dext::{Client, IoReturn, MAX_SCALARS, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, Tube, TubeError};

use crate::limits::Admission;
use crate::limits::MAX_LINES;
use crate::server::Registry;
use crate::sys;
use crate::user_client::UserClient;

/// How long a client may take to take a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may be connected and have opened nothing.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection.
pub(crate) struct Connection<'r> {
    tube: Tube,
    registry: &'r Registry,
    peer: Client,
    client: Option<UserClient>,
    complaints: u32,
    /// Held for its drop, after everything else.
    _admission: Admission,
}

impl<'r> Connection<'r> {
    pub(crate) fn new(
        tube: Tube,
        registry: &'r Registry,
        process: Option<u32>,
        admission: Admission,
    ) -> Self {
        let pid = process.unwrap_or(0);
        let peer = Client { pid, name: process.map(sys::name).unwrap_or_default() };
        Self { tube, registry, peer, client: None, complaints: 0, _admission: admission }
    }

    /// Serves the client until it is gone or out of step.
    pub(crate) fn run(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let looking = Deadline::after(LOOKUP_TIMEOUT);
        self.greet(looking)?;
        while self.serve_one(looking)? {}
        Ok(())
    }

    /// Introduces itself, and has the client do so.
    pub(crate) fn greet(&mut self, deadline: Deadline) -> Result<(), HandshakeError> {
        self.tube.handshake(Role::Dext, Role::DextClient, deadline).map(drop)
    }

    /// Serves one request; `false` when the client is gone. One that has opened nothing is waited for
    /// until `looking`.
    pub(crate) fn serve_one(
        &mut self,
        looking: Deadline,
    ) -> Result<bool, Box<dyn std::error::Error>> {
        // A client that has opened a function may be silent for as long as it lives.
        let forever = Deadline::after(Duration::MAX);
        let deadline = if self.client.is_some() { forever } else { looking };
        match self.tube.receive::<Request>(deadline) {
            Ok(received) => self.handle(received.id, received.message, received.handles)?,
            Err(TubeError::Codec(error)) => {
                self.complain(&format!("malformed request: {error}"));
                self.reply(0, Err(IoReturn::BAD_ARGUMENT))?;
            }
            Err(TubeError::Disconnected) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// A line in the log, within the connection's budget.
    fn complain(&mut self, what: &str) {
        let Client { pid, name } = &self.peer;
        if self.complaints < MAX_LINES {
            tracing::warn!("client {pid} ({name}): {what}");
        } else if self.complaints == MAX_LINES {
            tracing::warn!("client {pid} ({name}): no more lines of this connection");
        }
        self.complaints = self.complaints.saturating_add(1);
    }

    fn handle(&mut self, id: u32, request: Request, handles: Handles) -> Result<(), TubeError> {
        match request {
            Request::Services => {
                let services = Reply::Services(self.registry.services());
                self.tube.send(id, &services, &[], Deadline::after(REPLY_TIMEOUT))
            }
            Request::Open { service, kind } => {
                let opened = self.open(service, kind, handles);
                self.reply(id, opened.map(|()| Vec::new()))
            }
            Request::Call { selector, inputs, outputs, backing } => {
                let behind = backing.zip(handles.one().ok());
                let room = usize::try_from(outputs).unwrap_or(usize::MAX).min(MAX_SCALARS);
                let returned = scalars(&inputs)
                    .and_then(|()| self.connected()?.call(selector, &inputs, room, behind));
                self.reply(id, returned)
            }
            Request::CallAsync { selector, inputs } => {
                let returned =
                    scalars(&inputs).and_then(|()| self.connected()?.call_async(selector, &inputs));
                self.reply(id, returned)
            }
            Request::Map { kind } => match self.connected().and_then(|client| client.map(kind)) {
                Err(code) => self.reply(id, Err(failed_map(code))),
                Ok(memory) => {
                    use std::os::fd::AsFd as _;
                    let outputs = vec![memory.size()];
                    let reply = Reply::Return { code: IoReturn::SUCCESS, outputs };
                    self.tube.send(id, &reply, &[memory.as_fd()], Deadline::after(REPLY_TIMEOUT))
                }
            },
        }
    }

    fn open(&mut self, service: u64, kind: u32, handles: Handles) -> Result<(), IoReturn> {
        let completion = handles.one().map_err(|_| IoReturn::BAD_ARGUMENT)?;
        if self.client.is_some() {
            return Err(IoReturn::STILL_OPEN);
        }
        let completion = Signaller::from_peer(completion).map_err(|error| {
            self.complain(&format!("completions cannot be signalled: {error}"));
            IoReturn::BAD_ARGUMENT
        })?;
        let opened = self.registry.open(service, kind, completion, self.peer.clone());
        self.client = Some(opened?);
        Ok(())
    }

    fn connected(&mut self) -> Result<&mut UserClient, IoReturn> {
        self.client.as_mut().ok_or(IoReturn::NOT_OPEN)
    }

    fn reply(&mut self, id: u32, returned: Result<Vec<u64>, IoReturn>) -> Result<(), TubeError> {
        let reply = match returned {
            Ok(outputs) => Reply::Return { code: IoReturn::SUCCESS, outputs },
            Err(code) => Reply::Return { code, outputs: Vec::new() },
        };
        self.tube.send(id, &reply, &[], Deadline::after(REPLY_TIMEOUT))
    }
}

/// What IOConnectMapMemory64 says of what the dext said: the kernel's wrapper turns every failure
/// into BadArgument. Only where the message does not even reach the kernel's side is it another.
fn failed_map(code: IoReturn) -> IoReturn {
    if code == IoReturn::PORT_DEAD { code } else { IoReturn::BAD_ARGUMENT }
}

fn scalars(inputs: &[u64]) -> Result<(), IoReturn> {
    if inputs.len() <= MAX_SCALARS { Ok(()) } else { Err(IoReturn::BAD_ARGUMENT) }
}
