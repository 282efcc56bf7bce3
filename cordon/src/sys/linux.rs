//! Linux: children and descriptors by /proc, children killed by pidfd.

use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Children of every thread of this process, also those that ended and were not reaped.
pub(crate) fn children() -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread that ends meanwhile has no children.
        let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children.sort_unstable();
    Ok(children)
}

/// Kills every child, whatever it does.
pub(crate) fn kill_children() {
    let pid = |number: &u32| i32::try_from(*number).ok().and_then(Pid::from_raw);
    let open = |pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?));
    let before = children().unwrap_or_default();
    let opened: Vec<_> = before.iter().filter_map(pid).filter_map(open).collect();
    // A number that is still a child's after it was opened was not another process's meanwhile.
    let still = children().unwrap_or_default();
    for (pid, child) in opened {
        if u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| still.contains(&pid)) {
            let _ = pidfd_send_signal(child, Signal::KILL);
        }
    }
}

/// One line for each open descriptor.
pub(crate) fn descriptors() -> io::Result<Vec<String>> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        // The listing's own descriptor.
        if !target.starts_with("/proc/") {
            let number = path.file_name().map(|name| name.to_string_lossy().into_owned());
            open.push(format!("{} {}", number.unwrap_or_default(), target.display()));
        }
    }
    open.sort();
    Ok(open)
}
