//! What a client can have the server take at once. What it can have it hold is its
//! [`Budget`](crate::options::Budget).

/// Most data of one REGION_READ or REGION_WRITE, in bytes: what stock clients ask for at most.
pub const MAX_DATA: u32 = 1 << 20;

/// Largest message: the data and what describes it.
pub const MAX_MESSAGE: usize = 16 + 16 + MAX_DATA as usize;

/// Most descriptors beside one message: what the clients send at most.
pub const MAX_DESCRIPTORS: usize = 16;

/// Most descriptors beside a message that a client may say it takes: more than any system sends.
pub const MAX_TOLD_DESCRIPTORS: u64 = 1024;

/// Most data of one message that a client may say it takes, in bytes: QEMU's own limit.
pub const MAX_TOLD_DATA: u64 = 64 << 20;

/// Memory files of one client, by default: one for each of QEMU's 256 memory slots.
pub const MAX_FILES: usize = 256;

/// Events of one client, by default: one for each vector that MSI-X can have.
pub const MAX_EVENTS: usize = 2048;

/// Regions of guest memory of one client, by default: as many as a connection process takes.
pub const MAX_REGIONS: usize = 1024;

/// Refused commands of one client that are reported at once, by default: what a person would read.
pub const MAX_REPORTS: u32 = 20;

/// Most data of one REGION_READ or REGION_WRITE of a client that is kept for a next server, in bytes: a message and its
/// answer each fit into a socket and a pipe as the system makes them. A user who has too many pipes gets smaller ones,
/// into which an answer of more than 8 KiB does not fit: a kill while it is sent ends the client. Clients are told this
/// limit when they connect. They read config space, 4 KiB, by one message, and registers otherwise.
pub const MAX_KEPT_DATA: u32 = 16 << 10;

/// Largest message that stays in its socket until its answer is known: the data and what describes it.
pub const MAX_KEPT_MESSAGE: usize = 16 + 16 + MAX_KEPT_DATA as usize;

/// Most bytes of what is known of one client that is kept: its maps, events and config space, with an MSI-X table of
/// 2048 vectors, are 96 KiB.
pub const MAX_SESSION: usize = 128 << 10;
