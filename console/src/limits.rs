//! What waits for a reader, and how much of it one source may say.

/// Bytes that wait to be written, at most: a reader that pauses loses nothing, one that stopped costs no more.
pub(crate) const MAX_WAITING: usize = 256 << 10;

/// Bytes of whole lines that are written at once, unless a line is longer.
pub(crate) const MAX_AT_ONCE: usize = 16 << 10;

/// Lines that a source may say at once.
pub(crate) const MAX_BURST: u32 = 20;

/// Sources that are remembered; what more there are share the allowance of one.
pub(crate) const MAX_SOURCES: usize = 1024;
