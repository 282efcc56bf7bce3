//! What the fuzz targets do with an input: a module for each. A target is a file of `fuzz_targets/`
//! that hands its input to one of them; its corpus is `corpus/NAME/`.

pub mod allocations;
pub mod companion;
pub mod dext_sim;
pub mod lane;
mod lists;
pub mod pci;
pub mod plans;
pub mod seatbelt;
pub mod tube;
pub mod vfio_user;
pub mod wire;
