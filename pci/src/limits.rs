//! What a device or a guest can have this crate walk or keep.

/// Most standard capabilities that fit in the 192 bytes behind the header.
pub const MAX_STANDARD: usize = 48;

/// Most extended capabilities that a walk yields. 960 would fit; no device has a tenth of these.
pub const MAX_EXTENDED: usize = 128;

/// Most bytes of one write. Longer ones are cut in pieces by whoever takes them.
pub const MAX_WRITE: usize = 8;
