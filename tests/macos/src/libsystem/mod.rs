//! libSystem over Linux, by Darwin's rules. Each rule that differs from Linux says which source it follows.

pub(crate) mod arguments;
pub(crate) mod exit;
pub(crate) mod page;
pub(crate) mod runner;

mod confined;
mod files;
mod kqueue;
mod locks;
mod memory;
mod poll;
mod process;
mod signals;
mod sockets;
mod spawn;
mod system;
mod text;
mod threads;
mod time;

use darwin_abi::Symbol;

/// Every table of this folder.
pub(crate) fn symbols() -> Vec<&'static [Symbol]> {
    let mut all = vec![
        arguments::SYMBOLS,
        exit::SYMBOLS,
        files::SYMBOLS,
        files::directories::SYMBOLS,
        files::shm::SYMBOLS,
        files::stat::SYMBOLS,
        kqueue::SYMBOLS,
        locks::SYMBOLS,
        memory::SYMBOLS,
        poll::SYMBOLS,
        process::SYMBOLS,
        signals::SYMBOLS,
        spawn::SYMBOLS,
        system::SYMBOLS,
        text::SYMBOLS,
        threads::SYMBOLS,
        time::SYMBOLS,
    ];
    all.extend(sockets::TABLES);
    all.push(ERRNO);
    all
}

/// Where errno is.
const ERRNO: &[Symbol] = darwin_abi::symbols! { "___error" => darwin_abi::last };
