//! How much the kernel may say of a device.

/// Most bytes of one description: a region with as many areas as are read fits ten times over.
pub(crate) const MAX_DESCRIPTION: u32 = 16 * 1024;

/// Most capabilities of one description: the kernel has seven kinds, and each describes once.
pub(crate) const MAX_CAPABILITIES: usize = 32;

/// Most areas of a region that can be mapped, and most ranges of bus addresses.
pub(crate) const MAX_AREAS: u32 = 64;

/// Most functions that are listed of one group in an error: a screen of text.
pub(crate) const MAX_NAMED: usize = 16;

/// Most functions that a reset of a bus may reach: all that one bus can have.
pub(crate) const MAX_RESET: usize = 256;

/// Most functions of one IOMMU group that are opened, each with three descriptors and a table of guest memory:
/// two devices of eight functions behind a bridge that does not keep them apart fit twice over.
pub(crate) const MAX_FUNCTIONS: usize = 32;

/// Highest number of an object of an iommufd that is looked at: devices, their tables and address spaces of a group of
/// as many functions as are opened fit, since the kernel gives the lowest number that is free.
pub(crate) const MAX_OBJECTS: u32 = 128;
