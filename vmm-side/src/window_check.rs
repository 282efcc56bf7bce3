//! Whether a guest may have the parts of a BAR that a connection process offers as windows.
//!
//! The process is not believed: with a window over the MSI-X table a guest could have messages sent
//! anywhere, and one past its BAR is memory of something else. Where the MSI-X structures are is said
//! by the function process, which is there later, so windows are looked at twice: by themselves when
//! they come, and once more when both processes have spoken. It takes both of them to lie.

use cordon_pci::MsixCapability;
use cordon_pci::placement::{self, Granule, Window, WindowFault};
use ipc::DeviceMemory;
use ipc::wire::common::{BarInfo, MsixInfo};
use ipc::wire::connection::{Attached, BarWindow};

use crate::device::{self, BarMemory};

/// A window that no guest may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadWindow {
    /// The function has no such BAR.
    #[error("Window of BAR {0}: the function has no such BAR")]
    NoBar(u8),
    /// It is not where a window may be.
    #[error("BAR {bar}: {fault}")]
    Place { bar: u8, fault: WindowFault },
    /// Its memory does not begin at a page of the host.
    #[error("Window of BAR {0}: its memory does not begin at a page")]
    Unaligned(u8),
    /// Its memory is too small for it.
    #[error("Window of BAR {0}: its memory does not hold it")]
    Memory(u8),
}

/// The unit of guest mappings: pages of the host (P7.7).
pub(crate) fn granule() -> Granule {
    // A page size is a power of two; if ever it were not, the largest there is would be safe.
    Granule::new(rustix::param::page_size() as u64).unwrap_or(Granule::KIB_64)
}

/// Checks windows, each with the number of its BAR: whole pages inside of their BARs, in order and
/// apart, and clear of the pages of the MSI-X structures (P7.1, P7.2, P7.3, P7.7).
fn check(
    windows: impl Iterator<Item = (u8, Window)> + Clone,
    bars: &[Option<BarInfo>; 6],
    msix: Option<&MsixInfo>,
) -> Result<(), BadWindow> {
    let is_there = |bar: u8| bars.get(usize::from(bar)).is_some_and(Option::is_some);
    if let Some((bar, _)) = windows.clone().find(|(bar, _)| !is_there(*bar)) {
        return Err(BadWindow::NoBar(bar));
    }
    let msix = msix.map(capability);
    for (bar, info) in (0..).zip(bars) {
        let Some(info) = *info else { continue };
        let of_bar = windows.clone().filter(|(of, _)| *of == bar).map(|(_, window)| window);
        placement::check(of_bar, bar, device::pci_bar(info), granule(), msix.as_ref())
            .map_err(|fault| BadWindow::Place { bar, fault })?;
    }
    Ok(())
}

/// The windows that a connection process offers, each with its memory, if they are windows at all.
pub(crate) fn take(
    attached: &Attached,
    memories: Vec<DeviceMemory>,
) -> Result<Vec<BarMemory>, BadWindow> {
    let Attached { windows, bars, .. } = attached;
    let place = |one: &BarWindow| (one.bar, Window { offset: one.offset, length: one.length });
    check(windows.iter().map(place), bars, None)?;
    windows.iter().zip(memories).map(|(window, memory)| with_memory(window, memory)).collect()
}

fn with_memory(window: &BarWindow, memory: DeviceMemory) -> Result<BarMemory, BadWindow> {
    let BarWindow { bar, offset, length, memory_offset } = *window;
    if !memory_offset.is_multiple_of(granule().bytes()) {
        return Err(BadWindow::Unaligned(bar));
    }
    if memory_offset.checked_add(length).is_none_or(|end| end > memory.size()) {
        return Err(BadWindow::Memory(bar));
    }
    Ok(BarMemory { bar, offset, length, memory, memory_offset })
}

/// Whether a guest may have the windows of a function that was claimed, whose MSI-X capability is known
/// by now.
pub(crate) fn check_claimed(
    windows: &[BarMemory],
    bars: &[Option<BarInfo>; 6],
    msix: Option<&MsixInfo>,
) -> Result<(), BadWindow> {
    let place = |one: &BarMemory| (one.bar, Window { offset: one.offset, length: one.length });
    check(windows.iter().map(place), bars, msix)
}

fn capability(msix: &MsixInfo) -> MsixCapability {
    let MsixInfo { capability, vectors, table_bar, table_offset, pba_bar, pba_offset } = *msix;
    MsixCapability { offset: capability, vectors, table_bar, table_offset, pba_bar, pba_offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::SharedMemory;
    use ipc::wire::common::Identity;
    use ipc::wire::connection::Carrier;

    const BARS: [Option<BarInfo>; 6] = [
        Some(BarInfo { memory_index: 0, size: 0x8_0000, kind: 0 }),
        None,
        Some(BarInfo { memory_index: 1, size: 0x4_0000, kind: BarInfo::WIDTH_64 }),
        None,
        Some(BarInfo { memory_index: 2, size: 0x10_0000, kind: BarInfo::IO }),
        None,
    ];
    /// Table in the second 64 KiB of BAR 0, pending bits in the fourth.
    const MSIX: MsixInfo = MsixInfo {
        capability: 0xb0,
        vectors: 32,
        table_bar: 0,
        table_offset: 0x1_0000,
        pba_bar: 0,
        pba_offset: 0x3_0000,
    };

    fn checked(windows: &[(u8, u64, u64)], msix: Option<&MsixInfo>) -> Result<(), BadWindow> {
        let each = windows
            .iter()
            .map(|(bar, offset, length)| (*bar, Window { offset: *offset, length: *length }));
        check(each, &BARS, msix)
    }

    #[test]
    fn windows_that_a_guest_may_have() {
        let apart =
            [(0, 0, 0x1_0000), (2, 0, 0x4_0000), (0, 0x2_0000, 0x1_0000), (0, 0x4_0000, 0x4_0000)];
        assert_eq!(checked(&apart, Some(&MSIX)), Ok(()));
        assert_eq!(checked(&[], Some(&MSIX)), Ok(()));
        assert_eq!(checked(&[(0, 0, 0x8_0000)], None), Ok(()));
    }

    #[test]
    fn each_lie_is_found_by_bar_and_reason() {
        let at = |bar, fault| BadWindow::Place { bar, fault };
        let page = rustix::param::page_size() as u64;
        for (windows, fault) in [
            (vec![(1, 0, 0x1_0000)], BadWindow::NoBar(1)),
            (vec![(6, 0, 0x1_0000)], BadWindow::NoBar(6)),
            (vec![(255, 0, 0x1_0000)], BadWindow::NoBar(255)),
            (vec![(4, 0, 0x1_0000)], at(4, WindowFault::InputOutput(0))),
            (vec![(2, 0, 0)], at(2, WindowFault::Empty(0))),
            (vec![(2, page / 2, page)], at(2, WindowFault::Unaligned(0))),
            (vec![(2, 0, page + 8)], at(2, WindowFault::Unaligned(0))),
            (vec![(2, 0, 0x8_0000)], at(2, WindowFault::OutOfBar(0))),
            (vec![(2, 0x4_0000, page)], at(2, WindowFault::OutOfBar(0))),
            (vec![(2, u64::MAX - page + 1, page)], at(2, WindowFault::OutOfBar(0))),
            (vec![(2, 0, 2 * page), (2, page, page)], at(2, WindowFault::Order(1))),
            (vec![(2, page, page), (0, 0, page), (2, 0, page)], at(2, WindowFault::Order(1))),
            (vec![(2, 0, page), (2, 0, page)], at(2, WindowFault::Order(1))),
            (vec![(0, 0, 0x8_0000)], at(0, WindowFault::Msix(0))),
            (vec![(0, 0x1_0000, page)], at(0, WindowFault::Msix(0))),
            (vec![(0, 0, page), (0, 0x3_0000, page)], at(0, WindowFault::Msix(1))),
        ] {
            assert_eq!(checked(&windows, Some(&MSIX)), Err(fault), "{windows:x?}");
        }
        let said = checked(&[(0, 0, 0x8_0000)], Some(&MSIX)).unwrap_err().to_string();
        assert_eq!(said, "BAR 0: Window 0 covers MSI-X structures");
    }

    fn offered(windows: Vec<BarWindow>, size: u64) -> Result<Vec<BarMemory>, BadWindow> {
        let memory = |_: &BarWindow| SharedMemory::create("bar", size).unwrap().into();
        let memories = windows.iter().map(memory).collect();
        let address = "01:00.0".parse().unwrap();
        let identity = Identity { address, vendor: 1, device: 2, class: 3 };
        let (carrier, warnings) = (Carrier::Descriptors, Vec::new());
        take(&Attached { identity, bars: BARS, windows, carrier, warnings }, memories)
    }

    #[test]
    fn windows_come_with_memory_that_holds_them() {
        let window = |length, memory_offset| BarWindow { bar: 2, offset: 0, length, memory_offset };
        let taken = offered(vec![window(0x1_0000, 0x1_0000)], 0x2_0000).unwrap();
        assert_eq!((taken[0].length, taken[0].memory_offset), (0x1_0000, 0x1_0000));
        let page = rustix::param::page_size() as u64;
        for (one, bad) in [
            (window(0x1_0000, page / 2), BadWindow::Unaligned(2)),
            (window(0x2_0000, page), BadWindow::Memory(2)),
            (window(0x1_0000, u64::MAX - page + 1), BadWindow::Memory(2)),
        ] {
            assert_eq!(offered(vec![one], 0x2_0000).unwrap_err(), bad, "{one:?}");
        }
        let twice = vec![window(0x1_0000, 0), window(0x1_0000, 0)];
        let order = BadWindow::Place { bar: 2, fault: WindowFault::Order(1) };
        assert_eq!(offered(twice, 0x2_0000).unwrap_err(), order);
    }

    #[test]
    fn p7_3_a_window_that_seemed_good_is_refused_once_the_msix_capability_is_known() {
        let over = BarWindow { bar: 0, offset: 0, length: 0x2_0000, memory_offset: 0 };
        let taken = offered(vec![over], 0x2_0000).unwrap();
        assert_eq!(check_claimed(&taken, &BARS, None), Ok(()));
        let refused = check_claimed(&taken, &BARS, Some(&MSIX));
        assert_eq!(refused, Err(BadWindow::Place { bar: 0, fault: WindowFault::Msix(0) }));
        let elsewhere = MsixInfo { table_bar: 2, pba_bar: 2, ..MSIX };
        assert_eq!(check_claimed(&taken, &BARS, Some(&elsewhere)), Ok(()));
    }

    #[test]
    fn p7_7_the_unit_is_the_hosts_page() {
        assert_eq!(granule().bytes(), rustix::param::page_size() as u64);
    }
}
