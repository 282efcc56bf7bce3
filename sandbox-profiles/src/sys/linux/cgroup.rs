//! Whether a control group of the process's own bounds it: its VMM side makes one where it can.

use std::path::{Path, PathBuf};

use crate::LayerState;

/// What the kernel says of the group; never missing, since the limits of the process hold without.
pub(super) fn group() -> LayerState {
    match own() {
        Some((memory, processes)) => LayerState::Enforced(format!(
            "{} MiB of memory, the kernel's for it included; {processes} process",
            memory >> 20
        )),
        None => LayerState::Partial(
            "none of its own could be made, so its page tables and other memory of the kernel's are \
             bounded only by its budget of addresses"
                .to_owned(),
        ),
    }
}

/// Limits of memory and processes, of a group that a VMM side made.
fn own() -> Option<(u64, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let name = name(&groups)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let limits = |folder: PathBuf| {
        let limit = |file| {
            let text = std::fs::read_to_string(folder.join(file)).ok()?;
            // "max" is none.
            text.trim().parse::<u64>().ok()
        };
        Some((limit("memory.max")?, limit("pids.max")?))
    };
    limits(mounted(&mounts)?.join(name.trim_start_matches('/')))
}

/// The path of the group, if it is one of ours.
fn name(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let last = Path::new(path).file_name()?.to_str()?;
    last.starts_with("cordon-").then_some(path)
}

/// Where all groups of version 2 are.
fn mounted(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then(|| at.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_group_that_was_made_for_it_is_its_own() {
        assert_eq!(name("1:cpu:/\n0::/vmm.service/cordon-7-0\n"), Some("/vmm.service/cordon-7-0"));
        for groups in ["0::/vmm.service\n", "0::/\n", "1:memory:/cordon-7-0\n", ""] {
            assert_eq!(name(groups), None, "{groups}");
        }
    }

    #[test]
    fn the_mount_of_version_2_is_found() {
        let mounts = "22 27 0:21 / /proc rw - proc proc rw\n\
                      31 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted("22 27 0:21 / /proc rw - proc proc rw\n"), None);
    }
}
