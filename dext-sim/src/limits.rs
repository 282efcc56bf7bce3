//! How many connections there may be, and whose.
//!
//! A connection costs descriptors and a thread, of which this process has only so many. All
//! connections together stay within what there is, and no process has so many of them that
//! others find none.

use std::collections::HashMap;
use std::sync::Arc;

use ipc::tube::MAX_HANDLES;
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most DMA regions of one connection: what the platform has.
pub(crate) const MAX_REGIONS: usize = 65_536;

/// Most chunks of one region: what the dext takes.
pub(crate) const MAX_CHUNKS: u64 = 128;

/// Largest buffer of AllocateDMABuffer, in bytes: 1.5 GiB, what the platform has.
pub(crate) const MAX_BUFFER: u64 = 3 << 29;

/// Longest time of a fault in milliseconds: ten minutes.
pub(crate) const MAX_MILLISECONDS: u64 = 600_000;

/// Longest line of the control socket, in bytes: each is one command.
pub(crate) const MAX_LINE: u64 = 4096;

/// Conversations at once: each has a thread, so that one who is silent holds up nobody.
pub(crate) const MAX_CONVERSATIONS: usize = 16;

/// Most connections that one function has open at once: each has a thread here.
pub(crate) const MAX_CLIENTS: usize = 64;

/// Most lines that one connection has in the log: enough to find out what it does.
pub(crate) const MAX_LINES: u32 = 8;

/// Mappings that all functions together may have: half of what Linux allows a process by default.
pub(crate) const MAX_MAPPINGS: usize = 32_768;

/// Most mappings of one function: some clients have a file for each huge page.
pub(crate) const MAX_MAPPINGS_OF_ONE: usize = 4096;

/// Addresses that all functions together may have: half of those of a process.
pub(crate) const MAX_BYTES: u64 = 1 << 46;

/// Most of them of one function.
pub(crate) const MAX_BYTES_OF_ONE: u64 = 1 << 42;

/// Most bytes mapped at once in strict mode: 1.5 GiB, what the platform has.
pub(crate) const MAX_STRICT_BYTES: u64 = 3 << 29;

/// Most mappings at once in strict mode: what the platform has.
pub(crate) const MAX_STRICT_MAPPINGS: usize = 65_536;

/// Most mappings of one function in identity mode, which has no limits of the platform's: enough for
/// four connections that each hold all they may. It bounds what the clients of one function can have
/// this program hold.
pub(crate) const MAX_IDENTITY_MAPPINGS: usize = 4 * 65_536;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 1024;
/// Most of them of one process: one for each function, and looking.
const MAX_OF_A_PROCESS: usize = 128;
/// Fewer than this are no use.
const MIN_CONNECTIONS: usize = 32;

/// Descriptors that are asked for: macOS grants no more.
const WANTED_DESCRIPTORS: u64 = 10_240;
/// Descriptors of a connection: its socket, its event, its DMA buffer, and what may come beside a
/// message.
const OF_A_CONNECTION: u64 = 3 + MAX_HANDLES as u64;
/// Descriptors of a function: its BARs, its image and its interrupt page.
const OF_A_FUNCTION: u64 = 8;
/// Descriptors of everything else, the control socket's clients among it.
const OF_THE_REST: u64 = 64;

/// There are too few descriptors to serve anybody.
#[derive(Debug, thiserror::Error)]
#[error(
    "{found} descriptors are too few for {functions} functions: {needed} are needed (ulimit -n)"
)]
pub(crate) struct TooFewDescriptors {
    found: u64,
    needed: u64,
    functions: usize,
}

/// Raises the limit of descriptors as far as it can be and is of use; the limit from then on.
pub(crate) fn raise_descriptors() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(u64::MAX);
    let current = now.current.unwrap_or(u64::MAX);
    let wanted = wanted(current, most);
    if wanted == current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }) {
        Ok(()) => wanted,
        Err(_) => current,
    }
}

/// What the limit is raised to, of a process that has `current` and may have `most`.
fn wanted(current: u64, most: u64) -> u64 {
    WANTED_DESCRIPTORS.min(most).max(current)
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("all {0} connections are in use")]
    All(usize),
    #[error("process {process} has {connections} connections")]
    Process { process: u32, connections: usize },
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_process: HashMap<u32, usize>,
}

/// Who is connected.
#[derive(Debug)]
pub(crate) struct Admissions {
    limit: usize,
    counts: Mutex<Counts>,
}

/// A place among the connections, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    admissions: Arc<Admissions>,
    process: Option<u32>,
}

impl Admissions {
    /// As many as so many descriptors are enough for, beside those of the functions.
    pub(crate) fn new(descriptors: u64, functions: usize) -> Result<Arc<Self>, TooFewDescriptors> {
        let others = OF_THE_REST + OF_A_FUNCTION * functions as u64;
        let enough_for = descriptors.saturating_sub(others) / OF_A_CONNECTION;
        let limit = usize::try_from(enough_for).unwrap_or(usize::MAX).min(MAX_CONNECTIONS);
        if limit < MIN_CONNECTIONS {
            let needed = others + OF_A_CONNECTION * MIN_CONNECTIONS as u64;
            return Err(TooFewDescriptors { found: descriptors, needed, functions });
        }
        Ok(Arc::new(Self { limit, counts: Mutex::default() }))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock()
    }

    /// A place for a connection of `process`, if that is known.
    pub(crate) fn admit(self: &Arc<Self>, process: Option<u32>) -> Result<Admission, Refusal> {
        let mut counts = self.counts();
        if counts.all >= self.limit {
            return Err(Refusal::All(self.limit));
        }
        if let Some(process) = process {
            let connections = counts.by_process.get(&process).copied().unwrap_or(0);
            // Where there are few, nobody has them all.
            if connections >= MAX_OF_A_PROCESS.min(self.limit / 2) {
                return Err(Refusal::Process { process, connections });
            }
            counts.by_process.insert(process, connections + 1);
        }
        counts.all += 1;
        Ok(Admission { admissions: Arc::clone(self), process })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.admissions.counts();
        counts.all -= 1;
        let Some(process) = self.process else { return };
        let left = counts.by_process.get(&process).map_or(0, |count| count - 1);
        if left == 0 {
            counts.by_process.remove(&process);
        } else {
            counts.by_process.insert(process, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit_all(admissions: &Arc<Admissions>, process: Option<u32>) -> (Vec<Admission>, Refusal) {
        let mut admitted = Vec::new();
        loop {
            match admissions.admit(process) {
                Ok(one) => admitted.push(one),
                Err(refusal) => return (admitted, refusal),
            }
        }
    }

    #[test]
    fn no_process_has_all_places_and_places_come_back() {
        let admissions = Admissions::new(20_000, 2).unwrap();
        let (one, refusal) = admit_all(&admissions, Some(7));
        assert_eq!(one.len(), MAX_OF_A_PROCESS);
        assert_eq!(refusal, Refusal::Process { process: 7, connections: MAX_OF_A_PROCESS });
        let (others, refusal) = admit_all(&admissions, None);
        assert_eq!((one.len() + others.len(), refusal), (569, Refusal::All(569)));
        drop(one);
        assert_eq!(admit_all(&admissions, Some(7)).0.len(), MAX_OF_A_PROCESS);
        drop(others);
        let counts = admissions.counts();
        assert_eq!((counts.all, counts.by_process.len()), (0, 0));
    }

    #[test]
    fn with_few_descriptors_there_are_fewer_places_and_none_without_use() {
        let (few, _) = admit_all(&Admissions::new(2048, 1).unwrap(), None);
        assert_eq!(few.len(), 56);
        assert_eq!(admit_all(&Admissions::new(2048, 1).unwrap(), Some(1)).0.len(), 28);
        let error = Admissions::new(1024, 1).unwrap_err().to_string();
        assert!(error.contains("1024 descriptors are too few"), "{error}");
        assert!(error.contains("1192 are needed"), "{error}");
    }

    #[test]
    fn one_descriptor_too_few_is_too_few() {
        for functions in [1, 2, 257] {
            let needed = OF_THE_REST
                + OF_A_FUNCTION * functions as u64
                + OF_A_CONNECTION * MIN_CONNECTIONS as u64;
            let (enough, _) = admit_all(&Admissions::new(needed, functions).unwrap(), None);
            assert_eq!(enough.len(), MIN_CONNECTIONS);
            assert!(Admissions::new(needed - 1, functions).is_err(), "{functions}");
        }
    }

    #[test]
    fn no_more_descriptors_are_asked_for_than_are_of_use_and_none_are_given_up() {
        assert_eq!(wanted(1024, u64::MAX), WANTED_DESCRIPTORS);
        assert_eq!(wanted(1024, WANTED_DESCRIPTORS + 1), WANTED_DESCRIPTORS);
        assert_eq!(wanted(1024, WANTED_DESCRIPTORS - 1), WANTED_DESCRIPTORS - 1);
        assert_eq!(wanted(WANTED_DESCRIPTORS + 1, u64::MAX), WANTED_DESCRIPTORS + 1);
    }
}
