//! Starting the command with what is kept, from descriptor 3 on.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use super::shelf::Shelf;
use crate::Failure;
use crate::keep::{KeepOptions, STARTER};
use crate::sys::end_with_parent;

/// As of sd_listen_fds(3).
const FIRST: RawFd = 3;

/// Starts it, by a process of this program that becomes it.
pub(super) fn start(
    options: &KeepOptions,
    program: &Path,
    notify: &Path,
    shelf: &Shelf,
) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| format!("cannot run {}: {error}", program.display());
    // This program, also when another file is at its path by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg(STARTER).arg("--").arg(program).args(&options.command[1..]);
    for name in super::super::manager::VARIABLES {
        command.env_remove(name);
    }
    command.env("NOTIFY_SOCKET", notify);
    // As systemd says how much it keeps.
    command.env("FDSTORE", crate::limits::MAX_KEPT.to_string());
    let names: Vec<&str> = shelf.all().map(|(_, name)| name).collect();
    if !names.is_empty() {
        command.env("LISTEN_FDS", names.len().to_string());
        command.env("LISTEN_FDNAMES", OsStr::new(&names.join(":")));
    }
    end_with_parent(&mut command);
    let above = RawFd::try_from(names.len()).map_or(RawFd::MAX, |count| FIRST + count);
    let duplicates = shelf.duplicates(above).map_err(failed)?;
    let _taken = take_all_below(above).map_err(failed)?;
    let numbers: Vec<RawFd> = duplicates.iter().map(OwnedFd::as_raw_fd).collect();
    let place = move || {
        for (from, to) in numbers.iter().zip(FIRST..) {
            // SAFETY: both are numbers. What `to` is in this process, which is about to run another program, is
            // closed then: everything here is, and std's own pipe lies above, since every number below is taken.
            if unsafe { libc::dup2(*from, to) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls, and takes no lock and no memory.
    unsafe { command.pre_exec(place) };
    let child = command.spawn().map_err(failed)?;
    drop(duplicates);
    Ok(child)
}

/// Descriptors in all places from [`FIRST`] to `above` that are free: nobody else gets one of these meanwhile.
fn take_all_below(above: RawFd) -> std::io::Result<Vec<OwnedFd>> {
    let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
    let mut taken = Vec::new();
    loop {
        let next = rustix::io::fcntl_dupfd_cloexec(&null, FIRST)?;
        if next.as_raw_fd() >= above {
            taken.push(null);
            return Ok(taken);
        }
        taken.push(next);
    }
}
