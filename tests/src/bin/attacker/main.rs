//! A process that the VMM side starts in the place of `device-proc`, that confines itself as a role of that
//! does, and then attacks: what a role would do that its guest has taken over.
//!
//! The file `attack` beside the program says which function's process attacks, in which role, and how:
//! `01:00.1 function floods-replies`, and perhaps control groups that it enters. Every other process does what `device-proc` does.
#![allow(clippy::unwrap_used, reason = "an attacker that fails fails its attack")]

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
use elsewhere::run;
#[cfg(target_os = "linux")]
use linux::run;

fn main() -> std::process::ExitCode {
    run()
}
