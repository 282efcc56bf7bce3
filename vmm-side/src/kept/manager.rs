//! The keeper's socket, and what every group that is kept shares: the files of guest memory, and what became of each
//! function.
//!
//! A message is one datagram with at most one descriptor. Whoever should take them is waited for once: one that has no
//! room in time, or is gone, is told without waiting from then on, first what it is to close, until it takes messages
//! again. It is given no more than it has room for. A change of what is shared and its message are one: no other thread
//! comes between.

mod clients;

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
use super::names::Name;
use crate::limits::MAX_KEPT_FILES;

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
    /// How many descriptors the keeper has room for.
    room: usize,
    state: Mutex<ManagerState>,
}

#[derive(Debug, Default)]
struct ManagerState {
    is_silent: bool,
    /// It is given nothing any more.
    is_over: bool,
    /// What the keeper has, also what it is to close and does not know yet; and what else it has of ours, by names that
    /// nobody here knows.
    names: BTreeSet<Name>,
    unknown: usize,
    /// What it was not told to close yet: each once, however often it was to be, so as many as it can have.
    removals: BTreeSet<Name>,
    files: Vec<KeptFile>,
    functions: BTreeMap<PciAddress, Result<(), Arc<StoreError>>>,
    /// What there is of the client of each function.
    clients: BTreeMap<PciAddress, clients::Client>,
}

impl ManagerState {
    /// How long there may be no room for a message.
    fn room(&self) -> Duration {
        if self.is_silent { Duration::ZERO } else { ROOM }
    }
}

impl Manager {
    /// Of a keeper that has room for so many descriptors.
    pub(super) fn new(socket: UnixDatagram, room: usize) -> Self {
        ipc::rights::prepare(&socket);
        Self { socket, room, state: Mutex::default() }
    }

    /// The keeper has a descriptor by this name already, or by one that nobody here knows.
    pub(super) fn has(&self, name: Option<Name>) {
        let mut state = self.state.lock();
        match name {
            Some(name) => drop(state.names.insert(name)),
            None => state.unknown += 1,
        }
    }

    /// The socket to it.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Gives it a descriptor.
    ///
    /// # Errors
    /// [`StoreError::Silent`] and [`StoreError::Full`].
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
        if state.is_over || !state.removals.is_empty() {
            return Err(StoreError::Silent(io::ErrorKind::TimedOut.into()));
        }
        let taken = state.names.len() + state.unknown;
        if !state.names.contains(&name) && taken >= self.room {
            return Err(StoreError::Full(self.room));
        }
        // FDPOLL=0: a socket is kept also when its peer is gone.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
        self.tell(&text, &[fd], state.room()).inspect_err(|_| state.is_silent = true)?;
        state.is_silent = false;
        state.names.insert(name);
        Ok(())
    }

    /// Has it close what is kept by this name, now or when it has room again.
    pub(super) fn remove(&self, name: Name) {
        self.remove_in(&mut self.state.lock(), name);
    }

    fn remove_in(&self, state: &mut ManagerState, name: Name) {
        state.removals.insert(name);
        self.catch_up(state);
    }

    /// Has it close everything, records first, since what no record has a next instance closes too; from here on it is
    /// given nothing. Whether it was told all of that by `until`: whoever stores something holds this up.
    pub(super) fn close(&self, until: Deadline) -> bool {
        let Some(mut state) = self.state.try_lock_until(until.instant()) else { return false };
        (state.is_over, state.removals) = (true, BTreeSet::new());
        let (records, others): (Vec<Name>, Vec<Name>) =
            std::mem::take(&mut state.names).into_iter().partition(|name| name.is_record());
        let told = |name| {
            let left = until.instant().saturating_duration_since(std::time::Instant::now());
            self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[], left).is_ok()
        };
        records.into_iter().chain(others).all(told)
    }

    /// Tells it what it is to close. Once that is all told it is silent no more.
    fn catch_up(&self, state: &mut ManagerState) {
        let waiting = state.removals.len();
        while let Some(name) = state.removals.first().copied() {
            let room = state.room();
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
            state.names.remove(&name);
        }
        state.is_silent &= waiting == 0;
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
            self.function_is_not_kept(&mut state, address);
        }
        let is_kept = matches!(now, Some(Ok(())));
        match now {
            Some(now) => drop(state.functions.insert(address, now)),
            None => drop(state.functions.remove(&address)),
        }
        if is_kept {
            self.function_is_kept(&mut state, address);
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
    fn a_keeper_is_told_to_close_everything_once_records_first_and_is_given_nothing_more() {
        let (keeper, socket) = UnixDatagram::pair().unwrap();
        let manager = Manager::new(socket, usize::MAX);
        let key = "01:00.0".parse().unwrap();
        let file = tempfile::tempfile().unwrap();
        for name in [Name::Memory(1), Name::Group(key, 0), Name::Memory(2), Name::Record(key)] {
            manager.store(name, file.as_fd()).unwrap();
        }
        manager.remove(Name::Memory(2));
        // What it was passed on.
        manager.has(Some(Name::Memory(7)));
        assert!(manager.close(Deadline::after(ROOM)));
        assert!(manager.store(Name::Memory(3), file.as_fd()).is_err());
        let mut heard = Vec::new();
        let mut bytes = [0; 512];
        while let Ok(came) = ipc::rights::receive(&keeper, &mut bytes) {
            heard.push(String::from_utf8(bytes[..came.bytes].to_vec()).unwrap());
        }
        let told = |name: Name| format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        assert_eq!(heard.len(), 9, "{heard:?}");
        assert_eq!(heard[4], told(Name::Memory(2)));
        assert_eq!(heard[5], told(Name::Record(key)));
        for name in [Name::Group(key, 0), Name::Memory(1), Name::Memory(7)] {
            assert!(heard[6..].contains(&told(name)), "{heard:?}");
        }
        // One that takes nothing holds nobody up.
        let (_silent, socket) = UnixDatagram::pair().unwrap();
        let manager = Manager::new(socket, usize::MAX);
        (0..10_000).for_each(|number| manager.has(Some(Name::Memory(number))));
        assert!(!manager.close(Deadline::after(Duration::from_millis(10))));
    }

    #[test]
    fn what_a_silent_keeper_is_to_close_is_waiting_once_however_often_it_is_told() {
        let (keeper, socket) = UnixDatagram::pair().unwrap();
        let manager = Manager::new(socket, usize::MAX);
        drop(keeper);
        for _ in 0..1000 {
            manager.remove(Name::Memory(1));
            manager.remove(Name::Memory(2));
        }
        let waiting = manager.state.lock().removals.clone();
        assert_eq!(waiting, BTreeSet::from([Name::Memory(1), Name::Memory(2)]));
    }
}
