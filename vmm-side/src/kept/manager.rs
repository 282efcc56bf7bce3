//! The keeper's socket, and what every group that is kept shares: the files of guest memory, and what became of each
//! function.
//!
//! A message is one datagram with at most one descriptor. Whoever should take them is waited for once: one that has no
//! room in time, or is gone, is given nothing any more. What it has and is to close it is told all the same, as soon as
//! it has room again. A change of what is shared and its message are one: no other thread comes between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use ipc::{Deadline, PciAddress, SharedMemory};
use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::StoreError;
use super::names::{ClientPart, Name};
use crate::limits::{MAX_KEPT_FILES, MAX_KEPT_OF_CLIENT, MAX_KEPT_OF_CLIENTS};

/// How long the keeper may have no room for a message. Whoever gives a guest memory waits meanwhile.
const ROOM: Duration = Duration::from_secs(1);

/// Which file it is, as the file system knows it, and whether it is open for writing: both may be kept.
type FileId = (rustix::fs::Dev, u64, bool);

/// Which file of guest memory this is.
pub(super) fn file_id(memory: &impl AsFd) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(memory)?;
    let writable = rustix::fs::fcntl_getfl(memory)?.contains(OFlags::RDWR);
    Ok((stat.st_dev, stat.st_ino, writable))
}

/// A file of guest memory that is kept.
#[derive(Debug)]
struct KeptFile {
    number: u32,
    id: FileId,
    /// Groups that have memory in it.
    users: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    state: Mutex<ManagerState>,
}

#[derive(Debug, Default)]
struct ManagerState {
    is_silent: bool,
    /// What it was not told to close yet: each once, however often it was to be, so as many as it can have.
    removals: BTreeSet<Name>,
    files: Vec<KeptFile>,
    functions: BTreeMap<PciAddress, Result<(), Arc<StoreError>>>,
    /// What there is of the client of each function.
    clients: BTreeMap<PciAddress, BTreeSet<Name>>,
}

impl Manager {
    pub(super) fn new(socket: UnixDatagram) -> Self {
        ipc::rights::prepare(&socket);
        Self { socket, state: Mutex::default() }
    }

    /// The socket to it.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Gives it a descriptor.
    ///
    /// # Errors
    /// [`StoreError::Silent`].
    pub(super) fn store(&self, name: Name, fd: BorrowedFd<'_>) -> Result<(), StoreError> {
        self.store_in(&mut self.state.lock(), name, fd)
    }

    fn store_in(
        &self,
        state: &mut ManagerState,
        name: Name,
        fd: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        // What is closed may have this name.
        self.catch_up(state);
        if state.is_silent {
            return Err(StoreError::Silent(io::ErrorKind::BrokenPipe.into()));
        }
        let told = self.tell(&format!("FDSTORE=1\nFDNAME={name}\n"), &[fd], ROOM);
        state.is_silent = told.is_err();
        told
    }

    /// Has it close what is kept by this name, now or when it has room again.
    pub(super) fn remove(&self, name: Name) {
        self.remove_in(&mut self.state.lock(), name);
    }

    fn remove_in(&self, state: &mut ManagerState, name: Name) {
        state.removals.insert(name);
        self.catch_up(state);
    }

    /// Tells it what it is to close.
    fn catch_up(&self, state: &mut ManagerState) {
        while let Some(name) = state.removals.first() {
            let room = if state.is_silent { Duration::ZERO } else { ROOM };
            let text = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
            if let Err(error) = self.tell(&text, &[], room) {
                if !std::mem::replace(&mut state.is_silent, true) {
                    tracing::warn!(
                        "{name} is not closed by the keeper yet: {}",
                        ipc::chain(&error)
                    );
                }
                return;
            }
            state.removals.pop_first();
        }
    }

    fn tell(
        &self,
        text: &str,
        handles: &[BorrowedFd<'_>],
        room: Duration,
    ) -> Result<(), StoreError> {
        let deadline = Deadline::after(room);
        let failed = loop {
            match ipc::rights::send(&self.socket, text.as_bytes(), handles) {
                Ok(_) => return Ok(()),
                Err(error) if ipc::rights::is_full(error, handles) => {
                    match ipc::rights::wait_for_room(&self.socket, error, deadline) {
                        Ok(true) => {}
                        Ok(false) => break io::ErrorKind::TimedOut.into(),
                        Err(error) => break error,
                    }
                }
                Err(error) => break error.into(),
            }
        };
        Err(StoreError::Silent(failed))
    }

    /// Keeps a file of guest memory, on behalf of one group more; its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn share(&self, memory: &SharedMemory) -> Result<u32, StoreError> {
        let id = file_id(memory).map_err(StoreError::Write)?;
        let mut state = self.state.lock();
        if let Some(known) = state.files.iter_mut().find(|file| file.id == id) {
            known.users += 1;
            return Ok(known.number);
        }
        if state.files.len() >= MAX_KEPT_FILES {
            return Err(StoreError::TooManyFiles(MAX_KEPT_FILES));
        }
        let is_free = |number: &u32| state.files.iter().all(|file| file.number != *number);
        let number = (0..).find(is_free).unwrap_or_default();
        self.store_in(&mut state, Name::Memory(number), memory.as_fd())?;
        state.files.push(KeptFile { number, id, users: 1 });
        Ok(number)
    }

    /// A file that the keeper has already, on behalf of one group more.
    pub(super) fn share_left(&self, number: u32, id: FileId) {
        let mut state = self.state.lock();
        match state.files.iter_mut().find(|file| file.number == number) {
            Some(known) => known.users += 1,
            None => state.files.push(KeptFile { number, id, users: 1 }),
        }
    }

    /// A group has no memory any more in the file of this number.
    pub(super) fn release(&self, number: u32) {
        let mut state = self.state.lock();
        let Some(at) = state.files.iter().position(|file| file.number == number) else { return };
        state.files[at].users -= 1;
        if state.files[at].users == 0 {
            state.files.remove(at);
            self.remove_in(&mut state, Name::Memory(number));
        }
    }

    /// What became of a function; `None`: nothing of it is kept any more.
    pub(super) fn note(&self, address: PciAddress, now: Option<Result<(), Arc<StoreError>>>) {
        let mut state = self.state.lock();
        if !matches!(now, Some(Ok(()))) {
            // Its client has nothing to go on with.
            self.forget_client_in(&mut state, address);
        }
        match now {
            Some(now) => drop(state.functions.insert(address, now)),
            None => drop(state.functions.remove(&address)),
        }
    }

    /// Gives it a part of the client of a function, in the place of what it has by that name.
    ///
    /// # Errors
    /// [`StoreError`], also when the function is not kept: a client goes on with its function alone.
    pub(super) fn store_client(
        &self,
        address: PciAddress,
        part: ClientPart,
        fd: BorrowedFd<'_>,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if !matches!(state.functions.get(&address), Some(Ok(()))) {
            return Err(StoreError::NotKept(address));
        }
        let name = Name::Client(address, part);
        // One client must not take the room of others, or that of functions and memory.
        let all: usize = state.clients.values().map(BTreeSet::len).sum();
        let own = state.clients.get(&address).map_or(0, BTreeSet::len);
        let is_there = state.clients.get(&address).is_some_and(|names| names.contains(&name));
        if !is_there && (own >= MAX_KEPT_OF_CLIENT || all >= MAX_KEPT_OF_CLIENTS) {
            return Err(StoreError::NoRoom { own, all });
        }
        self.store_in(&mut state, name, fd)?;
        state.clients.entry(address).or_default().insert(name);
        Ok(())
    }

    /// Has it close a part of the client of a function, if there is one.
    pub(super) fn remove_client(&self, address: PciAddress, part: ClientPart) {
        let (mut state, name) = (self.state.lock(), Name::Client(address, part));
        if state.clients.get_mut(&address).is_some_and(|names| names.remove(&name)) {
            self.remove_in(&mut state, name);
        }
    }

    /// Whether there is something of a client of this function.
    pub(super) fn has_client(&self, address: PciAddress) -> bool {
        self.state.lock().clients.contains_key(&address)
    }

    /// What the keeper has already of the client of a function.
    pub(super) fn client_left(&self, address: PciAddress, names: impl Iterator<Item = Name>) {
        self.state.lock().clients.entry(address).or_default().extend(names);
    }

    /// The client of a function is gone, or is not kept any more.
    pub(super) fn forget_client(&self, address: PciAddress) {
        self.forget_client_in(&mut self.state.lock(), address);
    }

    fn forget_client_in(&self, state: &mut ManagerState, address: PciAddress) {
        for name in state.clients.remove(&address).into_iter().flatten() {
            self.remove_in(state, name);
        }
    }

    /// What became of a function, if anything was noted.
    pub(super) fn noted(&self, address: PciAddress) -> Option<Result<(), Arc<StoreError>>> {
        self.state.lock().functions.get(&address).cloned()
    }
}

/// A descriptor that a keeper passed on, with its name.
pub(super) type Passed = (OwnedFd, String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_silent_keeper_is_to_close_is_waiting_once_however_often_it_is_told() {
        let (keeper, socket) = UnixDatagram::pair().unwrap();
        let manager = Manager::new(socket);
        drop(keeper);
        for _ in 0..1000 {
            manager.remove(Name::Memory(1));
            manager.remove(Name::Memory(2));
        }
        let waiting = manager.state.lock().removals.clone();
        assert_eq!(waiting, BTreeSet::from([Name::Memory(1), Name::Memory(2)]));
    }
}
