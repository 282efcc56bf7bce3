//! How much each process holds, at the start of a run and at its end.

use serde::Serialize;

/// How much a process holds. Zeroes for what this user may not look at (a confined process, unless
/// one is root).
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Size {
    descriptors: usize,
    mappings: usize,
    /// Memory of its own: guest RAM and BARs are everybody's.
    kib: u64,
}

impl Size {
    pub(super) fn of(pid: u32) -> Self {
        let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let status = proc("status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Self {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
            mappings: proc("maps").map_or(0, |maps| maps.lines().count()),
            kib: number.unwrap_or(0),
        }
    }
}

/// A process at two moments.
#[derive(Debug, Serialize)]
pub(super) struct Growth {
    pub(super) process: &'static str,
    first: Size,
    last: Size,
}

/// What the moment explains: a replacement under way holds a dozen descriptors, a standby as many,
/// an allocator keeps some memory.
const SLACK: Size = Size { descriptors: 24, mappings: 24, kib: 4 * 1024 };

impl Growth {
    pub(super) fn between(process: &'static str, first: Size, last: Size) -> Self {
        Self { process, first, last }
    }

    /// Whether it holds more than the moment explains.
    pub(super) fn is_leak(&self) -> bool {
        let Self { first, last, .. } = self;
        last.descriptors > first.descriptors + SLACK.descriptors
            || last.mappings > first.mappings + SLACK.mappings
            || last.kib > first.kib + SLACK.kib
    }
}

impl std::fmt::Display for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { process, first, last } = self;
        write!(
            f,
            "{process}: {} to {} descriptors, {} to {} mappings, {} to {} KiB",
            first.descriptors, last.descriptors, first.mappings, last.mappings, first.kib, last.kib
        )
    }
}
