//! The process that removes the folder of a `cordon run` that was killed: it waits for the end of its
//! standard input, which comes with the end of whoever started it.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;

/// The command that this program is run with to be one.
pub(crate) const SWEEPER: &str = "sweeper";

/// How long a server may take to remove its sockets first.
const SERVER: Duration = Duration::from_secs(4);

/// A sweeper that waits. When it is dropped the folder is removed, if it is still there.
pub(crate) struct Sweeper {
    child: Child,
    input: Option<ChildStdin>,
}

impl Sweeper {
    /// Of this folder.
    pub(crate) fn start(folder: &Path) -> Result<Self, Failure> {
        let own = std::env::current_exe()
            .map_err(|error| format!("cannot find this program's own path: {error}"))?;
        let mut command = Command::new(own);
        // A group of its own: what a terminal sends is not for it.
        command.arg(SWEEPER).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null());
        let spawned = command.process_group(0).spawn();
        let mut child = spawned.map_err(|error| format!("cannot run this program: {error}"))?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Is a sweeper.
pub(crate) fn sweep(folder: &Path) -> Result<(), Failure> {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let end = Instant::now() + SERVER;
    let is_empty =
        || std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    while !is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", folder.display()).into())
        }
        _ => Ok(()),
    }
}
