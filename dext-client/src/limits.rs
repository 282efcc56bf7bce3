//! What a platform has for one device.

/// Mappings that the platform has for one device.
pub(crate) const MAX_MAPPINGS: u64 = 65_536;
