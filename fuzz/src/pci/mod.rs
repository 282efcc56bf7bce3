//! `cordon_pci` over config spaces that no device should have, and guests that write anything.

pub mod capabilities;
mod device;
pub mod writes;
