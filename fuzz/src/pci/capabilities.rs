//! What is read from a device: its lists of capabilities, its BARs, and where its windows are.
//!
//! Asserted: the walk ends, and finds what a walk without its cleverness does; sizing a BAR shows its
//! size and leaves it where it is; windows hold no byte of MSI-X and leave nothing else out that could
//! be in one; what a check of windows lets through is within these bounds too.

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use cordon_pci::bar::{BAR_COUNT, Bars};
use cordon_pci::capabilities::{self, Capability, CapabilityId};
use cordon_pci::decode::{Link, capability_name, serial_number};
use cordon_pci::header::Header;
use cordon_pci::placement::{Granule, Window, check, place};
use cordon_pci::registers::{BAR0, CAPABILITY_POINTER, STATUS};
use cordon_pci::{Bar, MsiCapability, MsixCapability};

use super::device::{AnyBar, Device};
use crate::lists;

/// A device, and how it is looked at.
#[derive(Arbitrary, Debug)]
pub struct Input {
    device: Device,
    bars: [Option<AnyBar>; BAR_COUNT],
    /// Writes to BAR registers before they are sized.
    writes: Vec<(u8, Vec<u8>)>,
    /// The upper half of a 64-bit BAR is sized first.
    upper_first: bool,
    placed: Placed,
}

/// A BAR with MSI-X in it, and windows that somebody else made of it, in pages.
#[derive(Arbitrary, Debug)]
struct Placed {
    bar: AnyBar,
    mapped: u64,
    large: bool,
    msix: Option<Msix>,
    /// Of each the first page and how many, and how far from there it is.
    #[arbitrary(with = windows_of)]
    windows: Vec<(u8, u8, Option<i8>)>,
}

#[derive(Arbitrary, Debug)]
struct Msix {
    vectors: u16,
    table: Structure,
    pending: Structure,
}

/// Where a structure of MSI-X is.
#[derive(Arbitrary, Debug)]
struct Structure {
    /// In another BAR, if it says so.
    bar: Option<u8>,
    offset: Offset,
}

#[derive(Arbitrary, Debug)]
enum Offset {
    /// In units of 8 bytes.
    Low(u16),
    Any(u32),
}

fn windows_of(
    input: &mut arbitrary::Unstructured<'_>,
) -> arbitrary::Result<Vec<(u8, u8, Option<i8>)>> {
    (0..input.arbitrary::<u8>()? % 4)
        .map(|_| Ok((input.arbitrary()?, input.arbitrary()?, lists::rarely(input)?)))
        .collect()
}

impl Structure {
    fn place(&self) -> (u8, u32) {
        let offset = match self.offset {
            Offset::Low(offset) => u32::from(offset & 0x1fff) * 8,
            Offset::Any(offset) => offset & !7,
        };
        (self.bar.map_or(NUMBER, |bar| bar % 6), offset)
    }
}

/// The BAR that is looked at.
const NUMBER: u8 = 2;

/// Does it.
pub fn run(input: &Input) {
    walk(&input.device.config());
    size(&input.bars, &input.writes, input.upper_first);
    windows(&input.placed);
}

fn word(config: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(config[at..at + 4].try_into().unwrap())
}

/// The lists as they are, by the rules of PCI alone.
fn listed(config: &[u8]) -> Vec<Capability> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    let has_list = config[STATUS] & 0x10 != 0 && word(config, STATUS & !3) != u32::MAX;
    let mut at = if has_list { usize::from(config[CAPABILITY_POINTER] & 0xfc) } else { 0 };
    while at >= 0x40 && found.len() < 48 && seen.insert(at) && word(config, at) != u32::MAX {
        let (id, offset) = (CapabilityId::Standard(config[at]), at as u16);
        found.push(Capability { id, offset, version: 0 });
        at = usize::from(config[at + 1] & 0xfc);
    }
    let (standard, mut at) = (found.len(), 0x100);
    while at >= 0x100 && found.len() - standard < 128 && seen.insert(at) {
        let header = word(config, at);
        if header == 0 || header == u32::MAX {
            break;
        }
        let id = CapabilityId::Extended(header as u16);
        let version = (header >> 16 & 0xf) as u8;
        found.push(Capability { id, offset: at as u16, version });
        at = (header >> 20) as usize & 0xffc;
    }
    found
}

fn walk(config: &[u8]) {
    let mut reads = 0;
    let mut read = |at: u16| {
        reads += 1;
        assert!(at.is_multiple_of(4) && usize::from(at) < config.len());
        Ok::<_, std::convert::Infallible>(word(config, at.into()))
    };
    let found: Vec<Capability> = capabilities::walk(&mut read).map(Result::unwrap).collect();
    assert!(reads <= 48 + 128 + 4, "{reads} reads");
    assert_eq!(found, listed(config));
    let reader = || capabilities::reader(config);
    let standard: Vec<_> = capabilities::walk_standard(reader()).map(Result::unwrap).collect();
    let is_standard = |one: &&Capability| matches!(one.id, CapabilityId::Standard(_));
    assert_eq!(standard, found.iter().filter(is_standard).copied().collect::<Vec<_>>());
    let mut ids = BTreeSet::new();
    for one in &found {
        structures(config, one.offset);
        if ids.insert(one.id) {
            assert_eq!(capabilities::find(reader(), one.id).unwrap(), Some(*one), "the first");
            let _ = capability_name(one.id);
        }
    }
    if let Some(msix) = MsixCapability::find(reader()).unwrap() {
        assert!(msix.table_bar < 6 && msix.pba_bar < 6 && (1..=2048).contains(&msix.vectors));
    }
    if let Some(msi) = MsiCapability::find(reader()).unwrap() {
        assert!(usize::from(msi.offset + msi.length()) <= 0x100 && msi.vectors <= 32);
    }
    let header = Header::parse(config);
    assert_eq!(Header::parse(&header.to_bytes()), header);
}

/// What each kind of capability would say, wherever it is.
fn structures(config: &[u8], at: u16) {
    let reader = || capabilities::reader(config);
    if let Some(msi) = MsiCapability::read(reader(), at).unwrap() {
        assert!(usize::from(at + msi.length()) <= 0x100, "MSI at {at:#x}");
    }
    let _ = MsixCapability::read(reader(), at).unwrap();
    let _ = capabilities::PowerCapability::read(reader(), at).unwrap();
    let _ = capabilities::ExpressCapability::read(reader(), at).unwrap();
    let _ = capabilities::AfCapability::read(reader(), at).unwrap();
    let _ = capabilities::VendorCapability::read(reader(), at).unwrap();
    let _ = capabilities::VendorExtendedCapability::read(reader(), at).unwrap();
    let _ = (Link::parse(config, at), serial_number(config, at));
}

fn size(described: &[Option<AnyBar>; BAR_COUNT], writes: &[(u8, Vec<u8>)], upper_first: bool) {
    let described = described.map(|bar| bar.map(AnyBar::bar));
    let mut bars = Bars::new(&described);
    for (at, data) in writes {
        // Also in front of the registers and behind them.
        bars.write(usize::from(*at) % 64, &data[..data.len().min(8)]);
    }
    for number in 0..BAR_COUNT {
        let Some(bar) = bars.get(number) else { continue };
        let described = described[number].unwrap();
        assert!(bar.size.is_power_of_two() && bar.size >= described.size);
        let before = bars.address(number);
        let at = |register: usize| BAR0 + 4 * register;
        if bar.kind.is_64bit() && upper_first {
            bars.write(at(number + 1), &[0xff; 4]);
            assert_eq!(bars.address(number), before, "sizing moves nothing");
        }
        bars.write(at(number), &[0xff; 4]);
        let low = bars.register(number);
        let flags = if bar.kind.is_io() { 0x3 } else { 0xf };
        let kind = low & flags;
        assert_eq!(kind, u32::from(bar.kind.bits()));
        let shown = if bar.kind.is_64bit() {
            bars.write(at(number + 1), &[0xff; 4]);
            u64::from(bars.register(number + 1)) << 32 | u64::from(low & !flags)
        } else {
            u64::from(low & !flags) | u64::from(u32::MAX) << 32
        };
        assert_eq!(!shown + 1, bar.size);
        assert_eq!(bars.address(number), before, "sizing moves nothing");
        place_again(&mut bars, number, bar);
    }
}

/// Placed at the third multiple of its size, it is there.
fn place_again(bars: &mut Bars, number: usize, bar: Bar) {
    let most = if bar.kind.is_64bit() { 1 << 61 } else { 1 << 29 };
    if bar.size > most {
        return;
    }
    let address = 3 * bar.size;
    let bytes = address.to_le_bytes();
    if bar.kind.is_64bit() {
        bars.write(BAR0 + 4 * number, &bytes);
    } else {
        bars.write(BAR0 + 4 * number, &bytes[..4]);
    }
    assert_eq!(bars.address(number), Some(address));
}

fn windows(placed: &Placed) {
    let (bar, number) = (placed.bar.bar(), NUMBER);
    let granule = if placed.large { Granule::KIB_16 } else { Granule::KIB_4 };
    let msix = placed.msix.as_ref().map(|msix| {
        let ((table_bar, table_offset), (pba_bar, pba_offset)) =
            (msix.table.place(), msix.pending.place());
        let vectors = msix.vectors % 2048 + 1;
        MsixCapability { offset: 0x40, vectors, table_bar, table_offset, pba_bar, pba_offset }
    });
    let found = place(number, bar, placed.mapped, granule, msix.as_ref());
    check(found.iter().copied(), number, bar, granule, msix.as_ref()).unwrap();
    let is_ours = |at: u64| is_msix(msix.as_ref(), number, at, granule.bytes());
    let size = if bar.kind.is_io() { 0 } else { bar.size.min(placed.mapped) };
    // Of a large BAR its beginning, which is where 32 bits of MSI-X can be most of the time.
    for page in 0..(size / granule.bytes()).min(64) {
        let at = page * granule.bytes();
        let inside = found.iter().any(|one| (one.offset..one.offset + one.length).contains(&at));
        assert_eq!(inside, !is_ours(at), "page {page} of {found:?}");
    }
    let claimed = placed.windows.iter().map(|(page, pages, shift)| Window {
        offset: (u64::from(*page % 32) * granule.bytes())
            .wrapping_add_signed(shift.unwrap_or_default().into()),
        length: u64::from(*pages % 32) * granule.bytes(),
    });
    let claimed: Vec<Window> = claimed.collect();
    if check(claimed.iter().copied(), number, bar, granule, msix.as_ref()).is_ok() {
        let mut last = 0;
        for Window { offset, length } in claimed {
            assert!(offset >= last && length > 0 && offset + length <= bar.size);
            assert!(!bar.kind.is_io() && (offset | length).is_multiple_of(granule.bytes()));
            let pages = (offset..offset + length).step_by(granule.bytes() as usize);
            pages.for_each(|at| assert!(!is_ours(at)));
            last = offset + length;
        }
    }
}

/// Whether the page at `at` has a byte of MSI-X.
fn is_msix(msix: Option<&MsixCapability>, number: u8, at: u64, page: u64) -> bool {
    msix.is_some_and(|msix| {
        let table = (msix.table_bar, msix.table_offset, 16 * u64::from(msix.vectors));
        let pending = (msix.pba_bar, msix.pba_offset, u64::from(msix.vectors).div_ceil(64) * 8);
        [table, pending].into_iter().any(|(bar, offset, length)| {
            let offset = u64::from(offset);
            bar == number && offset < at + page && at < offset + length
        })
    })
}
