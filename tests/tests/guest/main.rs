//! Stock QEMU with a Debian kernel and the kernel's own NVMe driver over `cordon serve`, under TCG, one
//! file for each subject. What is needed is prepared by `cargo xtask guest --prepare`; if it cannot
//! be, these tests fail and say why.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

mod arm64;
mod companion;
mod connection_death;
mod disks;
mod function_death;
mod interactive;
mod lifetime;
mod pin;
mod run;
mod serve;
mod upgrades;
