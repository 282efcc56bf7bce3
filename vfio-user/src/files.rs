//! The memory files of one client: each is held open once, however many regions lie in it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use ipc::SharedMemory;
use ipc::shm::SharedMemoryError;
use rustix::fs::{Dev, OFlags};

/// What tells files apart: where they are, and what the descriptor allows, since a region that is
/// written cannot be reached through one that was opened for reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    device: Dev,
    inode: u64,
    writable: bool,
}

/// Memory that is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It is no memory, or not sealed where it must be.
    #[error(transparent)]
    Memory(#[from] SharedMemoryError),
    /// The client has as many as it may.
    #[error("The memory of one client may lie in {0} files")]
    TooMany(usize),
}

/// See the module. It keeps no file open by itself: the regions that lie in it do.
#[derive(Debug, Default)]
pub(crate) struct Files(Vec<(Option<Key>, Weak<SharedMemory>)>);

impl Files {
    /// The memory behind a descriptor that the client sent. If one of the same file is in use, that
    /// is shared and this one is closed. At most `most` are in use.
    pub(super) fn take(
        &mut self,
        descriptor: OwnedFd,
        sealed: bool,
        most: usize,
    ) -> Result<Arc<SharedMemory>, FileError> {
        let key = key(&descriptor)?;
        let take = if sealed { SharedMemory::from_peer } else { SharedMemory::from_trusted };
        let size = SharedMemory::size_of(&descriptor)?;
        let memory = take(descriptor, size)?;
        self.0.retain(|(_, file)| file.strong_count() > 0);
        // One that has grown is another one: the size of the first is fixed.
        let known = self.0.iter().filter(|(known, _)| key.is_some() && *known == key);
        let mut known = known.filter_map(|(_, file)| file.upgrade());
        if let Some(known) = known.find(|known| known.size() == memory.size()) {
            return Ok(known);
        }
        if self.0.len() >= most {
            return Err(FileError::TooMany(most));
        }
        let memory = Arc::new(memory);
        self.0.push((key, Arc::downgrade(&memory)));
        Ok(memory)
    }
}

impl Files {
    /// Memory that a client gave another server, which is in use.
    pub(super) fn adopt(&mut self, memory: &Arc<SharedMemory>) {
        let is_it = |file: &Weak<SharedMemory>| std::ptr::eq(file.as_ptr(), Arc::as_ptr(memory));
        if !self.0.iter().any(|(_, file)| is_it(file)) {
            let key = key(&**memory).ok().flatten();
            self.0.push((key, Arc::downgrade(memory)));
        }
    }
}

/// `None` for an object that nothing tells from others: macOS numbers no POSIX shared memory.
fn key(descriptor: &impl AsFd) -> Result<Option<Key>, SharedMemoryError> {
    let inspect = |error: rustix::io::Errno| SharedMemoryError::Inspect(error.into());
    let stat = rustix::fs::fstat(descriptor).map_err(inspect)?;
    let flags = rustix::fs::fcntl_getfl(descriptor).map_err(inspect)?;
    let writable = flags.contains(OFlags::RDWR);
    let key = Key { device: stat.st_dev, inode: stat.st_ino, writable };
    Ok(Some(key).filter(|key| key.inode != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(of: &impl std::os::fd::AsFd) -> OwnedFd {
        of.as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn a_file_is_held_open_once_for_as_long_as_it_is_used() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut files = Files::default();
        let first = files.take(descriptor(&one), false, 2).unwrap();
        let again = files.take(descriptor(&one), false, 2).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let second = files.take(descriptor(&other), false, 2).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        let third = tempfile::tempfile().unwrap();
        let full = files.take(descriptor(&third), false, 2);
        assert!(matches!(full, Err(FileError::TooMany(2))));
        drop((first, again));
        files.take(descriptor(&third), false, 2).unwrap();
    }

    #[test]
    fn a_file_that_has_grown_and_one_for_reading_are_others() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let mut files = Files::default();
        let before = files.take(descriptor(path.as_file()), false, 8).unwrap();
        path.as_file().set_len(8192).unwrap();
        let after = files.take(descriptor(path.as_file()), false, 8).unwrap();
        assert_eq!((before.size(), after.size()), (0, 8192));
        let read = std::fs::File::open(path.path()).unwrap();
        let read = files.take(descriptor(&read), false, 8).unwrap();
        assert!(!Arc::ptr_eq(&after, &read));
        let again = files.take(descriptor(path.as_file()), false, 8).unwrap();
        assert!(Arc::ptr_eq(&after, &again));
        assert!(Arc::strong_count(&before) == 1 && before.as_fd().try_clone_to_owned().is_ok());
    }

    #[test]
    fn what_is_not_sealed_is_refused_where_it_must_be() {
        let file = tempfile::tempfile().unwrap();
        let refused = Files::default().take(descriptor(&file), true, 1);
        #[cfg(target_os = "linux")]
        assert!(matches!(refused, Err(FileError::Memory(SharedMemoryError::NotSealed))));
        let sealed = SharedMemory::create("ram", 4096).unwrap();
        Files::default().take(descriptor(&sealed), true, 1).unwrap();
        let _ = refused;
    }
}
