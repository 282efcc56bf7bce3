//! What differs between systems: starting a child and watching it. One file per system, with
//! identical signatures.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub(crate) use macos::*;

use std::ffi::{CString, OsStr, c_char};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Whether the child must be isolated before it runs: in user and pid namespaces of its own on Linux.
/// On macOS there is nothing of the kind, and it confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Or it is not started.
    Required,
    /// If that can be had; the child reports what is missing.
    Preferred,
}

/// What a child is started with. It gets 0 and 1 on /dev/null, 2 and 3 from here, nothing else,
/// and no environment but the two variables that ask a Rust program to say more.
pub(crate) struct Start<'s> {
    pub(crate) program: &'s Path,
    pub(crate) arguments: &'s [String],
    pub(crate) stderr: BorrowedFd<'s>,
    pub(crate) tube: BorrowedFd<'s>,
    pub(crate) isolation: Isolation,
    /// Where it sends memory that has no descriptor: on macOS the one port that it inherits.
    pub(crate) inbox: &'s ipc::MemoryInbox,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Status(i32),
    Signal(i32),
    /// Somebody else reaped it.
    Unknown,
}

/// A command line and an environment as the system wants them.
struct Words {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Words {
    fn of(start: &Start<'_>) -> io::Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
        let program = text(start.program.as_os_str())?;
        let arguments = std::iter::once(Ok(program.clone()))
            .chain(start.arguments.iter().map(|argument| text(argument.as_ref())))
            .collect::<Result<_, _>>()?;
        let environment = ["RUST_LOG", "RUST_BACKTRACE"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
            .map(|pair| text(pair.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self { program, arguments, environment })
    }

    /// Pointers to strings, and null. They are good for as long as the strings are.
    fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
        strings.iter().map(|one| one.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    }
}
