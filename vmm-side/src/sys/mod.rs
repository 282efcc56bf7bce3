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
use std::os::unix::ffi::OsStrExt as _;

use crate::child::Start;

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
            .chain(start.arguments.iter().map(|argument| text(argument)))
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
