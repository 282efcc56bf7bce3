//! The Mach kernel that programs under the runner meet: `mach_*`, IOKit, CoreFoundation as far as
//! IOKit's clients use it, libdispatch and Seatbelt.
//!
//! The runner binds what [`symbols`] lists, and calls [`start`] before the first instruction of the
//! image. What a child inherits is asked of [`inherit`] when it is spawned. What the program maps by itself
//! is told by [`mapped`] and [`unmapped`], and what Seatbelt mediates is asked of [`permits`].
//!
//! The state that processes share (ports, rights, messages, memory entries, who is confined by what) is in a
//! process of its own, which the first process of a run starts by a fork and which ends with the last one
//! ([`server`]); the rules are in [`state`]. Whatever is not simulated ends the caller with its name: it is never
//! answered as if it had been done.

mod cf;
mod client;
mod codes;
mod dispatch;
mod fail;
mod iokit;
mod ports;
mod sandbox;
mod server;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod vm;
mod wire;

use std::collections::HashMap;
use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use darwin_abi::Symbol;

use wire::{Reply, Request};

/// Where the simulated dext is that IOKit's registry shows, for the first process of a run. Without it the registry
/// is empty. Children are told with what they inherit, whatever their environment.
pub const DEXT_VARIABLE: &str = "MACHO_RUNNER_DEXT";

/// A file to which a run adds a line for each call of the finite lists that a confined process of it makes, the first
/// time that the process makes it: the operation, and the constant of the call.
pub const SEEN_VARIABLE: &str = "MACHO_RUNNER_SEEN";

/// Every table of this crate.
pub fn symbols() -> Vec<&'static [Symbol]> {
    let mut all = vec![ports::SYMBOLS, vm::SYMBOLS, sandbox::SYMBOLS, cf::SYMBOLS];
    all.extend(dispatch::symbols());
    all.extend(iokit::symbols());
    all
}

/// Called once in each process, before any code of the image runs and while it has one thread. `inherited` is what
/// [`inherit`] gave the parent for this process, if it was spawned by one that runs under the runner.
pub fn start(inherited: Option<&str>) {
    match inherited.map(|text| text.splitn(3, ' ').collect::<Vec<_>>()) {
        None => {
            match server::start() {
                Ok(kernel) => client::start(&kernel, None),
                Err(error) => fail::not_simulated(&format!("going on without a kernel ({error})")),
            }
            iokit::start(std::env::var(DEXT_VARIABLE).ok().as_deref());
        }
        Some(words) => match &words[..] {
            [kernel, birth, dext] => {
                client::start(kernel, birth.parse().ok());
                iokit::start((!dext.is_empty()).then_some(*dext));
            }
            _ => fail::not_simulated("a child that inherited something else"),
        },
    }
    sandbox::start();
}

/// What a child that is about to be spawned inherits: a text for its [`start`], and descriptors that stay open
/// in it under the same numbers. `registered` are the ports of posix_spawnattr_set_registered_ports_np; without them
/// the child has its parent's.
///
/// # Errors
///
/// A Darwin errno, which posix_spawn returns: EINVAL for a right that cannot leave its task.
pub fn inherit(registered: Option<&[u32]>) -> Result<Inherited, c_int> {
    match client::ask(&Request::Birth { registered: registered.map(<[u32]>::to_vec) }) {
        Reply::Number(birth) => {
            let dext = iokit::dext().map(|path| path.display().to_string()).unwrap_or_default();
            let text = format!("{} {birth} {dext}", client::kernel());
            Ok(Inherited { text, descriptors: Vec::new() })
        }
        _ => Err(darwin_abi::error::EINVAL),
    }
}

/// See [`inherit`].
#[derive(Debug, Default)]
pub struct Inherited {
    /// For the child's [`start`]; no NUL in it.
    pub text: String,
    /// They stay open in the child. All of them are above the program's own descriptors.
    pub descriptors: Vec<c_int>,
}

/// A Linux descriptor that is readable while the port `name` has a message: what EVFILT_MACHPORT waits for. It
/// belongs to the port and is not closed by the caller. `None` for what is no receive right.
pub fn readable(name: u32) -> Option<c_int> {
    static KNOWN: Mutex<Option<HashMap<u32, OwnedFd>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(fd) = known.get(&name) {
        return Some(fd.as_raw_fd());
    }
    match client::ask_with(&Request::Readable { name }, &[]) {
        (Reply::Readable, handles) => {
            let fd = client::reserved(handles.one().ok()?);
            let number = fd.as_raw_fd();
            known.insert(name, fd);
            Some(number)
        }
        _ => None,
    }
}

/// Whether this process may do `operation` (a name of Seatbelt's) on `object`: a path, a service's or variable's
/// name, a kernel class, `self` for the process itself, or nothing. True while it is not confined.
pub fn permits(operation: &str, object: &str) -> bool {
    sandbox::permits(operation, object)
}

/// The program mapped `length` bytes of `file` from `offset` at `address`, shared. `protection` is the most that the
/// mapping can be protected to (PROT_*): what an address of the program's means to IOKit and to memory entries.
pub fn mapped(address: u64, length: u64, file: BorrowedFd<'_>, offset: u64, protection: c_int) {
    space::mapped(address, length, file, offset, protection);
}

/// What the program had mapped there is unmapped, or something else is mapped over it.
pub fn unmapped(address: u64, length: u64) {
    space::unmapped(address, length);
}
