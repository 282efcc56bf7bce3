//! What the suites share with the `cordon` command.
//!
//! | module | what |
//! | --- | --- |
//! | [`event`] | what a running `cordon serve` prints |
//! | [`selftest`] | forbidden things, tried from inside the sandbox |

pub mod event;
pub mod selftest;
