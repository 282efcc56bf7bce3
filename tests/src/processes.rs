//! Which processes there are, and pipes that nobody reads.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipc::Deadline;
use ipc::poll::{self, Source};

/// Has what `command` starts end by SIGHUP unless it says otherwise, also where whoever started the
/// suites (nohup, a background job) has that signal ignored, which is inherited.
#[allow(unsafe_code, reason = "no safe interface sets a signal of a child")]
pub fn end_by_hangup(command: &mut Command) {
    let default = || {
        // SAFETY: async-signal-safe, and no handler is installed.
        let before = unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        if before == libc::SIG_ERR { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: what runs between fork and exec is one system call, which allocates nothing.
    unsafe { command.pre_exec(default) };
}

/// Processes that have `marker` on their command line: the path of a folder that only one test uses.
#[must_use]
pub fn processes_of(marker: &Path) -> Vec<(u32, String)> {
    let marker = marker.as_os_str().as_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().parse::<u32>();
        let Ok(pid) = pid else { continue };
        // Empty for a process that has ended.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(marker.len()).any(|part| part == marker) {
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// Children of every thread of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let pids = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    pids.collect()
}

/// Waits until nobody can write to a pipe any more, for at most `time`.
///
/// # Panics
/// When it cannot be waited for.
pub fn closes_within(reader: &impl AsFd, time: Duration) -> bool {
    let gone = [Source::hangup(reader, ())];
    !poll::wait(&gone, Some(Deadline::after(time))).unwrap().is_empty()
}

/// A pipe in which there is no room: the end that nobody reads, and the one to write to.
///
/// # Panics
/// When there is no pipe.
#[must_use]
pub fn full_pipe() -> (OwnedFd, File) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, b"nobody reads this\n").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer.into())
}
