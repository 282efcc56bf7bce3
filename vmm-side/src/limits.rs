//! What children, guests and devices can have the VMM side hold or read.

/// Replacements whose time is remembered: enough for a median, and no more in years of serving.
pub const MAX_REMEMBERED: usize = 4096;

/// Most entries of a batch, and how many there are unless configured (C1.4).
pub const MAX_ENTRIES: u32 = 4096;

/// Answers that nobody waits for any more, at most: a child that leaves so many open is not served
/// any further requests until it answered.
pub const MAX_UNANSWERED: usize = 64;

/// Longest line of a child's standard error that is passed on, in bytes: a screen of text.
pub const MAX_LINE: usize = 400;

/// Bytes of the standard error of a child that is tried, not relied on, that are looked at: it says one line.
pub const MAX_WORDS: usize = 4096;

/// Warnings of one child that are passed on as such in 10 s: what a person would read.
pub const MAX_WARNINGS: u32 = 20;

/// Processes that are remembered, those that run among them.
pub const MAX_CHILDREN: usize = 4096;

/// Bytes that are filled at most, of all windows of a function: a few milliseconds' worth.
pub const MAX_FILL: u64 = 64 << 20;

/// Written parts of one window's memory that are looked at: each costs a system call.
pub const MAX_EXTENTS: usize = 1024;

/// Bytes of memory that a child's control group may be charged for: its private memory, page tables, descriptors,
/// messages. Guest memory is charged to whoever touches it first, which no child does in its place.
pub const MAX_CHARGED: u64 = 256 << 20;

/// Deaths of one process that are repaired within 10 s, by default: many more than any accident, and few enough that
/// a guest whose requests kill the process does not keep the host busy.
pub const MAX_DEATHS: u32 = 100;

/// Happenings that wait for an observer, at most: some hundred bytes each, and more than ten seconds' worth of the
/// deaths of one function.
pub const MAX_HAPPENINGS: usize = 1024;

/// Requests to one process that are remembered for whoever asks why it died: what led to it, and 1 KiB.
pub const MAX_TRAIL: usize = 64;

/// Processes of one function that a spawner lets run at once: its own, a standby, its connection process, and as many
/// that are just ending.
pub const MAX_RUNNING: usize = 6;

/// Bytes of one of the two slots of a record of what is kept of a group: a thousand regions or GiB of guest memory for
/// each of twelve functions.
pub const MAX_RECORD: usize = 1 << 20;

/// Files of guest memory that are kept for a next instance of the VMM, of all its groups: VMMs have one or a few. A
/// keeper has a limit of its own for all descriptors.
pub const MAX_KEPT_FILES: usize = 128;

/// Descriptors that are kept of one client of a front end: four, and one for each vector; an NVMe controller with 64
/// queues fits.
pub const MAX_KEPT_OF_CLIENT: usize = 80;
/// Descriptors that are kept of all clients of a front end: the rest of the 256 that `cordon keep` has room for is for
/// functions and guest memory.
pub const MAX_KEPT_OF_CLIENTS: usize = 160;

/// Bytes of what a front end knows of one client, whose layout is the front end's own: its maps, its events, config
/// space and an answer.
pub const MAX_CLIENT_STATE: u64 = 1 << 20;

/// Other programs that a spawner keeps open at once: the one that serves, the one before it, and the one that is tried.
pub const MAX_PROGRAMS: usize = 4;
