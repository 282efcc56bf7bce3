//! The client that a front end serves: its connection goes on too, so that it waits for its answer and sees nothing
//! else.
//!
//! A front end (vfio-user) gives the keeper the client's socket, a pipe for what it is answered, a file in memory with
//! whatever the front end knows of the client, whose layout is its own, and the event of each vector. What is passed on
//! is put together here and checked for what it is; what it means is the front end's to check. A client goes on with
//! its function, and not otherwise: from the moment at which that is not kept any more, nothing is kept of its client.

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

/// What keeps the one client of a function. Dropping it after [`KeptClient::begin`] gives up everything of the client.
/// Dropped before, it gives up nothing: what an instance before this one left stays for the next one.
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

    /// Has a client kept: its socket, both ends of the pipe, and what is known of it, which comes last. Of one that was
    /// left it is said again, since the keeper may have closed it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the client is kept then.
    pub fn begin(
        &self,
        socket: BorrowedFd<'_>,
        (out, into): (BorrowedFd<'_>, BorrowedFd<'_>),
        session: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        let parts = [
            (ClientPart::Socket, socket),
            (ClientPart::AnswersOut, out),
            (ClientPart::AnswersIn, into),
            (ClientPart::Session, session),
        ];
        self.has_begun.store(true, Ordering::Relaxed);
        let stored = parts
            .into_iter()
            .try_for_each(|(part, fd)| self.manager.store_client(self.address, part, fd));
        stored.inspect_err(|_| self.give_up())
    }

    /// Has the event of a vector kept, which has none or whose event was removed.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the client is kept then.
    pub fn event(&self, index: u8, vector: u16, event: BorrowedFd<'_>) -> Result<(), StoreError> {
        let part = ClientPart::Event(index, vector);
        let stored = self.manager.store_client(self.address, part, event);
        stored.inspect_err(|_| self.give_up())
    }

    /// The event of a vector is not kept any more.
    pub fn remove_event(&self, index: u8, vector: u16) {
        self.manager.remove_client(self.address, ClientPart::Event(index, vector));
    }

    /// Nothing of the client is kept any more.
    pub fn give_up(&self) {
        self.manager.forget_client(self.address);
    }
}

impl Drop for KeptClient {
    fn drop(&mut self) {
        if self.has_begun.load(Ordering::Relaxed) {
            self.give_up();
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

impl LeftClient {
    /// All whose function goes on, and why others do not.
    #[expect(clippy::type_complexity, reason = "two lists by address, made for one caller")]
    pub(super) fn all(
        manager: &Arc<Manager>,
        passed: BTreeMap<PciAddress, Parts>,
        goes_on: impl Fn(PciAddress) -> bool,
    ) -> (BTreeMap<PciAddress, Self>, Vec<(PciAddress, Arc<StoreError>)>) {
        let (mut left, mut unusable) = (BTreeMap::new(), Vec::new());
        for (address, parts) in passed {
            manager.client_left(address, parts.keys().copied());
            let keeping = KeptClient::new(Arc::clone(manager), address);
            let socket = parts.get(&Name::Client(address, ClientPart::Socket));
            let socket = socket.and_then(|found| found.first()?.try_clone().ok());
            let client = match goes_on(address) {
                true => Self::of(keeping, parts),
                false => Err(StoreError::WithoutFunction),
            };
            match client {
                Ok(client) => drop(left.insert(address, client)),
                Err(error) => {
                    manager.forget_client(address);
                    // Whoever else has it open.
                    let _ = socket.map(|socket| rustix::net::shutdown(&socket, Shutdown::Both));
                    unusable.push((address, Arc::new(error)));
                }
            }
        }
        (left, unusable)
    }

    fn of(keeping: KeptClient, mut parts: Parts) -> Result<Self, StoreError> {
        let address = keeping.address;
        let mut next = |part| take(&mut parts, Name::Client(address, part));
        let (socket, session) = (next(ClientPart::Socket)?, next(ClientPart::Session)?);
        let answers = (next(ClientPart::AnswersOut)?, next(ClientPart::AnswersIn)?);
        let mut events = BTreeMap::new();
        let numbers: BTreeSet<Name> = parts.keys().copied().collect();
        for name in numbers {
            if let Name::Client(_, ClientPart::Event(index, vector)) = name {
                events.insert((index, vector), take(&mut parts, name)?);
            }
        }
        let absurd = |what: &str| StoreError::Absurd(format!("its client's {what}"));
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
        let size = SharedMemory::size_of(&session).ok().filter(|size| *size <= MAX_CLIENT_STATE);
        let session = size.map(|size| SharedMemory::from_peer(session, size));
        let session = session
            .and_then(Result::ok)
            .ok_or_else(|| absurd("session is in no memory of ours"))?;
        let staged = usize::try_from(staged).unwrap_or(usize::MAX);
        Ok(Self { socket: socket.into(), answers, staged, session, events, keeping })
    }

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

    /// Sends it away: it sees the end of its connection.
    pub fn send_away(self) {
        self.keeping.give_up();
        // Whoever else has the socket open.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
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
