//! Namespaces of its own and a root directory with nothing in it.
#![expect(unsafe_code, reason = "unshare is unsafe in rustix")]

use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::{FORBIDDEN, outcome};
use crate::{Layer, LayerState, Network};

/// Leaves the mount, network, ipc and uts namespaces of the VMM; that of the network only if it was not
/// started in an empty one.
pub(super) fn namespaces(network: Network) -> Vec<(Layer, LayerState)> {
    [
        (Layer::MountNamespace, UnshareFlags::NEWNS, "user.max_mnt_namespaces"),
        (Layer::NetworkNamespace, UnshareFlags::NEWNET, "user.max_net_namespaces"),
        (Layer::IpcNamespace, UnshareFlags::NEWIPC, "user.max_ipc_namespaces"),
        (Layer::UtsNamespace, UnshareFlags::NEWUTS, "user.max_uts_namespaces"),
    ]
    .into_iter()
    .map(|(layer, flag, limit)| {
        if layer == Layer::NetworkNamespace && network == Network::Inherited && has_no_network() {
            return (layer, LayerState::Enforced("of its kind, empty".to_owned()));
        }
        // SAFETY: unsafe because unsharing the descriptor table surprises other threads; none of
        // these flags does that, and there is one thread.
        let left = unsafe { rustix::thread::unshare_unsafe(flag) };
        let cure = match left {
            Err(Errno::NOSPC) => format!("raise {limit}"),
            Err(Errno::INVAL) => format!("a kernel with {layer}s is needed"),
            _ => FORBIDDEN.to_owned(),
        };
        (layer, outcome(left, "own, empty", &cure))
    })
    .collect()
}

/// Whether there is no interface but the loopback that every network namespace has.
fn has_no_network() -> bool {
    let devices = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let mut names = devices.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name));
    names.next().is_some_and(|name| name.trim() == "lo") && names.next().is_none()
}

/// Makes an empty file system the root and lets go of the old one.
pub(super) fn empty() -> LayerState {
    match replace_root() {
        Ok(0) => LayerState::Enforced("tmpfs, read-only, one inode".to_owned()),
        Ok(left) => LayerState::Missing(format!("{left} entries are left in /")),
        Err((what, error)) => {
            let cure = match error {
                // Neither is, in a chroot and on the root file system of an early boot.
                Errno::INVAL => {
                    "the root directory must be a mount point that pivot_root can leave"
                }
                Errno::NOENT => "the root directory must have a directory /proc",
                Errno::NODEV => "a kernel with tmpfs is needed",
                _ => FORBIDDEN,
            };
            LayerState::Missing(format!("cannot {what}: {}; {cure}", io::Error::from(error)))
        }
    }
}

/// Replaces the root directory; how many entries the new one has, or what failed. The new one is
/// mounted over /proc, a directory that must exist since the checks before this one read it.
fn replace_root() -> Result<usize, (&'static str, Errno)> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    let failed = |what| move |error| (what, error);
    rustix::mount::mount_change("/", private).map_err(failed("make the mounts its own"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("empty", "/proc", "tmpfs", flags, c"mode=0555,size=4096,nr_inodes=2")
        .map_err(failed("mount an empty directory"))?;
    rustix::process::chdir("/proc").map_err(failed("enter the empty directory"))?;
    // Old and new root in one place: the old one ends up on top and is taken off.
    rustix::process::pivot_root(".", ".").map_err(failed("make it the root directory"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("let go of the old root"))?;
    rustix::process::chdir("/").map_err(failed("enter the root directory"))?;
    let own = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = rustix::fs::open("/", own, Mode::empty())
        .and_then(|root| rustix::fs::Dir::new(root)?.collect::<Result<Vec<_>, _>>())
        .map_err(failed("list the root directory"))?;
    let dots = [c".", c".."];
    Ok(entries.iter().filter(|entry| !dots.contains(&entry.file_name())).count())
}
