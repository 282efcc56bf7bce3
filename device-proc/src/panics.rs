//! A panic ends a confined process.
//!
//! Nothing unwinds: what a bug left half done is not to be gone on with, and cleaning up is the kernel's
//! and the dext's. It cannot be the profile's `panic = "abort"`, which holds for all programs of a
//! workspace, and `cordon serve` unwinds. Nor is it `abort`, which raises a signal by calls that the
//! sandbox forbids, so that the process would seem to have ended by a forbidden call.

use std::panic;
use std::process;

/// The exit status of a Rust program that panicked.
pub const STATUS: i32 = 101;

/// From here on a panic says what and where, as usual, and ends the process.
pub fn exit_on_panic() {
    let say = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        say(panic);
        process::exit(STATUS);
    }));
}
