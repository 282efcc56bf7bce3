//! Runs an arm64 Mach-O program on arm64 Linux, natively or under qemu-aarch64, by Darwin's rules.
//!
//! ```text
//! macho-runner PROGRAM [ARGUMENT]…
//! ```
//!
//! The image is mapped with a slide, its chained fixups are applied, and every symbol that it imports is
//! bound to a function of this program: libSystem ([`libsystem`]), the unwinder ([`unwind`]), and the Mach
//! kernel with what lies on it (`mach-kernel`). It is strict: an import that is not implemented ends the run
//! before the first instruction of the image, with the names of what is missing.
//!
//! It is trusted by nobody and trusts the image: this is a test tool, and no sandbox.

#![cfg_attr(not(test), no_main)]

mod image;
mod imports;
mod libsystem;
mod start;
mod tlv;
mod unwind;

/// No image was run: what /bin/sh gives for a program that cannot be executed.
const NOT_RUN: i32 = 126;

/// The C library's `main`, so that Rust's own start changes nothing that a program would find changed: it ignores
/// SIGPIPE and handles SIGSEGV.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code, reason = "the harness has a main of its own"))]
extern "C" fn main() -> i32 {
    let error = match start::run() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("macho-runner: {error}");
    NOT_RUN
}
