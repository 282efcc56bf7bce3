//! Memory of clients that is mapped here, and how much of it there may be.
//!
//! Every mapping takes one of the system's mappings of this process and some of its addresses, of
//! which all functions live together. So each function has a share of both: its clients are refused
//! at its end, and no other function's notice.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};

use crate::limits::MAX_BYTES;
use crate::limits::MAX_BYTES_OF_ONE;
use crate::limits::MAX_MAPPINGS;
use crate::limits::MAX_MAPPINGS_OF_ONE;
use ipc::wire::dext::IoReturn;
use ipc::{Access, PeerMemory, PeerMemoryError};
use parking_lot::Mutex;

/// A number of mappings and of bytes that somebody may have.
#[derive(Debug)]
pub(crate) struct Budget {
    mappings: usize,
    bytes: u64,
    used: Mutex<(usize, u64)>,
}

/// A mapping that counts against a budget until it is dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(mappings: usize, bytes: u64) -> Arc<Self> {
        Arc::new(Self { mappings, bytes, used: Mutex::default() })
    }

    /// The budget of each of so many functions.
    pub(crate) fn of_one_in(functions: usize) -> Arc<Self> {
        let mappings = (MAX_MAPPINGS / functions.max(1)).min(MAX_MAPPINGS_OF_ONE);
        let bytes = (MAX_BYTES / functions.max(1) as u64).min(MAX_BYTES_OF_ONE);
        Self::new(mappings, bytes)
    }

    /// Mappings that somebody has.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn mappings(&self) -> usize {
        self.used.lock().0
    }

    /// Takes one mapping of `bytes` from it, if there is that much left.
    fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut used = self.used.lock();
        let sum = used.1.checked_add(bytes).filter(|sum| *sum <= self.bytes)?;
        if used.0 >= self.mappings {
            return None;
        }
        *used = (used.0 + 1, sum);
        Some(Share { budget: Arc::clone(self), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock();
        used.0 -= 1;
        used.1 -= self.bytes;
    }
}

/// A client's memory, mapped once however often it is registered.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    memory: PeerMemory,
    #[expect(dead_code, reason = "counts until it is dropped")]
    share: Share,
}

impl ClientMemory {
    /// Maps `bytes` that are behind `fd`.
    ///
    /// # Errors
    /// NoMemory at the end of the budget, BadArgument for what cannot be mapped.
    pub(crate) fn map(
        fd: &OwnedFd,
        bytes: u64,
        access: Access,
        budget: &Arc<Budget>,
    ) -> Result<Self, IoReturn> {
        let share = budget.take(bytes).ok_or(IoReturn::NO_MEMORY)?;
        let length = usize::try_from(bytes).map_err(|_| IoReturn::NO_MEMORY)?;
        match PeerMemory::map(fd, length, access) {
            Ok(memory) => Ok(Self { memory, share }),
            Err(error) => {
                tracing::debug!("a client's memory is not mapped: {}", ipc::chain(&error));
                Err(IoReturn::BAD_ARGUMENT)
            }
        }
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PeerMemoryError> {
        self.memory.read(offset, into)
    }

    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<(), PeerMemoryError> {
        self.memory.write(offset, from)
    }
}

/// Which file it is, and whether it is mapped for writing.
type Key = (i128, u64, bool);

/// The memory of one connection by file, so that 65,536 registrations of one guest are one mapping.
/// Of one connection: what another one may write is no reason to let this one write it.
#[derive(Debug, Default)]
pub(crate) struct Files(HashMap<Key, Weak<ClientMemory>>);

impl Files {
    /// The memory behind `fd`, if its `length` bytes from `offset` are there now.
    ///
    /// # Errors
    /// BadArgument if they are not, or the descriptor cannot be mapped so; NoMemory at the end of
    /// the budget.
    pub(crate) fn find(
        &mut self,
        fd: &OwnedFd,
        (offset, length): (u64, u64),
        writable: bool,
        budget: &Arc<Budget>,
    ) -> Result<Arc<ClientMemory>, IoReturn> {
        let stat = rustix::fs::fstat(fd.as_fd()).map_err(|_| IoReturn::BAD_ARGUMENT)?;
        let size = u64::try_from(stat.st_size).map_err(|_| IoReturn::BAD_ARGUMENT)?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(IoReturn::BAD_ARGUMENT);
        }
        let key = (i128::from(stat.st_dev), stat.st_ino, writable);
        let found = self.0.get(&key).and_then(Weak::upgrade);
        // A file that has grown is mapped anew; its old mapping ends with its regions.
        if let Some(memory) = found.filter(|memory| memory.memory.length() as u64 >= size) {
            return Ok(memory);
        }
        self.0.retain(|_, memory| memory.strong_count() > 0);
        let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
        let memory = Arc::new(ClientMemory::map(fd, size, access, budget)?);
        self.0.insert(key, Arc::downgrade(&memory));
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What so many functions hold when each has taken all that it may.
    fn all_of(functions: usize) -> (usize, u64) {
        let budgets: Vec<_> = (0..functions).map(|_| Budget::of_one_in(functions)).collect();
        let mut held = Vec::new();
        for budget in &budgets {
            // The addresses with one mapping, and then mappings of nothing.
            held.push(budget.take(budget.bytes).unwrap());
            assert!(budget.take(1).is_none());
            held.extend(std::iter::from_fn(|| budget.take(0)));
            assert_eq!(budget.mappings(), budget.mappings);
        }
        (held.len(), held.iter().map(|share| share.bytes).sum())
    }

    #[test]
    fn functions_that_each_hold_all_they_may_hold_no_more_than_there_is_together() {
        // As many as have the full share of each, and one more.
        assert_eq!(all_of(8), (MAX_MAPPINGS, 8 * MAX_BYTES_OF_ONE));
        let (mappings, _) = all_of(9);
        assert!(mappings <= MAX_MAPPINGS && mappings > MAX_MAPPINGS - 9, "{mappings}");
        assert_eq!(all_of(16).1, MAX_BYTES);
        let (_, bytes) = all_of(17);
        assert!(bytes <= MAX_BYTES && bytes > MAX_BYTES - 17, "{bytes:#x}");
    }
}
