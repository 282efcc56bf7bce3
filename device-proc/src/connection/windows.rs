//! Which parts of a BAR a guest may have (P7).

use ipc::wire::common::{BarInfo, MsixInfo};

use crate::capabilities;
use crate::function::bars::is_mappable;

/// Offset and length of each part of BAR `bar` that may be mapped into a guest: whole granules
/// (P7.7) of a memory BAR (P7.1), the granules of the MSI-X table and pending-bit array left out
/// (P7.3). `mapped` is how much of the BAR could be mapped here (P7.2), `granule` the page size of
/// the host.
#[must_use]
pub fn guest_windows(
    bar: u8,
    info: &BarInfo,
    mapped: u64,
    msix: Option<&MsixInfo>,
    granule: u64,
) -> Vec<(u64, u64)> {
    if !is_mappable(info) {
        return Vec::new();
    }
    let size = info.size.min(mapped) / granule * granule;
    let mut holes = Vec::new();
    if let Some(msix) = msix {
        let table = (msix.table_bar, msix.table_offset, capabilities::table_bytes(msix));
        let pending = (msix.pba_bar, msix.pba_offset, capabilities::pba_bytes(msix));
        for (in_bar, offset, length) in [table, pending] {
            if in_bar == bar {
                let (start, end) = (u64::from(offset), u64::from(offset) + length);
                holes.push((start / granule * granule, end.next_multiple_of(granule)));
            }
        }
    }
    holes.sort_unstable();
    let mut windows = Vec::new();
    let mut at = 0;
    for (start, end) in holes {
        if start > at {
            windows.push((at, start.min(size) - at.min(size)));
        }
        at = at.max(end);
    }
    windows.push((at, size.saturating_sub(at)));
    windows.retain(|(_, length)| *length > 0);
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRANULE: u64 = 16 * 1024;

    fn guest_windows(
        bar: u8,
        info: &BarInfo,
        mapped: u64,
        msix: Option<&MsixInfo>,
    ) -> Vec<(u64, u64)> {
        super::guest_windows(bar, info, mapped, msix, GRANULE)
    }

    fn bar(size: u64) -> BarInfo {
        BarInfo { memory_index: 0, size, kind: 0 }
    }

    fn msix(table_offset: u32, pba_offset: u32, vectors: u16) -> MsixInfo {
        MsixInfo { capability: 0, vectors, table_bar: 0, table_offset, pba_bar: 0, pba_offset }
    }

    #[test]
    fn p7_1_nothing_of_an_io_or_empty_bar() {
        let io = BarInfo { kind: BarInfo::IO, ..bar(64) };
        assert_eq!(guest_windows(4, &io, 16384, None), []);
        assert_eq!(guest_windows(4, &bar(0), 16384, None), []);
    }

    #[test]
    fn p7_2_clamped_to_the_bar_and_to_what_is_mapped() {
        assert_eq!(guest_windows(0, &bar(0x8000), 0x10000, None), [(0, 0x8000)]);
        assert_eq!(guest_windows(0, &bar(0x10000), 0x8000, None), [(0, 0x8000)]);
    }

    #[test]
    fn p7_3_split_around_the_msix_pages() {
        let info = bar(0x20000);
        let split = guest_windows(0, &info, 0x20000, Some(&msix(0x8000, 0xc000, 32)));
        assert_eq!(split, [(0, 0x8000), (0x10000, 0x10000)]);
        let apart = guest_windows(0, &info, 0x20000, Some(&msix(0x4010, 0x1fff8, 32)));
        assert_eq!(apart, [(0, 0x4000), (0x8000, 0x14000)]);
        assert_eq!(guest_windows(1, &info, 0x20000, Some(&msix(0, 0, 32))), [(0, 0x20000)]);
        let first = guest_windows(0, &info, 0x20000, Some(&msix(0, 0x800, 32)));
        assert_eq!(first, [(0x4000, 0x1c000)]);
    }

    #[test]
    fn p7_7_a_bar_below_a_page_is_left_to_traps() {
        assert_eq!(guest_windows(0, &bar(0x1000), 0x4000, None), []);
        assert_eq!(guest_windows(0, &bar(0x9000), 0xc000, None), [(0, 0x8000)]);
        let small =
            super::guest_windows(0, &bar(0x9000), 0x9000, Some(&msix(0x4010, 0x8800, 32)), 0x1000);
        assert_eq!(small, [(0, 0x4000), (0x5000, 0x3000)]);
    }

    proptest! {
        #[test]
        fn no_window_ever_touches_the_msix_structures(
            size in 0u64..0x10_0000, mapped in 0u64..0x10_0000,
            table in 0u32..0x11_0000, pending in 0u32..0x11_0000, vectors in 1u16..=2048,
        ) {
            let msix = msix(table & !7, pending & !7, vectors);
            let windows = guest_windows(0, &bar(size), mapped, Some(&msix));
            for (offset, length) in windows {
                prop_assert!(offset % GRANULE == 0 && length % GRANULE == 0 && length > 0);
                prop_assert!(offset + length <= size.min(mapped));
                for (start, bytes) in [
                    (u64::from(msix.table_offset), 16 * u64::from(vectors)),
                    (u64::from(msix.pba_offset), u64::from(vectors.div_ceil(64)) * 8),
                ] {
                    prop_assert!(offset + length <= start || start + bytes <= offset);
                }
            }
        }
    }
}
