//! macOS: children as the kernel lists them, killed by number; descriptors by /dev/fd.
#![expect(unsafe_code, reason = "no library lists the children of a process")]

use std::io;

use rustix::process::{Pid, Signal, kill_process};

/// Children that are listed, at most.
const MOST: usize = 4096;

/// Children of this process.
pub(crate) fn children() -> io::Result<Vec<u32>> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let mut pids = vec![0i32; MOST];
    let bytes = i32::try_from(std::mem::size_of_val(&pids[..])).map_err(io::Error::other)?;
    // SAFETY: `pids` has room for `bytes` bytes of process ids, which are plain numbers.
    let count = unsafe { libc::proc_listchildpids(own, pids.as_mut_ptr().cast(), bytes) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let known = pids.iter().take(count).filter_map(|pid| u32::try_from(*pid).ok());
    let mut children: Vec<u32> = known.filter(|pid| *pid != 0).collect();
    children.sort_unstable();
    Ok(children)
}

/// Kills every child, whatever it does. Numbers are not handles: one that is reaped and given to
/// another process between the two calls would be hit, which needs a whole round of numbers.
pub(crate) fn kill_children() {
    for child in children().unwrap_or_default() {
        if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// One line for each open descriptor.
pub(crate) fn descriptors() -> io::Result<Vec<String>> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/dev/fd")? {
        open.push(entry?.file_name().to_string_lossy().into_owned());
    }
    open.sort();
    Ok(open)
}
