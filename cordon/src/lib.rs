//! What the suites share with the `cordon` command.
//!
//! | module | what |
//! | --- | --- |
//! | [`confinement`] | what confines a running `cordon serve` |
//! | [`crash`] | what is kept of the death of a device process |
//! | [`event`] | what a running `cordon serve` prints |
//! | [`protocol`] | what is said on the control socket of one |
//! | [`selftest`] | forbidden things, tried from inside the sandbox |

pub mod confinement;
pub mod crash;
pub mod event;
pub mod protocol;
pub mod selftest;
