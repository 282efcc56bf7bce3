//! The client that a front end serves: its connection goes on too, so that it waits for its answer and sees nothing
//! else.
//!
//! A front end (vfio-user) gives the keeper the client's socket, a pipe for what it is answered, a file in memory with
//! whatever the front end knows of the client, whose layout is its own, and the event of each vector. What is passed on
//! is put together here and checked for what it is; what it means is the front end's to check. A client goes on with
//! its function, and not otherwise: from the moment at which that is not kept any more, nothing is kept of its client.
//! Where the client alone is not, what the front end knows of it is, until what it wrote into the function is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipc::{PciAddress, SharedMemory};
use rustix::fs::{FileType, OFlags};
use rustix::net::{AddressFamily, Shutdown, SocketType, getsockname, sockopt};

use super::StoreError;
use super::group::{Parts, take};
use super::manager::Manager;
use super::names::{ClientPart, Name};
use crate::limits::MAX_CLIENT_STATE;

/// What keeps the one client of a function. Dropped, it leaves to a next instance what is known of the client, for as
/// long as the function is kept; and all of one that was left and that nobody went on with.
#[derive(Debug)]
pub struct KeptClient {
    manager: Arc<Manager>,
    address: PciAddress,
    has_begun: AtomicBool,
}

impl KeptClient {
    pub(super) fn new(manager: Arc<Manager>, address: PciAddress) -> Self {
        Self { manager, address, has_begun: AtomicBool::new(false) }
    }

    /// The function.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Has a client kept: what is known of it, which says too what is to be put back when it is gone, and is kept for
    /// that as long as its function, and then its socket and both ends of the pipe. Of one that was left it is said
    /// again, since the keeper may have closed it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the client is kept then but what is known of it.
    pub fn begin(
        &self,
        socket: BorrowedFd<'_>,
        (out, into): (BorrowedFd<'_>, BorrowedFd<'_>),
        session: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        self.has_begun.store(true, Ordering::Relaxed);
        let parts = [
            (ClientPart::Socket, socket),
            (ClientPart::AnswersOut, out),
            (ClientPart::AnswersIn, into),
        ];
        let stored = self.manager.begin_client(self.address, session);
        let store = |(part, fd)| self.manager.store_client(self.address, part, fd);
        stored.and_then(|()| parts.into_iter().try_for_each(store)).inspect_err(|_| self.abandon())
    }

    /// Has an event kept by the name of a vector, by which there is none or it was removed. A keeper takes an open file
    /// once, whatever it is called.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the client is kept then but what is known of it.
    pub fn event(&self, index: u8, vector: u16, event: BorrowedFd<'_>) -> Result<(), StoreError> {
        let part = ClientPart::Event(index, vector);
        let stored = self.manager.store_client(self.address, part, event);
        stored.inspect_err(|_| self.abandon())
    }

    /// The event of this name is not kept any more.
    pub fn remove_event(&self, index: u8, vector: u16) {
        self.manager.remove_client(self.address, ClientPart::Event(index, vector));
    }

    /// Nothing of the client is kept any more but what is known of it: until that is put back which it says.
    pub fn abandon(&self) {
        self.manager.abandon_client(self.address);
    }

    /// Nothing of the client is kept any more: what it left is taken back.
    pub fn give_up(&self) {
        self.manager.forget_client(self.address);
    }
}

impl Drop for KeptClient {
    fn drop(&mut self) {
        if self.has_begun.load(Ordering::Relaxed) {
            self.manager.leave_client(self.address);
        }
    }
}

/// A client that an instance of the front end left which is dead.
#[derive(Debug)]
pub struct LeftClient {
    /// The connection to it.
    pub socket: UnixStream,
    /// Both ends of the pipe for what it is answered: where that is taken out, and where it is put in.
    pub answers: (OwnedFd, OwnedFd),
    /// How many bytes are in the pipe.
    pub staged: usize,
    /// What the front end knew of it.
    pub session: SharedMemory,
    /// The events that were kept, by interrupt index and vector.
    pub events: BTreeMap<(u8, u16), OwnedFd>,
    /// What keeps it from here on.
    pub keeping: KeptClient,
}

/// What was known of a client that does not go on, while its function does: what it says is to be put back
/// ([`KeptClient::give_up`] then). Dropped, it stays with the keeper for a next instance.
#[derive(Debug)]
pub struct LeftSession {
    /// It.
    pub session: SharedMemory,
    /// What keeps it.
    pub keeping: KeptClient,
}

/// What was left of clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Those that can be gone on with.
    pub(super) whole: BTreeMap<PciAddress, LeftClient>,
    /// Of the others what was known, if it can be read and their functions go on; and why.
    pub(super) sessions: BTreeMap<PciAddress, LeftSession>,
    pub(super) unusable: Vec<(PciAddress, Arc<StoreError>)>,
}

impl Clients {
    /// All that were left.
    pub(super) fn all(
        manager: &Arc<Manager>,
        passed: BTreeMap<PciAddress, Parts>,
        goes_on: impl Fn(PciAddress) -> bool,
    ) -> Self {
        let mut all = Self::default();
        for (address, mut parts) in passed {
            manager.client_left(address, parts.keys().copied());
            let keeping = KeptClient::new(Arc::clone(manager), address);
            let socket = parts.get(&Name::Client(address, ClientPart::Socket));
            let socket = socket.and_then(|found| found.first()?.try_clone().ok());
            let session = match goes_on(address) {
                true => session_of(address, &mut parts),
                false => Err(StoreError::WithoutFunction),
            };
            let error = match session.map(|session| (session, Connected::of(address, parts))) {
                Ok((session, Ok(connected))) => {
                    let Connected { socket, answers, staged, events } = connected;
                    let client = LeftClient { socket, answers, staged, session, events, keeping };
                    all.whole.insert(address, client);
                    continue;
                }
                Ok((session, Err(error))) => {
                    keeping.abandon();
                    all.sessions.insert(address, LeftSession { session, keeping });
                    error
                }
                Err(error) => {
                    keeping.give_up();
                    error
                }
            };
            // Whoever else has it open.
            let _ = socket.map(|socket| rustix::net::shutdown(&socket, Shutdown::Both));
            all.unusable.push((address, Arc::new(error)));
        }
        all
    }
}

fn absurd(what: &str) -> StoreError {
    StoreError::Absurd(format!("its client's {what}"))
}

fn session_of(address: PciAddress, parts: &mut Parts) -> Result<SharedMemory, StoreError> {
    let session = take(parts, Name::Client(address, ClientPart::Session))?;
    let size = SharedMemory::size_of(&session).ok().filter(|size| *size <= MAX_CLIENT_STATE);
    let session = size.map(|size| SharedMemory::from_peer(session, size));
    session.and_then(Result::ok).ok_or_else(|| absurd("session is in no memory of ours"))
}

/// Everything of a client but what is known of it.
struct Connected {
    socket: UnixStream,
    answers: (OwnedFd, OwnedFd),
    staged: usize,
    events: BTreeMap<(u8, u16), OwnedFd>,
}

impl Connected {
    fn of(address: PciAddress, mut parts: Parts) -> Result<Self, StoreError> {
        if parts.is_empty() {
            return Err(StoreError::Lost);
        }
        let mut next = |part| take(&mut parts, Name::Client(address, part));
        let socket = next(ClientPart::Socket)?;
        let answers = (next(ClientPart::AnswersOut)?, next(ClientPart::AnswersIn)?);
        let mut events = BTreeMap::new();
        let numbers: BTreeSet<Name> = parts.keys().copied().collect();
        for name in numbers {
            if let Name::Client(_, ClientPart::Event(index, vector)) = name {
                events.insert((index, vector), take(&mut parts, name)?);
            }
        }
        let is_stream = sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        let family = getsockname(&socket).map(|name| name.address_family());
        if !is_stream || family != Ok(AddressFamily::UNIX) {
            return Err(absurd("socket is none"));
        }
        if !is_one_pipe(&answers.0, &answers.1) {
            return Err(absurd("answers are in no pipe, or in two"));
        }
        let staged = rustix::io::ioctl_fionread(&answers.0)
            .map_err(|error| StoreError::Passed(error.into()))?;
        let staged = usize::try_from(staged).unwrap_or(usize::MAX);
        Ok(Self { socket: socket.into(), answers, staged, events })
    }
}

impl LeftClient {
    /// Every descriptor of it.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = [
            self.socket.as_fd(),
            self.answers.0.as_fd(),
            self.answers.1.as_fd(),
            self.session.as_fd(),
        ];
        own.into_iter().chain(self.events.values().map(AsFd::as_fd))
    }

    /// Sends it away: it sees the end of its connection. What was known of it stays.
    pub fn send_away(self) -> LeftSession {
        self.keeping.abandon();
        // Whoever else has the socket open.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        LeftSession { session: self.session, keeping: self.keeping }
    }
}

/// Whether these are the ends of one pipe, to be read from and to be written to.
fn is_one_pipe(out: &OwnedFd, into: &OwnedFd) -> bool {
    let seen = |fd: &OwnedFd| {
        let stat = rustix::fs::fstat(fd).ok()?;
        let mode = rustix::fs::fcntl_getfl(fd).ok()? & OFlags::ACCMODE;
        let is_pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        is_pipe.then_some(((stat.st_dev, stat.st_ino), mode))
    };
    match (seen(out), seen(into)) {
        (Some((one, reads)), Some((other, writes))) => {
            one == other && reads == OFlags::RDONLY && writes == OFlags::WRONLY
        }
        _ => false,
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[path = "client_tests.rs"]
mod tests;
