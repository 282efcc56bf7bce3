//! Folders for the length of a run: each is removed with its value, and all of them when the program
//! cannot end in order.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Failure;

/// The folders that there are now.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that only this user can enter.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes one in the system's folder for temporary files; `name` says whose it is.
    pub(crate) fn new(name: &str) -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        for attempt in 0..100u32 {
            let path = base.join(format!("{name}-{}-{attempt}", std::process::id()));
            // Under the lock, so that whoever removes them all misses none.
            let mut folders = folders();
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    folders.push(path.clone());
                    return Ok(Self(path));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(format!("cannot make {}: {error}", path.display()).into());
                }
            }
        }
        Err(format!("no room for a directory in {}", base.display()).into())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        folders().retain(|folder| *folder != self.0);
    }
}

/// Removes every folder. No other is made from here on: whoever wants one waits for ever.
pub(crate) fn remove_all() {
    let folders = folders();
    for folder in folders.iter() {
        let _ = std::fs::remove_dir_all(folder);
    }
    std::mem::forget(folders);
}
