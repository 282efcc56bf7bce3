//! What the parts of the Mach-O runner share: how a part lists what it implements, and Darwin's errno.
//!
//! Functions in a table are called by Mach-O code with Darwin's arm64 ABI. It differs from Linux's in what
//! follows (Apple, "Writing ARM64 code for Apple platforms"):
//!
//! - variadic arguments are all on the stack, in slots of 8 bytes: a shim takes eight register arguments first;
//! - arguments of fixed type beyond the eighth are packed on the stack by their own size, so two `u32` share
//!   8 bytes: a shim takes them as one `u64` and splits it;
//! - x18 is reserved, and Mach-O code never uses it.

pub mod descriptors;
mod errno;
mod hidden;

pub use errno::{Errno, error, fail, from_linux, last, result, set, to_linux};
pub use hidden::{HIDDEN, hide};

/// One symbol that Mach-O programs import, by its name in the image (with the leading underscore).
#[derive(Clone, Copy, Debug)]
pub struct Symbol {
    /// For example `_read`.
    pub name: &'static str,
    /// A function, or the address of a variable.
    pub address: *const (),
}

// SAFETY: the address of a function or a static is the same for every thread; it is only handed out.
unsafe impl Sync for Symbol {}
// SAFETY: as above.
unsafe impl Send for Symbol {}

/// A table of symbols: `symbols! { "_read" => read, … }`.
#[macro_export]
macro_rules! symbols {
    ($($name:literal => $function:expr),* $(,)?) => {
        &[$($crate::Symbol { name: $name, address: $function as *const () }),*]
    };
}
