//! What is kept, by name, in the order of coming.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use cordon_vmm::kept::wanted_back;
use ipc::Deadline;

use super::messages::Message;
use crate::limits::MAX_KEPT;

/// One descriptor.
#[derive(Debug)]
struct Kept {
    name: String,
    fd: OwnedFd,
    /// What has to go when it is readable, by the beginning of names.
    wanted: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shelf {
    kept: Vec<Kept>,
    time: Duration,
    /// Until when it is kept, unless somebody takes it.
    until: Option<Deadline>,
    /// That something did not fit was said.
    is_full: bool,
}

/// Whether both are the same open file: a store has each once. Where the kernel does not say (it is built without that,
/// or a filter forbids it), what has the same name and the same inode is taken for it.
fn is_same(kept: &Kept, name: &str, other: &OwnedFd) -> bool {
    compare(&kept.fd, other).unwrap_or_else(|| {
        let inode = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd).ok()?;
            Some((stat.st_dev, stat.st_ino, stat.st_rdev))
        };
        let of_it = inode(&kept.fd);
        kept.name == name && of_it.is_some() && of_it == inode(other)
    })
}

/// Whether both are the same open file, if the kernel says.
fn compare(one: &OwnedFd, other: &OwnedFd) -> Option<bool> {
    /// Of linux/kcmp.h.
    const KCMP_FILE: libc::c_int = 0;
    let pid = std::process::id();
    let number =
        |fd: &OwnedFd| libc::c_ulong::try_from(fd.as_raw_fd()).unwrap_or(libc::c_ulong::MAX);
    // SAFETY: the call takes numbers only, and compares what this process has open.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, number(one), number(other)) };
    (order >= 0).then_some(order == 0)
}

impl Shelf {
    /// An empty one, which keeps what is left for so long.
    pub(super) fn new(time: Duration) -> Self {
        Self { kept: Vec::new(), time, until: None, is_full: false }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Numbers and names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&OwnedFd, &str)> {
        self.kept.iter().map(|one| (&one.fd, one.name.as_str()))
    }

    /// Carries a message out.
    pub(super) fn obey(&mut self, message: Message) {
        let Message { name, is_ready, is_removed, stored } = message;
        if is_ready || is_removed || !stored.is_empty() {
            // Whoever lives has taken it.
            self.until = None;
        }
        if is_removed {
            self.kept.retain(|one| one.name != name);
            self.is_full = false;
        }
        for fd in stored {
            if self.kept.iter().any(|one| is_same(one, &name, &fd)) {
                continue;
            }
            if self.kept.len() >= MAX_KEPT {
                if !std::mem::replace(&mut self.is_full, true) {
                    tracing::warn!("{name} is not kept: {MAX_KEPT} descriptors are the limit");
                }
                continue;
            }
            let wanted = wanted_back(&name);
            self.kept.push(Kept { name: name.clone(), fd, wanted });
        }
    }

    /// The command is dead. What was left by one before it, and it did not take, is kept no longer for that.
    pub(super) fn orphan(&mut self) {
        let left = self.until.unwrap_or_else(|| Deadline::after(self.time));
        self.until = (!self.kept.is_empty()).then_some(left);
    }

    /// When there is something to expire.
    pub(super) fn until(&self) -> Option<Deadline> {
        self.until
    }

    /// Closes what nobody took in time.
    pub(super) fn expire(&mut self) {
        if self.until.is_some_and(Deadline::passed) {
            let seconds = self.time.as_secs();
            tracing::warn!("nobody took what was kept within {seconds} s: it is closed");
            self.clear();
        }
    }

    /// Closes everything.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.until = None;
    }

    /// What says by being readable that something has to go, each with its place.
    pub(super) fn requests(&self) -> impl Iterator<Item = (usize, &OwnedFd)> {
        let all = self.kept.iter().enumerate();
        all.filter(|(_, one)| one.wanted.is_some()).map(|(at, one)| (at, &one.fd))
    }

    /// The kernel wants back what the descriptor at this place is about.
    pub(super) fn give_back(&mut self, at: usize) {
        let Some(kept) = self.kept.get(at) else { return };
        let Some(prefix) = kept.wanted.clone() else { return };
        tracing::warn!(
            "{}: the kernel wants it back: everything of its group is closed",
            kept.name
        );
        self.kept.retain(|one| !one.name.starts_with(&prefix));
    }

    /// Numbers of duplicates from `lowest` on, in the order of [`Shelf::all`].
    pub(super) fn duplicates(&self, lowest: RawFd) -> std::io::Result<Vec<OwnedFd>> {
        let duplicate = |one: &Kept| rustix::io::fcntl_dupfd_cloexec(one.fd.as_fd(), lowest);
        Ok(self.kept.iter().map(duplicate).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    fn stored(name: &str, fd: OwnedFd) -> Message {
        let (name, stored) = (name.to_owned(), vec![fd]);
        Message { name, is_ready: false, is_removed: false, stored }
    }

    fn names(shelf: &Shelf) -> Vec<&str> {
        shelf.all().map(|(_, name)| name).collect()
    }

    fn shelf() -> Shelf {
        Shelf::new(Duration::from_secs(60))
    }

    #[test]
    fn each_open_file_is_kept_once_and_names_need_not_differ() {
        let mut shelf = shelf();
        let one = event();
        shelf.obey(stored("a", one.try_clone().unwrap()));
        shelf.obey(stored("b", one));
        shelf.obey(stored("a", event()));
        shelf.obey(stored("c", event()));
        assert_eq!(names(&shelf), ["a", "a", "c"]);
        let (name, stored) = ("a".to_owned(), Vec::new());
        shelf.obey(Message { name, is_ready: false, is_removed: true, stored });
        assert_eq!(names(&shelf), ["c"]);
    }

    #[test]
    fn so_many_are_kept_and_one_more_is_closed() {
        let mut shelf = shelf();
        for number in 0..=MAX_KEPT {
            shelf.obey(stored(&number.to_string(), event()));
        }
        assert_eq!(shelf.len(), MAX_KEPT);
        assert!(!names(&shelf).contains(&MAX_KEPT.to_string().as_str()));
    }

    #[test]
    fn what_the_kernel_wants_goes_with_its_group_and_nothing_else() {
        let mut shelf = shelf();
        let wanted = event();
        let group = "cordon.0000-01-00-0";
        let request = format!("{group}.0000-01-00-1.request");
        for name in [&format!("{group}.group-0"), "cordon.memory-0", "cordon.0000-02-00-0.record"] {
            shelf.obey(stored(name, event()));
        }
        shelf.obey(stored(&request, wanted.try_clone().unwrap()));
        assert_eq!(shelf.requests().map(|(at, _)| at).collect::<Vec<_>>(), [3]);
        shelf.give_back(0);
        assert_eq!(shelf.len(), 4, "it says nothing");
        shelf.give_back(3);
        assert_eq!(names(&shelf), ["cordon.memory-0", "cordon.0000-02-00-0.record"]);
        assert_eq!(shelf.requests().count(), 0);
    }

    #[test]
    fn what_nobody_takes_expires_and_what_somebody_takes_does_not() {
        let mut shelf = Shelf::new(Duration::ZERO);
        shelf.orphan();
        assert!(shelf.until().is_none(), "there is nothing");
        shelf.obey(stored("a", event()));
        shelf.orphan();
        let (name, stored_now) = (String::new(), Vec::new());
        shelf.obey(Message { name, is_ready: true, is_removed: false, stored: stored_now });
        shelf.expire();
        assert_eq!(shelf.len(), 1);
        shelf.orphan();
        shelf.expire();
        assert!(shelf.is_empty());
        // One that dies before it takes anything keeps it no longer.
        let mut shelf = self::shelf();
        shelf.obey(stored("a", event()));
        shelf.orphan();
        let until = shelf.until().unwrap();
        std::thread::sleep(Duration::from_millis(2));
        shelf.orphan();
        assert_eq!(shelf.until(), Some(until));
    }
}
