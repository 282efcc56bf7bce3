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
    let wanted = WANTED_DESCRIPTORS.min(most);
    if wanted <= current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }) {
        Ok(()) => wanted,
        Err(_) => current,
    }
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
}
