//! What the suites share with the `cordon` command.
//!
//! | module | what |
//! | --- | --- |
//! | [`selftest`] | forbidden things, tried from inside the sandbox |

pub mod selftest;
