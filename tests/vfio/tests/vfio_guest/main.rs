//! Real kernel VFIO: a Linux host in stock QEMU under TCG, with an emulated IOMMU and emulated devices, in which our
//! programs run as on a machine of their own. `cargo xtask guest --prepare` prepares what is needed; if it cannot be,
//! these tests fail and say why. One boot serves as many of them as can share it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]
#![cfg(target_arch = "x86_64")]

mod kernel_vfio;
