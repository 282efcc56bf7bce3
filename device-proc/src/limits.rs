//! What a VMM side, a guest or a sibling can have a confined process hold.

/// Most regions: a VMM has a handful, QEMU's chipset a few dozen.
pub const MAX_REGIONS: usize = 1024;

/// Most doorbells that wait for the one that is open: the VMM side rings one at a time, and leaves some
/// behind whose callers gave up.
pub const MAX_WAITING: usize = 64;

/// Most removals that a guest was not told of: as many as a platform has mappings. Beyond it the
/// guest hears of a key that it removes that there is no such.
pub const MAX_ORPHANS: usize = 65_536;
