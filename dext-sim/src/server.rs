//! Who is served: connections get one thread each, since a call may be delayed by a fault and must
//! hold up nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::socket_file::is_shortage;
use ipc::tube::Listener;
use ipc::wire::dext::{CLIENT_TYPE, Client, IoReturn, SERVICE_CLASS, Service};
use rustix::io::Errno;

use crate::connection::Connection;
use crate::function::Function;
use crate::interrupts::ClientId;
use crate::limits::Admissions;
use crate::user_client::UserClient;
use crate::{sys, threads};

/// How long clients wait when this process is out of descriptors or memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// Everything that connections share.
pub(crate) struct Registry {
    pub(crate) functions: Vec<Arc<Function>>,
    next: AtomicU64,
    admissions: Arc<Admissions>,
    /// Connections that were refused since one was taken.
    refused: AtomicU64,
}

impl Registry {
    pub(crate) fn new(functions: Vec<Arc<Function>>, admissions: Arc<Admissions>) -> Self {
        Self { functions, next: AtomicU64::new(1), admissions, refused: AtomicU64::new(0) }
    }

    pub(crate) fn services(&self) -> Vec<Service> {
        let registered = self
            .functions
            .iter()
            .filter_map(|function| function.registered().map(|registered| (function, registered)));
        let class = || SERVICE_CLASS.to_owned();
        let service = |(function, (id, clients)): (&Arc<Function>, _)| {
            let root_bridge = function.root_bridge.clone();
            Service { id, class: class(), root_bridge, clients }
        };
        registered.map(service).collect()
    }

    pub(crate) fn open(
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

/// Takes the next client. Whatever one client is short of, the others are served on.
fn accept(listener: &Listener, registry: &Arc<Registry>) -> std::io::Result<()> {
    let tube = match listener.try_accept() {
        Ok(Some(tube)) => tube,
        Ok(None) => return Ok(()),
        Err(error) if is_shortage(&error) => {
            // It stays in the queue, and nothing tells when a descriptor is there again.
            std::thread::sleep(SHORTAGE_PAUSE);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let process = sys::peer(&tube);
    let admission = match registry.admissions.admit(process) {
        Ok(admission) => admission,
        Err(refusal) => {
            // Once, however many follow: who is refused may try again at once.
            if registry.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!("a connection is refused: {refusal}");
            }
            return Ok(());
        }
    };
    let refused = registry.refused.swap(0, Ordering::Relaxed);
    if refused > 1 {
        tracing::warn!("{refused} connections were refused");
    }
    let shared = Arc::clone(registry);
    let run = move || {
        let mut connection = Connection::new(tube, &shared, process, admission);
        if let Err(error) = connection.run() {
            tracing::debug!(%error, "connection ended");
        }
    };
    if let Err(error) = threads::spawn("client".to_owned(), run) {
        tracing::warn!("a connection is refused: no thread for it: {error}");
    }
    Ok(())
}
