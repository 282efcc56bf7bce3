//! Connections: one thread each, since a call may be delayed by a fault and must hold up nobody
//! else. A connection begins as a registry look-up and becomes an `io_connect_t` by `Open`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::tube::Listener;
use ipc::wire::dext::{
    CLIENT_TYPE, Client, IoReturn, MAX_SCALARS, Reply, Request, SERVICE_CLASS, Service,
};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Handles, Tube, TubeError};
use rustix::io::Errno;

use crate::function::Function;
use crate::interrupts::ClientId;
use crate::user_client::UserClient;

/// Most connections at once: a client that opens more is closed.
const MAX_CONNECTIONS: usize = 1024;

/// How long a client may take to introduce itself or to take a reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that connections share.
pub(crate) struct Registry {
    pub(crate) functions: Vec<Arc<Function>>,
    next: AtomicU64,
    open: AtomicUsize,
}

impl Registry {
    pub(crate) fn new(functions: Vec<Arc<Function>>) -> Self {
        let (next, open) = (AtomicU64::new(1), AtomicUsize::new(0));
        Self { functions, next, open }
    }

    fn services(&self) -> Vec<Service> {
        let registered = self.functions.iter().filter_map(|function| function.registered());
        let class = || SERVICE_CLASS.to_owned();
        registered.map(|(id, clients)| Service { id, class: class(), clients }).collect()
    }

    fn open(
        &self,
        service: u64,
        kind: u32,
        completion: Signaller,
        client: Client,
    ) -> Result<UserClient, IoReturn> {
        let function = self.functions.iter().find(|function| function.has_service(service));
        let function = function.ok_or(IoReturn::NOT_FOUND)?;
        if kind != CLIENT_TYPE {
            return Err(IoReturn::UNSUPPORTED);
        }
        let id: ClientId = self.next.fetch_add(1, Ordering::Relaxed);
        function.connect(id, service, client)?;
        Ok(UserClient::new(id, Arc::clone(function), completion))
    }
}

/// What the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Client,
    StandardInput,
}

/// Accepts until the listener fails or, when asked for, standard input ends.
pub(crate) fn serve(
    listener: &Listener,
    registry: &Arc<Registry>,
    exit_with_stdin: bool,
) -> std::io::Result<()> {
    let input = std::io::stdin();
    let mut sources = vec![Source::readable(listener, Token::Client)];
    if exit_with_stdin {
        sources.push(Source::readable(&input, Token::StandardInput));
    }
    loop {
        for token in poll::wait(&sources, None)? {
            match token {
                Token::StandardInput if ended(&input) => return Ok(()),
                Token::StandardInput => {}
                Token::Client => accept(listener, registry)?,
            }
        }
    }
}

/// Whether standard input has ended; what came in is of no interest.
fn ended(input: &std::io::Stdin) -> bool {
    match rustix::io::read(input, &mut [0u8; 512]) {
        Ok(bytes) => bytes == 0,
        Err(error) => !matches!(error, Errno::INTR | Errno::AGAIN),
    }
}

fn accept(listener: &Listener, registry: &Arc<Registry>) -> std::io::Result<()> {
    let Some(tube) = listener.try_accept()? else {
        return Ok(());
    };
    if registry.open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        registry.open.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!("{MAX_CONNECTIONS} connections are open: another one is refused");
        return Ok(());
    }
    let registry = Arc::clone(registry);
    std::thread::Builder::new().name("client".to_owned()).spawn(move || {
        let mut connection = Connection { tube, registry: &registry, client: None };
        if let Err(error) = connection.run() {
            tracing::debug!(%error, "connection ended");
        }
        drop(connection);
        registry.open.fetch_sub(1, Ordering::Relaxed);
    })?;
    Ok(())
}

struct Connection<'r> {
    tube: Tube,
    registry: &'r Registry,
    client: Option<UserClient>,
}

impl Connection<'_> {
    fn run(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let peer = peer(&self.tube);
        self.tube.handshake(Role::Dext, Role::DextClient, Deadline::after(PATIENCE))?;
        loop {
            // A client may be silent for as long as it lives.
            let forever = Deadline::after(Duration::MAX);
            let received = match self.tube.receive::<Request>(forever) {
                Ok(received) => received,
                Err(TubeError::Codec(error)) => {
                    tracing::warn!(%error, "a client sent a malformed request");
                    self.reply(0, Err(IoReturn::BAD_ARGUMENT))?;
                    continue;
                }
                Err(TubeError::Disconnected) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.handle(received.id, received.message, received.handles, &peer)?;
        }
    }

    fn handle(
        &mut self,
        id: u32,
        request: Request,
        handles: Handles,
        peer: &Client,
    ) -> Result<(), TubeError> {
        let deadline = Deadline::after(PATIENCE);
        match request {
            Request::Services => {
                let services = Reply::Services(self.registry.services());
                self.tube.send(id, &services, &[], deadline)
            }
            Request::Open { service, kind } => {
                let opened = handles.one().map_err(|_| IoReturn::BAD_ARGUMENT).and_then(|fd| {
                    if self.client.is_some() {
                        return Err(IoReturn::STILL_OPEN);
                    }
                    let completion = Signaller::from_fd(fd);
                    self.registry.open(service, kind, completion, peer.clone())
                });
                let opened = opened.map(|client| self.client = Some(client));
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
                    self.tube.send(id, &reply, &[memory.as_fd()], deadline)
                }
            },
        }
    }

    fn connected(&mut self) -> Result<&mut UserClient, IoReturn> {
        self.client.as_mut().ok_or(IoReturn::NOT_OPEN)
    }

    fn reply(&mut self, id: u32, returned: Result<Vec<u64>, IoReturn>) -> Result<(), TubeError> {
        let reply = match returned {
            Ok(outputs) => Reply::Return { code: IoReturn::SUCCESS, outputs },
            Err(code) => Reply::Return { code, outputs: Vec::new() },
        };
        self.tube.send(id, &reply, &[], Deadline::after(PATIENCE))
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

/// Who is at the other end, for the registry.
fn peer(tube: &Tube) -> Client {
    #[cfg(target_os = "linux")]
    if let Ok(credentials) = rustix::net::sockopt::socket_peercred(tube) {
        let pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or(0);
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim().chars().filter(|c| !c.is_control()).collect();
        return Client { pid, name };
    }
    let _ = tube;
    Client { pid: 0, name: String::new() }
}
