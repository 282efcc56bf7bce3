//! How a child is started and what is held of it: a process of the system's, or what a test puts in
//! its place.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::ExitStatus;
use crate::sys;

/// Whether the child must be isolated before it runs: in user and pid namespaces of its own on Linux.
/// On macOS there is nothing of the kind, and it confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Or it is not started.
    Required,
    /// If that can be had; the child reports what is missing.
    Preferred,
}

/// What a child is started with. It gets 0 and 1 on /dev/null, 2 and 3 from here, nothing else, and
/// no environment but the two variables that ask a Rust program to say more.
#[non_exhaustive]
pub struct Start<'s> {
    /// The program.
    pub program: &'s Path,
    /// Its arguments, without the program's name.
    pub arguments: &'s [OsString],
    /// Becomes its standard error.
    pub stderr: BorrowedFd<'s>,
    /// Becomes its descriptor 3: its end of the tube.
    pub tube: BorrowedFd<'s>,
    /// Whether it must be isolated.
    pub isolation: Isolation,
    /// Where it sends memory that has no descriptor: on macOS the one port that it inherits.
    pub inbox: &'s ipc::MemoryInbox,
}

/// A child could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LaunchError(pub String);

/// A running child. Its descriptor is readable once it has ended.
pub trait Process: AsFd + Send + Sync {
    /// Process id, as this process sees it; 0 if it is none.
    fn pid(&self) -> u32;
    /// Kills it, whatever it does.
    fn kill(&self);
    /// Stops it where it is, for good.
    fn suspend(&self);
    /// Whether a signal stopped it.
    fn is_suspended(&self) -> bool;
    /// Asks the system, from outside, whether it is confined: what it says of itself is not believed.
    /// Called once, when it says that it is ready. On macOS the system answers for its profile; on Linux
    /// nothing is asked, since the namespaces around it were made from outside already.
    ///
    /// # Errors
    /// What the system lets it do, or does not say.
    fn confinement(&self) -> Result<(), String> {
        Ok(())
    }
    /// Takes its exit status. Called once, when it has ended.
    fn reap(&self) -> ExitStatus;
}

/// One that others hold too.
impl<P: Process + ?Sized> Process for std::sync::Arc<P> {
    fn pid(&self) -> u32 {
        (**self).pid()
    }

    fn kill(&self) {
        (**self).kill();
    }

    fn suspend(&self) {
        (**self).suspend();
    }

    fn is_suspended(&self) -> bool {
        (**self).is_suspended()
    }

    fn confinement(&self) -> Result<(), String> {
        (**self).confinement()
    }

    fn reap(&self) -> ExitStatus {
        (**self).reap()
    }
}

/// Starts children.
pub trait Launch: fmt::Debug + Send + Sync {
    /// Starts one.
    ///
    /// # Errors
    /// [`LaunchError`] with the step that failed.
    fn launch(&self, start: &Start<'_>) -> Result<Box<dyn Process>, LaunchError>;

    /// Called once on each thread of ours that will start children, before its first one. On Linux,
    /// processes of the system's have it leave the network, which its children then need not.
    fn prepare_thread(&self) {}
}

/// Starts processes of the system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processes;

impl Launch for Processes {
    fn launch(&self, start: &Start<'_>) -> Result<Box<dyn Process>, LaunchError> {
        let process = sys::spawn(start).map_err(|error| LaunchError(error.to_string()))?;
        Ok(Box::new(process))
    }

    fn prepare_thread(&self) {
        sys::leave_network();
    }
}
