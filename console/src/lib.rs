//! How Cordon's programs meet a terminal, a pipe or a service manager.
//!
//! | module | what |
//! | --- | --- |
//! | [`arguments`] | the command line, and `--help` whose output may fail to be written |
//! | [`exit`] | exit statuses, the same in every program |
//! | [`interrupt`] | SIGINT, SIGTERM and SIGHUP as a value and a descriptor to wait for |
//! | [`log`] | log lines, limited by rate and written by a thread of their own |
//! | [`output`] | standard output: what cannot be written is an error, never a panic |
//! | [`progress`] | long work that shows itself |
//! | [`spool`] | lines on their way to a descriptor, in a bounded queue behind a writer thread |
//!
//! Linked by every program of the workspace but the one that runs inside a guest. It trusts whoever
//! started the program, and not that anybody reads what the program writes.

pub mod arguments;
pub mod exit;
pub mod interrupt;
mod limits;
#[cfg(feature = "log")]
pub mod log;
pub mod output;
#[cfg(feature = "progress")]
pub mod progress;
mod rate;
pub mod spool;
mod sys;
mod wait;

pub use arguments::{parse, parse_from};
pub use interrupt::{Interrupt, Interrupted, Signal};
pub use output::{Output, OutputError, complain, line};
pub use spool::{LeftOut, LeftOutTotals, Spool};

/// Writes a line to standard output, formatted as by `format!`; an
/// [`OutputError`] if it cannot be written.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::line(format_args!($($argument)*)) };
}
