//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors on macOS, whose hard limit may say that there is none.
const OPEN_MAX: u64 = 10_240;

/// Raises the number to as many as are allowed: the usual soft limit is for programs that use
/// `select`. Confined processes lower theirs themselves.
pub(crate) fn raise_descriptors() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let set = |most| setrlimit(Resource::Nofile, Rlimit { current: most, maximum: hard });
    if set(hard).is_err()
        && let Err(error) = set(Some(hard.map_or(OPEN_MAX, |hard| hard.min(OPEN_MAX))))
    {
        tracing::warn!("the limit of open descriptors cannot be raised: {error}");
    }
}

/// How many there may be now.
pub(crate) fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
