//! What a confined process may have, and how deep a profile may be.

/// Open descriptors that a role may have: its tube, its dext connections, a signaller for each of
/// 2048 vectors (the function process), 1024 guest RAM regions of each of eight functions (the connection process).
pub const MAX_DESCRIPTORS: u64 = 10_240;

/// Bytes that the stack may grow to: the usual limit.
pub const MAX_STACK: u64 = 8 << 20;

/// Deepest list of a profile that is read: the reader recurses.
pub const MAX_DEPTH: usize = 16;

/// Bytes of private writable memory of a connection process: about 100 bytes for each of the 65,536 registrations
/// that each of eight functions may have.
pub const MAX_CONNECTION_MEMORY: u64 = 128 << 20;

/// Bytes of private writable memory of a function process or a lister, which use less than 1 MiB, and a few more
/// while a companion's largest batch is in their hands.
pub const MAX_FUNCTION_MEMORY: u64 = 32 << 20;

/// Bytes of private writable memory of `cordon serve`: what all clients together make it keep is far below, and what
/// it would take to hold up a machine above.
pub const MAX_SERVER_MEMORY: u64 = 2 << 30;
