//! `cordon keep`: starts a command, keeps what it gives while it is dead, and starts it again with that. See
//! `sys::keep`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::Failure;

/// The command that this program is run with to become the one that is kept.
pub(crate) const STARTER: &str = "keep-start";

/// For the end of `cordon keep --help`.
pub(crate) const HELP: &str = "\
The command stores descriptors as with systemd's FileDescriptorStoreMax=: it
sends FDSTORE=1 with FDNAME=NAME to NOTIFY_SOCKET, finds them again by
LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, and has them closed by
FDSTOREREMOVE=1. It is started again when it was killed or crashed: by any
signal but SIGHUP, SIGINT, SIGPIPE and SIGTERM, or with a status that is not 0
and something stored. A VMM that links cordon-vmm and has a store finds its
devices running; cordon serve, over VFIO, goes on with its devices and
clients.

Exit status:
    the command's, or 128 and the number of the signal that ended it; else
    1  it was not run, or failed; one line on standard error says why
    2  the command line makes no sense
  129, 130, 143
       ended by SIGHUP, SIGINT or SIGTERM, after ending the command";

/// What is kept for whom.
#[cfg_attr(target_os = "macos", allow(dead_code, reason = "there nothing is kept"))]
#[derive(Debug, Args)]
pub(crate) struct KeepOptions {
    /// Seconds to keep what a dead command left. The next one takes it by READY=1, by storing, or by removing
    /// anything.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How often in a row it is started again with nothing stored. While something is, it is
    /// for as long as --for says, from the first time on. The pause before it is 0.1 s, and is
    /// doubled each time up to 5 s, but for one that was killed (SIGKILL). All of that begins
    /// anew when it has run for a minute.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) restarts: u32,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[cfg_attr(target_os = "macos", allow(dead_code, reason = "there nothing is kept"))]
impl KeepOptions {
    /// How long what was left is kept.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Becomes the command, which is told that what was passed on is for it: its number is known here first.
pub(crate) fn start(words: &[OsString]) -> Result<Infallible, Failure> {
    let (program, arguments) = words.split_first().ok_or("there is no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    if std::env::var_os("LISTEN_FDS").is_some() {
        command.env("LISTEN_PID", std::process::id().to_string());
    }
    Err(format!("cannot run {}: {}", program.display(), command.exec()).into())
}
