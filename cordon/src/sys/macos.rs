//! macOS: children as the kernel lists them, killed by number; descriptors by /dev/fd.
#![expect(unsafe_code, reason = "no library lists the children of a process")]

mod confined;
mod facts;
mod handed;
mod manager;

use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) use confined::{Confined, SPAWNER, spawner, with_spawner};
pub(crate) use facts::facts;
pub(crate) use handed::handed_groups;
pub(crate) use manager::{Manager, passed};

/// macOS has nothing of the kind: what `command` starts goes on without its parent.
pub(crate) fn end_with_parent(_: &mut Command) {}

/// Whether a socket listens, or is connected. What does neither is taken for one that listens, which macOS
/// does not tell: the first look for a client says what is wrong with it.
pub(crate) fn listens(socket: &OwnedFd) -> Result<Option<bool>, Errno> {
    match rustix::net::getpeername(socket) {
        Ok(_) => Ok(Some(false)),
        Err(Errno::NOTCONN) => Ok(Some(true)),
        Err(error) => Err(error),
    }
}

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

/// Nothing that is kept would go on: the dext ends with whoever has it open.
pub(crate) fn keep(_: &crate::keep::KeepOptions) -> Result<(), crate::Failure> {
    Err("cordon keep is for Linux: here no device goes on without the program that has it".into())
}

/// There is no VFIO.
pub(crate) fn vfio_group(_: u32) -> Option<crate::host::Group> {
    None
}

/// IOKit's registry has only those that a driver of the system's published, and says of none whose it is in
/// a form that is documented.
pub(crate) fn pci_functions() -> crate::host::Host {
    Err("macOS has no interface for it (see ioreg -l -w0 -c IOPCIDevice)".to_owned())
}
