//! Namespaces of its own and a root directory with nothing in it.
#![expect(unsafe_code, reason = "unshare is unsafe in rustix")]

use std::io;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::outcome;
use crate::State;

/// Leaves the mount, network, ipc and uts namespaces of the VMM.
pub(super) fn namespaces() -> Vec<(&'static str, State)> {
    [
        ("mount namespace", UnshareFlags::NEWNS),
        ("network namespace", UnshareFlags::NEWNET),
        ("ipc namespace", UnshareFlags::NEWIPC),
        ("uts namespace", UnshareFlags::NEWUTS),
    ]
    .into_iter()
    .map(|(layer, flag)| {
        // SAFETY: unsafe because unsharing the descriptor table surprises other threads; none of
        // these flags does that, and there is one thread.
        let left = unsafe { rustix::thread::unshare_unsafe(flag) };
        (layer, outcome(left, "own, empty"))
    })
    .collect()
}

/// Makes an empty file system the root and lets go of the old one. The new one is mounted over
/// /proc, a directory that must exist since the checks before this one read it.
pub(super) fn empty() -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("empty", "/proc", "tmpfs", flags, c"mode=0555,size=4096,nr_inodes=2")?;
    rustix::process::chdir("/proc")?;
    // Old and new root in one place: the old one ends up on top and is taken off.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let left = std::fs::read_dir("/")?.count();
    if left == 0 { Ok(()) } else { Err(io::Error::other(format!("{left} entries are left in /"))) }
}
