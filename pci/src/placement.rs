//! Which parts of a BAR a guest may have as memory (P7), and whether what somebody else placed is
//! acceptable.
//!
//! A window is made of whole granules: pages of the host, since nothing smaller can be mapped
//! (P7.7). The granules that hold the MSI-X table or pending-bit array are left out (P7.3).

use crate::bar::Bar;
use crate::capabilities::MsixCapability;

/// The unit of guest mappings: the page size of the host, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granule(u64);

impl Granule {
    /// 4 KiB, as on most Linux hosts.
    pub const KIB_4: Self = Self(4 << 10);
    /// 16 KiB, as on Apple silicon.
    pub const KIB_16: Self = Self(16 << 10);
    /// 64 KiB.
    pub const KIB_64: Self = Self(64 << 10);

    /// A granule of `bytes`; `None` unless that is a power of two.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() { Some(Self(bytes)) } else { None }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    fn down(self, at: u64) -> u64 {
        at & !(self.0 - 1)
    }

    /// Past the last granule that holds a byte below `at`; the last address if that would wrap.
    fn up(self, at: u64) -> u64 {
        at.checked_next_multiple_of(self.0).unwrap_or(u64::MAX)
    }
}

/// A range of a BAR, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, more than 0.
    pub length: u64,
}

/// At most three windows: a BAR with both MSI-X structures cut out. Use it as a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    all: [Window; 3],
    count: usize,
}

impl Windows {
    fn push(&mut self, start: u64, end: u64) {
        if let (true, Some(free)) = (start < end, self.all.get_mut(self.count)) {
            *free = Window { offset: start, length: end - start };
            self.count += 1;
        }
    }
}

impl std::ops::Deref for Windows {
    type Target = [Window];

    fn deref(&self) -> &[Window] {
        &self.all[..self.count]
    }
}

/// What of BAR `number` cannot be the guest's: start and end, in granules. Ascending.
fn holes(number: u8, granule: Granule, msix: Option<&MsixCapability>) -> [(u64, u64); 2] {
    let mut holes = [(0, 0); 2];
    if let Some(msix) = msix {
        let table = (msix.table_bar, msix.table_offset, msix.table_bytes());
        let pending = (msix.pba_bar, msix.pba_offset, msix.pba_bytes());
        for (hole, (bar, offset, bytes)) in holes.iter_mut().zip([table, pending]) {
            if bar == number {
                let start = u64::from(offset);
                *hole = (granule.down(start), granule.up(start + bytes));
            }
        }
    }
    holes.sort_unstable();
    holes
}

/// The windows of BAR `number` (P7.1, P7.2, P7.3, P7.7), ascending: whole granules of a memory BAR
/// as far as `mapped` bytes of it could be mapped here, without those of MSI-X. None for an I/O BAR
/// and for one below a granule, which is served by trapped accesses.
#[must_use]
pub fn place(
    number: u8,
    bar: Bar,
    mapped: u64,
    granule: Granule,
    msix: Option<&MsixCapability>,
) -> Windows {
    let mut windows = Windows::default();
    if bar.kind.is_io() {
        return windows;
    }
    let size = granule.down(bar.size.min(mapped));
    let mut at = 0;
    for (start, end) in holes(number, granule, msix) {
        windows.push(at, start.min(size));
        at = at.max(end);
    }
    windows.push(at, size);
    windows
}

/// Why a window is not acceptable. `0` is its place in the list that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowFault {
    /// An I/O BAR has no windows.
    #[error("Window {0} is in an I/O BAR")]
    InputOutput(usize),
    /// It has no bytes.
    #[error("Window {0} is empty")]
    Empty(usize),
    /// Its start or length is not a multiple of the granule.
    #[error("Window {0} is not made of whole granules")]
    Unaligned(usize),
    /// It goes past the end of the BAR, or wraps.
    #[error("Window {0} goes past the end of the BAR")]
    OutOfBar(usize),
    /// It begins before the end of the one in front of it.
    #[error("Window {0} overlaps the one before it, or is out of order")]
    Order(usize),
    /// It holds a byte of a granule with the MSI-X table or pending-bit array.
    #[error("Window {0} covers MSI-X structures")]
    Msix(usize),
}

/// Checks windows of BAR `number` that another process claims to be the guest's: whole granules
/// inside the BAR, ascending, without overlaps, and clear of the MSI-X granules. Fewer or smaller
/// windows than [`place`] finds are acceptable.
///
/// # Errors
/// [`WindowFault`] of the first window that is not acceptable.
pub fn check(
    windows: impl IntoIterator<Item = Window>,
    number: u8,
    bar: Bar,
    granule: Granule,
    msix: Option<&MsixCapability>,
) -> Result<(), WindowFault> {
    let holes = holes(number, granule, msix);
    let mut last = 0;
    for (index, Window { offset, length }) in windows.into_iter().enumerate() {
        if bar.kind.is_io() {
            return Err(WindowFault::InputOutput(index));
        }
        if length == 0 {
            return Err(WindowFault::Empty(index));
        }
        if granule.down(offset) != offset || granule.down(length) != length {
            return Err(WindowFault::Unaligned(index));
        }
        let end = offset.checked_add(length).filter(|end| *end <= bar.size);
        let Some(end) = end else { return Err(WindowFault::OutOfBar(index)) };
        if offset < last {
            return Err(WindowFault::Order(index));
        }
        if holes.iter().any(|(start, past)| offset < *past && *start < end) {
            return Err(WindowFault::Msix(index));
        }
        last = end;
    }
    Ok(())
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
