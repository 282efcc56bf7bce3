//! How a process ends.

use std::ffi::c_int;

use darwin_abi::{Symbol, symbols};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_exit" => exit,
    "__exit" => libc::_exit,
    "_abort" => libc::abort,
};

/// `exit`: the destructors of the calling thread's variables come first (Libc-1669, `stdlib/FreeBSD/exit.c`).
pub(crate) extern "C" fn exit(status: c_int) -> ! {
    crate::tlv::run_destructors();
    std::process::exit(status)
}
