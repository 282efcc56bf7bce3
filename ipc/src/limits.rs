//! What a peer can have this side hold, take or be told, in one place. Whoever receives checks against these before
//! anything is allocated.

/// Longest name of a root bridge, in bytes: it is shown to people, and registry names are far shorter.
pub const MAX_ROOT_BRIDGE_NAME: usize = 63;

/// Largest message, header included: a batch of 4096 DMA entries of 24 bytes fits (apple-dma),
/// and a Linux socket takes it whole with its default buffer of 208 KiB.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Most descriptors beside one message: more than the 16 that any vfio-user client sends at once,
/// and enough for every window of six BARs that are each split in three.
pub const MAX_HANDLES: usize = 32;

/// Most messages that are kept for a peer that does not read: answers to what it asked at once.
pub const MAX_UNSENT: usize = 4;

/// Messages with descriptors that may be on their way at once on a stream, whose descriptors are held open until they
/// are acknowledged.
pub const MAX_HELD: usize = 64;

/// Smallest message, in bytes, that a peer must take: one that takes less cannot be told anything useful.
pub const MIN_MESSAGE: u32 = 8 * 1024;

/// Most vectors that one request assigns: one descriptor each fits beside a message.
pub const MAX_ASSIGN: usize = MAX_HANDLES;

/// Most dwords of config space that [`Known`](crate::wire::function::Known) has: all of them.
pub const MAX_KNOWN: usize = 4096 / 4;

/// Most entries of one request; a companion's batch is one message.
pub const MAX_BATCH: usize = 4096;

/// Most functions that one report names: a bus full of multi-function devices.
pub const MAX_FUNCTIONS: usize = 256;

/// Most sockets that one spawner makes: two for each of 256 functions, and one more.
pub const MAX_GRANTED_SOCKETS: usize = 513;

/// Longest path of a spawner's grant, in bytes, as the system has it.
pub const MAX_GRANTED_PATH: usize = 4096;
