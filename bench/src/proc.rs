//! What the system says of a process: memory, threads, time, wake-ups.

use std::io;
use std::path::Path;

/// Looks at a process that it may look at: a confined one only root may.
pub(crate) struct Process(pub(crate) u32);

/// What the threads of a process have used up since they began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a processor.
    pub(crate) processor: u64,
    /// How often a thread went to sleep by itself, and so was woken.
    pub(crate) wakeups: u64,
}

impl Usage {
    /// Of the thread whose folder in /proc this is.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn of(task: &Path) -> io::Result<Self> {
        let schedstat = std::fs::read_to_string(task.join("schedstat"))?;
        let processor = schedstat.split_whitespace().next().and_then(|number| number.parse().ok());
        let status = std::fs::read_to_string(task.join("status"))?;
        let wakeups = field(&status, "voluntary_ctxt_switches:");
        let none = || io::Error::other(format!("{}: no schedstat", task.display()));
        Ok(Self { processor: processor.ok_or_else(none)?, wakeups: wakeups.ok_or_else(none)? })
    }

    /// Of this thread.
    ///
    /// # Errors
    /// When there is no /proc.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        Self::of(Path::new("/proc/thread-self"))
    }

    /// Since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            processor: self.processor.saturating_sub(before.processor),
            wakeups: self.wakeups.saturating_sub(before.wakeups),
        }
    }
}

impl Process {
    /// Bytes of memory that no other process has mapped.
    ///
    /// # Errors
    /// When it is gone, or may not be looked at.
    pub(crate) fn private(&self) -> io::Result<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0))?;
        let kib = |name| field(&rollup, name);
        let kib = kib("Private_Clean:").zip(kib("Private_Dirty:")).map(|(one, other)| one + other);
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("smaps_rollup has no figures"))
    }

    /// How many threads it has.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn threads(&self) -> io::Result<u64> {
        Ok(std::fs::read_dir(format!("/proc/{}/task", self.0))?.count() as u64)
    }

    /// What all its threads have used, but those that have ended.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut all = Usage::default();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0))? {
            let one = Usage::of(&task?.path())?;
            all.processor += one.processor;
            all.wakeups += one.wakeups;
        }
        Ok(all)
    }
}

/// The number of a line "Name:   12 kB".
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
