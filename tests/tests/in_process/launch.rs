//! Threads in the place of processes, over the fake backend.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use cordon_vmm::child::{ExitStatus, Launch, LaunchError, Process, Start};
use device_proc::in_process::fake::Fake;
use device_proc::in_process::{Child, Ended};

/// Starts the roles of `device-proc` as threads.
#[derive(Clone)]
pub(crate) struct InProcess {
    /// The backend of them all.
    pub(crate) fake: Fake,
    children: Arc<Mutex<BTreeMap<u32, Arc<Child>>>>,
    /// Nothing is started any more: whoever starts children is dead.
    #[cfg(target_os = "linux")]
    is_over: Arc<std::sync::atomic::AtomicBool>,
}

impl InProcess {
    pub(crate) fn over(fake: Fake) -> Self {
        Self {
            fake,
            children: Arc::default(),
            #[cfg(target_os = "linux")]
            is_over: Arc::default(),
        }
    }

    /// Whoever starts children is killed, and they with it.
    #[cfg(target_os = "linux")]
    pub(crate) fn kill_all(&self) {
        self.is_over.store(true, std::sync::atomic::Ordering::Release);
        // None is being started.
        let children = self.children.lock().unwrap();
        children.values().for_each(|child| child.kill());
    }

    /// Another one starts them.
    #[cfg(target_os = "linux")]
    pub(crate) fn for_another_vmm(&self) -> Self {
        Self { is_over: Arc::default(), ..self.clone() }
    }

    /// The child whose number stands for `pid`.
    pub(crate) fn child(&self, pid: u32) -> Arc<Child> {
        Arc::clone(&self.children.lock().unwrap()[&pid])
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl Launch for InProcess {
    fn launch(&self, start: &Start<'_>) -> Result<Box<dyn Process>, LaunchError> {
        let failed = |error: std::io::Error| LaunchError(error.to_string());
        let tube = start.tube.try_clone_to_owned().map_err(failed)?;
        let stderr = start.stderr.try_clone_to_owned().map_err(failed)?;
        let mut children = self.children.lock().unwrap();
        #[cfg(target_os = "linux")]
        if self.is_over.load(std::sync::atomic::Ordering::Acquire) {
            return Err(LaunchError("whoever starts children is dead".to_owned()));
        }
        let number = u32::try_from(children.len() + 1).unwrap();
        let child = Child::start(&self.fake, number, start.arguments, tube, stderr);
        let child = Arc::new(child.map_err(failed)?);
        children.insert(number, Arc::clone(&child));
        Ok(Box::new(Thread(child)))
    }
}

struct Thread(Arc<Child>);

impl AsFd for Thread {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Process for Thread {
    fn pid(&self) -> u32 {
        self.0.number()
    }

    fn kill(&self) {
        self.0.kill();
    }

    fn suspend(&self) {
        self.0.suspend();
    }

    fn is_suspended(&self) -> bool {
        self.0.is_suspended()
    }

    fn reap(&self) -> ExitStatus {
        match self.0.reap() {
            Ended::Status(status) => ExitStatus::Code(status.into()),
            Ended::Panicked => ExitStatus::Code(101),
            Ended::Killed => ExitStatus::Signal(9),
        }
    }
}
