//! A control group for each child, where one can be made: it counts what no limit of a process does,
//! page tables and other memory of the kernel's, and stays when everything else is got past.
//!
//! Only control groups of version 2 that are ours to arrange are touched: beneath this process's own
//! group, or beside it where the group above was delegated (systemd's `Delegate=` marks it) or is the
//! root. Both controllers must already be given to groups there, or let themselves be given. Where
//! that is not so, a child has none, which it reports; nothing fails.
//!
//! A group is made before its child, which is born in it, and is removed when the child was reaped.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::limits::MAX_CHARGED as MEMORY;

/// Share of the processors while they are short, where groups are given that controller: a third of the usual 100.
/// It is not asked for: in groups of their own, children would be weighed against all threads of the VMM together.
/// Elsewhere a child has the share of one thread, of which it has one and can make none; it is not made nicer than
/// its VMM, since one that takes a dead one's place would wait for a processor while callers wait for it.
const WEIGHT: u64 = 33;
/// Of the name of each group; the id of the process that made it follows.
const PREFIX: &str = "cordon-";
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// A child's own group. Removed on drop, which works once nobody is in it.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    folder: OwnedFd,
}

impl Group {
    /// Makes one.
    pub(super) fn new() -> Option<Self> {
        static PARENT: OnceLock<Option<PathBuf>> = OnceLock::new();
        let parent = PARENT.get_or_init(|| {
            let parent = parent(Path::new("/proc/self")).ok()?;
            remove_left(&parent, Path::new("/proc"));
            Some(parent)
        });
        Self::below(parent.as_deref()?)
    }

    fn below(parent: &Path) -> Option<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{serial}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        match limit(&path) {
            Ok(folder) => Some(Self { path, folder }),
            Err(error) => {
                tracing::debug!("no control group at {}: {error}", path.display());
                let _ = std::fs::remove_dir(&path);
                None
            }
        }
    }

    /// Its folder: who is born into it names it so.
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Limits a group, and opens its folder.
fn limit(group: &Path) -> io::Result<OwnedFd> {
    let set = |file: &str, value: &str| {
        // What the kernel did not make is no limit, so it is not made here.
        let file =
            rustix::fs::open(group.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, value.as_bytes()).map(drop)
    };
    set("memory.max", &MEMORY.to_string())?;
    // The child itself.
    set("pids.max", "1")?;
    match set("cpu.weight", &WEIGHT.to_string()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(group, folder, Mode::empty())?)
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Removes groups that processes left which were killed. One with members stays, whoever made it.
fn remove_left(parent: &Path, processes: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if maker.is_some_and(|maker| !processes.join(maker).exists()) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Why no group can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum NoGroup {
    #[error("this process sees no control group of version 2 that it is in")]
    NotMounted,
    #[error("control groups of version 2 have no controllers {} in {}", .lacks.join(" and "), .own.display())]
    NoControllers { own: PathBuf, lacks: Vec<&'static str> },
    #[error("{} is not this process's to arrange", .0.display())]
    NotDelegated(PathBuf),
}

impl NoGroup {
    fn cure(&self) -> &'static str {
        match self {
            Self::NotMounted => {
                "mount version 2 (mount -t cgroup2 none /sys/fs/cgroup), the whole of it"
            }
            Self::NoControllers { .. } => {
                "boot with version 2 alone (systemd.unified_cgroup_hierarchy=1), and have the group above \
                 give both to this one (under systemd: Delegate=memory pids)"
            }
            Self::NotDelegated(_) => {
                "under systemd: Delegate=memory pids and DelegateSubgroup=vmm in the VMM's unit"
            }
        }
    }
}

/// Tries whether a child could have a group of its own: makes one, limits and removes it. Where they are
/// made; otherwise why none can be made, and what helps.
pub(crate) fn try_one() -> Result<PathBuf, (String, String)> {
    let parent = parent(Path::new("/proc/self"))
        .map_err(|error| (error.to_string(), error.cure().to_owned()))?;
    let path = parent.join(format!("{PREFIX}{}-trial", std::process::id()));
    let limited = std::fs::create_dir(&path).and_then(|()| {
        let limited = limit(&path).map(drop);
        let _ = std::fs::remove_dir(&path);
        limited
    });
    match limited {
        Ok(()) => Ok(parent),
        Err(error) => {
            let cure = NoGroup::NotDelegated(parent.clone()).cure().to_owned();
            Err((format!("no group can be made in {}: {error}", parent.display()), cure))
        }
    }
}

/// Where groups can be made. `process` is this process's folder in /proc.
fn parent(process: &Path) -> Result<PathBuf, NoGroup> {
    let read = |file| std::fs::read_to_string(process.join(file)).map_err(|_| NoGroup::NotMounted);
    let own = own_group(&read("cgroup")?, &read("mountinfo")?).ok_or(NoGroup::NotMounted)?;
    if gives_controllers(&own) {
        return Ok(own);
    }
    // A group with members cannot give controllers to groups beneath it; one above it may.
    match own.parent() {
        Some(above) if is_delegated(above) && gives_controllers(above) => Ok(above.to_owned()),
        _ => {
            let has = std::fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
            let mut lacks = CONTROLLERS.to_vec();
            lacks.retain(|one| !has.split_whitespace().any(|has| has == *one));
            Err(if lacks.is_empty() {
                NoGroup::NotDelegated(own)
            } else {
                NoGroup::NoControllers { own, lacks }
            })
        }
    }
}

/// The folder of this process's group: the mount of version 2 and, beneath its root, the path.
fn own_group(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, at) = mounts.lines().find_map(|line| {
        // Fields of a mount: …, root, mount point, …, "-", file system, …
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (kind.split(' ').next() == Some("cgroup2")).then_some((root, at))
    })?;
    let beneath = Path::new(path).strip_prefix(root).ok()?;
    // A process outside of the namespace's root sees a path with "..".
    let is_inside = beneath.components().all(|one| matches!(one, std::path::Component::Normal(_)));
    is_inside.then(|| Path::new(at).join(beneath))
}

/// Whether groups beneath `group` have both controllers, or can be given them.
fn gives_controllers(group: &Path) -> bool {
    let has = || {
        let given = std::fs::read_to_string(group.join("cgroup.subtree_control"));
        let given = given.unwrap_or_default();
        CONTROLLERS.iter().all(|one| given.split_whitespace().any(|given| given == *one))
    };
    if has() {
        return true;
    }
    let both = CONTROLLERS.map(|one| format!("+{one}")).join(" ");
    std::fs::write(group.join("cgroup.subtree_control"), both).is_ok() && has()
}

/// Whether whoever manages groups has left `group` to others, as systemd says by an attribute.
fn is_delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 1];
        rustix::fs::getxattr(group, *name, &mut value[..]).is_ok_and(|length| length == 1)
            && value == *b"1"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw\n\
23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw\n\
30 23 0:26 / /sys/fs/cgroup rw,nosuid,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_own_group_is_found_beneath_the_mount() {
        let found = |groups: &str, mounts: &str| own_group(groups, mounts);
        let service = "0::/system.slice/vmm.service/main\n";
        let expected = "/sys/fs/cgroup/system.slice/vmm.service/main";
        assert_eq!(found(service, MOUNTS), Some(expected.into()));
        let root = "4:memory:/x\n0::/\n";
        assert_eq!(found(root, MOUNTS), Some("/sys/fs/cgroup".into()));
        // A container's mount begins at its own group.
        let bound = MOUNTS.replace("0:26 / ", "0:26 /system.slice ");
        let expected = "/sys/fs/cgroup/vmm.service/main";
        assert_eq!(found(service, &bound), Some(expected.into()));
        // Not visible from here, only version 1, none.
        for (groups, mounts) in [
            ("0::/../other\n", MOUNTS),
            ("0::/user.slice\n", &*bound),
            ("4:memory:/x\n", MOUNTS),
            (service, "22 27 0:21 / /proc rw,relatime - proc proc rw\n"),
        ] {
            assert_eq!(found(groups, mounts), None, "{groups}{mounts}");
        }
    }

    /// Folders and files in the place of the kernel's.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("cgroup");
        std::fs::create_dir_all(at.join("vmm.service/main")).unwrap();
        let process = folder.path().join("self");
        std::fs::create_dir(&process).unwrap();
        let mount = format!("30 23 0:26 / {} rw - cgroup2 cgroup2 rw\n", at.display());
        std::fs::write(process.join("mountinfo"), mount).unwrap();
        std::fs::write(process.join("cgroup"), "0::/vmm.service/main\n").unwrap();
        (folder, at)
    }

    #[test]
    fn groups_are_made_where_both_controllers_are_given() {
        let (folder, at) = tree();
        let find = || parent(&folder.path().join("self"));
        let give = |group: &Path, what: &str| {
            std::fs::write(group.join("cgroup.subtree_control"), what).unwrap();
        };
        let (service, main) = (at.join("vmm.service"), at.join("vmm.service/main"));
        // Kernel files do not come to be by writing, these do: a folder refuses it.
        std::fs::create_dir(main.join("cgroup.subtree_control")).unwrap();
        let lacks = vec!["memory", "pids"];
        assert_eq!(find(), Err(NoGroup::NoControllers { own: main.clone(), lacks }));
        // The group above has them, but is somebody else's to arrange.
        give(&service, "cpu memory pids");
        std::fs::write(main.join("cgroup.controllers"), "cpu memory").unwrap();
        let lacks = vec!["pids"];
        assert_eq!(find(), Err(NoGroup::NoControllers { own: main.clone(), lacks }));
        std::fs::write(main.join("cgroup.controllers"), "cpu memory pids").unwrap();
        assert_eq!(find(), Err(NoGroup::NotDelegated(main.clone())));
        std::fs::remove_dir(main.join("cgroup.subtree_control")).unwrap();
        give(&main, "memory pids");
        assert_eq!(find(), Ok(main));
        std::fs::write(folder.path().join("self/cgroup"), "4:memory:/x\n").unwrap();
        assert_eq!(find(), Err(NoGroup::NotMounted));
    }

    #[test]
    fn what_killed_processes_left_is_removed() {
        let (folder, at) = tree();
        std::fs::create_dir(folder.path().join("7")).unwrap();
        for group in ["cordon-7-0", "cordon-8-0", "cordon-8-1/member", "other-8-0"] {
            std::fs::create_dir_all(at.join(group)).unwrap();
        }
        remove_left(&at, folder.path());
        let mut left: Vec<_> =
            std::fs::read_dir(&at).unwrap().map(|one| one.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["cordon-7-0", "cordon-8-1", "other-8-0", "vmm.service"]);
    }

    #[test]
    fn a_group_has_its_limits_or_is_not_left() {
        let folder = tempfile::tempdir().unwrap();
        // The kernel makes its files with a folder; here there are none.
        assert!(Group::below(folder.path()).is_none());
        assert!(Group::below(&folder.path().join("missing")).is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let path = folder.path().join("made");
        std::fs::create_dir(&path).unwrap();
        for file in ["memory.max", "pids.max"] {
            std::fs::write(path.join(file), "max").unwrap();
        }
        limit(&path).unwrap();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ("268435456".into(), "1ax".into()));
        // Where the processors are shared out to groups, and not where they are not.
        assert!(!path.join("cpu.weight").exists());
        std::fs::write(path.join("cpu.weight"), "100").unwrap();
        limit(&path).unwrap();
        assert_eq!(read("cpu.weight"), "330");
    }
}
