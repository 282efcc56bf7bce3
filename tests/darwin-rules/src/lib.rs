//! The rules of Darwin's that differ from Linux's and that the product depends on: one test for each.
//!
//! They are written from the kernel's sources, which each names, and from nothing of the product's. They run where
//! the Mach-O suites do, under the runner in `tests/macos`, and show that it keeps to the rules; on a Mac they would
//! show the same of the system. `cargo xtask macos` counts them.
//!
//! Sources are those of xnu-11417.101.15 (macOS 15.4).
#![cfg_attr(test, allow(unsafe_code, reason = "system calls, as a C program makes them"))]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a helper that fails fails its test"))]

#[cfg(all(test, target_os = "macos"))]
mod calls;
#[cfg(all(test, target_os = "macos"))]
mod memory;
#[cfg(all(test, target_os = "macos"))]
mod polling;
#[cfg(all(test, target_os = "macos"))]
mod processes;
#[cfg(all(test, target_os = "macos"))]
mod sockets;
