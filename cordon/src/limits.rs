//! What a peer can have this program hold or read, and how many descriptors it may have.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Crash reports that are kept in a folder, the last ones: a file of each is open for as long as the server runs.
pub(crate) const MAX_REPORTS: usize = 16;

/// Bytes of a crash report: 64 requests and a sandbox are a quarter of it.
pub(crate) const MAX_REPORT: usize = 64 << 10;

/// Longest answer of a control socket that is taken, in bytes: the metrics of 256 functions are a quarter of it.
pub(crate) const MAX_ANSWER: u64 = 8 << 20;

/// Longest line of a peer of the control socket, in bytes: a hundred faults to arm.
pub(crate) const MAX_CONTROL_LINE: usize = 64 * 1024;

/// Most connections to the control socket at once: each has a thread. Beyond it the one that was silent for
/// longest is closed.
pub(crate) const MAX_CONTROL_PEERS: usize = 32;

/// Most faults of a plan that are armed over the control socket: each is kept until the server ends.
pub(crate) const MAX_CONTROL_FAULTS: usize = 1024;

/// Descriptors that `cordon keep` holds for its command: those of several groups, and of guest memory.
#[cfg(target_os = "linux")]
pub(crate) const MAX_KEPT: usize = 256;

/// Longest name of one of them, in bytes, as with systemd.
#[cfg(target_os = "linux")]
pub(crate) const MAX_KEPT_NAME: usize = 255;

/// Most of them beside one message: a command stores one at a time, since each has a name of its own.
#[cfg(target_os = "linux")]
pub(crate) const MAX_KEPT_AT_ONCE: usize = 16;

/// Longest message of a command to `cordon keep`, in bytes: a few lines.
#[cfg(target_os = "linux")]
pub(crate) const MAX_NOTIFICATION: usize = 4096;

/// Longest config file of `cordon serve` that is read, in bytes: thousands of devices.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

/// How long a thread that serves may be at one thing before it is taken for stuck: a command has a deadline
/// of some seconds, and taking leave of a client is several.
pub(crate) const MAX_TURN: Duration = Duration::from_secs(30);

/// Slow replacements of one torture that are told of; the summary counts all.
pub(crate) const MAX_SLOW: u64 = 20;

/// Bytes of a tool's output that are read: ioreg prints some 10 MB.
pub(crate) const MAX_OUTPUT: u64 = 64 << 20;

/// Most descriptors on macOS, whose hard limit may say that there is none.
const OPEN_MAX: u64 = 10_240;

/// Raises the number to as many as are allowed: the usual soft limit is for programs that use
/// `select`. Confined processes lower theirs themselves.
pub(crate) fn raise_descriptors() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let set = |most| setrlimit(Resource::Nofile, Rlimit { current: most, maximum: hard });
    if set(hard).is_err()
        && let Err(error) = set(Some(open_max(hard)))
    {
        tracing::warn!("the limit of open descriptors cannot be raised: {error}");
    }
}

/// What is asked for where the hard limit itself is refused.
fn open_max(hard: Option<u64>) -> u64 {
    hard.map_or(OPEN_MAX, |hard| hard.min(OPEN_MAX))
}

/// How many there may be now.
pub(crate) fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Counts the slow replacements of one torture that were told of.
#[derive(Default)]
pub(crate) struct SlowTold(u64);

impl SlowTold {
    /// Whether another one is told of.
    pub(crate) fn one_more(&mut self) -> bool {
        let tell = self.0 < MAX_SLOW;
        self.0 += u64::from(tell);
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_slow_replacements_are_told_of_and_one_more_is_not() {
        let mut told = SlowTold::default();
        let all = (0..MAX_SLOW + 5).filter(|_| told.one_more()).count() as u64;
        assert_eq!(all, MAX_SLOW);
    }

    #[test]
    fn a_hard_limit_that_is_refused_is_asked_for_up_to_what_macos_has() {
        for (hard, asked) in [
            (None, OPEN_MAX),
            (Some(OPEN_MAX + 1), OPEN_MAX),
            (Some(OPEN_MAX), OPEN_MAX),
            (Some(OPEN_MAX - 1), OPEN_MAX - 1),
        ] {
            assert_eq!(open_max(hard), asked, "{hard:?}");
        }
    }
}
