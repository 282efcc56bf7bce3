//! For tests of VMMs: a simulated device, faults as values, and waiting for what became of them.
//!
//! "Kill the function process at the third BAR write, and see my guest live":
//!
//! ```no_run
#![doc = include_str!("../examples/third-bar-write.rs")]
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`rig`] | [`Rig`]: a simulated device and a [`Host`](cordon_vmm::Host) of `cordon-vmm` over it, for VMMs that link that |
//! | [`served`] | [`Served`]: a simulated device and a `cordon serve`, for VMMs that speak vfio-user |
//! | [`faults`] | faults of device processes ([`function`], [`connection`]) and of the dext ([`DextFault`]) as values |
//! | [`simulator`] | [`Simulator`]: a running `dext-sim`: what its clients hold, its faults, its death |
//! | [`programs`] | where the programs are |
//! | [`guest`] | guest memory that a device reaches |
//! | [`wait`] | waiting for what another process does |
//!
//! What is started here ends with the value that stands for it, however the test ends: a [`Rig`] detaches, a
//! [`Served`] is stopped in order and killed if that takes longer than it may, a simulator ends with the pipe of its
//! standard input even when the test itself is killed. [`Rig::finish`] and [`Served::stop`] also look whether
//! anything is left.
//!
//! Runs where `cordon-vmm` runs. Nothing here is fit for production: whoever can connect to a simulator owns its
//! devices, so its socket is in a folder that only this user may enter.

mod error;
pub mod faults;
pub mod guest;
mod limits;
pub mod programs;
pub mod rig;
pub mod served;
pub mod simulator;
pub mod wait;

pub use cordon_vmm::PassthroughDevice;
pub use error::Error;
pub use faults::{DextFault, connection, function};
pub use programs::Programs;
pub use rig::{Rig, RigBuilder, Survived};
pub use served::Served;
pub use simulator::{Dart, Simulator};
