//! Which program functions are served by: the one that the server was started with, or one that came over the
//! control socket and is run by the spawner.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cordon_cli::protocol::{ControlError, ErrorCode, Upgrade, UpgradedFunction};
use cordon_vmm::HostUpgradeError;
use parking_lot::Mutex;

use super::{Fleet, Slot, Watched};

/// The programs of a server.
pub(super) struct Programs {
    /// As it was started.
    original: PathBuf,
    /// Where its file was then, and that of a later package may be now.
    installed: PathBuf,
    /// Those that came and the spawner still has. Held by whoever has functions upgraded.
    others: Mutex<Vec<PathBuf>>,
}

impl Programs {
    pub(super) fn new(original: &Path, installed: PathBuf) -> Self {
        Self { original: original.to_owned(), installed, others: Mutex::default() }
    }

    /// For people and programs: "original", or a number. With a fault plan, processes are of a program beside
    /// it, which is the same one here.
    fn name(&self, path: &Path) -> String {
        if path.parent() == self.original.parent() {
            return "original".to_owned();
        }
        let text = path.display().to_string();
        let number = text.split_once(':').and_then(|(_, rest)| rest.split_once('/'));
        number.map_or(text.clone(), |(number, _)| number.to_owned())
    }
}

/// Of which programs the processes of a function are.
pub(crate) struct ProgramNames {
    pub(crate) function: String,
    pub(crate) connection: String,
    pub(crate) next_connection: Option<String>,
}

impl Fleet {
    /// Of which programs the processes of a function are.
    pub(crate) fn programs_of(&self, watched: &Watched) -> ProgramNames {
        let (now, next) = watched.function.connection().programs();
        ProgramNames {
            function: self.programs.name(&self.host.device_proc()),
            connection: self.programs.name(&now),
            next_connection: next.map(|next| self.programs.name(&next)),
        }
    }

    /// Where a program is opened that is to serve instead, unless another is named; `None` where none can be given.
    pub(crate) fn installed(&self) -> Option<&Path> {
        self.confined.takes_programs().then_some(&*self.programs.installed)
    }

    /// Has every function served by the program of `file`, or by the original one; all of them or none.
    pub(crate) fn upgrade(
        &self,
        file: Option<OwnedFd>,
        connections: bool,
    ) -> Result<Upgrade, ControlError> {
        let busy = || ControlError::new(ErrorCode::Busy, "another upgrade is under way");
        let mut others = self.programs.others.try_lock().ok_or_else(busy)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(ControlError::new(ErrorCode::Stopping, "the server is about to end"));
        }
        let failed = |why: String| ControlError::new(ErrorCode::Failed, why);
        if self.attached().is_empty() {
            let why = "no function is attached, so there is none to try the program with";
            return Err(ControlError::new(ErrorCode::NotAttached, why));
        }
        let path = match file {
            None => self.programs.original.clone(),
            Some(file) => match self.confined.add_program(file.as_fd()).map_err(failed)? {
                None => self.programs.original.clone(),
                Some(path) => {
                    others.push(path.clone());
                    path
                }
            },
        };
        let upgraded = self.host.upgrade(&path);
        let ended = match &upgraded {
            Ok(_) if connections => self.host.upgrade_connections(),
            _ => 0,
        };
        self.forget(&mut others);
        let upgraded = upgraded.map_err(|error| {
            let object = match &error {
                HostUpgradeError::Function { .. } => String::new(),
                _ => "the program does not start: ".to_owned(),
            };
            failed(format!("{object}{error}; everything goes on with the program it had"))
        })?;
        let functions = upgraded.iter().map(|one| {
            let microseconds = u64::try_from(one.took.as_micros()).unwrap_or(u64::MAX);
            // The observer tells the event.
            let (device, process) = (one.address, one.pid);
            UpgradedFunction { address: device.to_string(), process, microseconds }
        });
        let functions = functions.collect();
        let is_left = |one: &Arc<Watched>| one.function.connection().programs().1.is_some();
        let left = self.attached().into_iter().filter(is_left);
        let left = left.map(|one| one.function.address().to_string()).collect();
        let program = self.programs.name(&path);
        Ok(Upgrade { program, functions, connections: ended, left })
    }

    fn attached(&self) -> Vec<Arc<Watched>> {
        self.slots().iter().filter_map(Slot::watched).collect()
    }

    /// Lets go of programs that nothing is started of any more.
    fn forget(&self, others: &mut Vec<PathBuf>) {
        let mut used = vec![self.host.device_proc()];
        for one in self.attached() {
            let (now, next) = one.function.connection().programs();
            used.extend([now].into_iter().chain(next));
        }
        // With a fault plan, a file beside the program is what is run.
        let is_used = |path: &Path| used.iter().any(|one| one.parent() == path.parent());
        let gone = others.extract_if(.., |path| !is_used(path));
        gone.for_each(|path| self.confined.forget_program(&path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_by_its_number_or_as_the_original_one() {
        let path = Path::new("/opt/cordon/device-proc");
        let programs = Programs::new(path, path.to_owned());
        for (path, name) in [
            ("/opt/cordon/device-proc", "original"),
            ("/opt/cordon/faulty-device-proc", "original"),
            ("spawner:12/device-proc", "12"),
            ("spawner:12/faulty-device-proc", "12"),
        ] {
            assert_eq!(programs.name(Path::new(path)), name);
        }
    }
}
