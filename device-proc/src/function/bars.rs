//! Trapped BAR access (P7.5), through this process's own mappings of the BARs.

use ipc::wire::common::{BarInfo, Failure, MsixInfo};
use ipc::{Window, WindowError};

use crate::capabilities;
use crate::dext::{Client, DextError};
use crate::start;

/// The BARs of one function.
pub struct Bars {
    subject: String,
    infos: [Option<BarInfo>; 6],
    mapped: [Option<Mapping>; 6],
    msix: Option<MsixInfo>,
}

struct Mapping {
    window: Window,
    size: u64,
}

impl Bars {
    /// Maps every BAR that can be mapped. Skipped are unused, empty and I/O BARs and the upper
    /// halves of 64-bit ones (P7.1); a failing map is a warning, and its BAR cannot be reached
    /// (P7.4).
    ///
    /// # Errors
    /// [`DextError`] when the dext is gone.
    pub fn new(client: &mut Client, msix: Option<MsixInfo>) -> Result<Self, DextError> {
        let infos = client.bars()?;
        let mut mapped = [const { None }; 6];
        for (number, info) in (0u8..).zip(&infos) {
            let Some(info) = info.filter(is_mappable) else {
                continue;
            };
            match client.map_bar(number) {
                Ok(map) => {
                    let size = info.size.min(map.window.length() as u64);
                    mapped[usize::from(number)] = Some(Mapping { window: map.window, size });
                }
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => tracing::warn!("BAR {number} cannot be reached: {error}"),
            }
        }
        let subject = format!("Function {}", client.address());
        Ok(Self { subject, infos, mapped, msix })
    }

    /// What the dext says of them.
    #[must_use]
    pub fn infos(&self) -> [Option<BarInfo>; 6] {
        self.infos
    }

    /// One load of `width` bytes.
    pub(super) fn read(&self, bar: u8, offset: u64, width: u8) -> Result<u64, Failure> {
        let mapping = self.check(bar, offset, width)?;
        let value = mapping.window.read_width(offset, width);
        value.map_err(|error| self.refuse(bar, &error))
    }

    /// One store of `width` bytes. The host owns the messages of MSI-X, so a store to the table
    /// is dropped and reported as done: with it a guest could have interrupts sent anywhere.
    pub(super) fn write(&self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Failure> {
        let mapping = self.check(bar, offset, width)?;
        if self.in_msix_table(bar, offset, width) {
            return Ok(());
        }
        let stored = mapping.window.write_width(offset, width, value);
        stored.map_err(|error| self.refuse(bar, &error))
    }

    /// The mapping, if the access lies in the BAR: its memory may be larger than the BAR.
    fn check(&self, bar: u8, offset: u64, width: u8) -> Result<&Mapping, Failure> {
        let mapping = self.mapped.get(usize::from(bar)).and_then(Option::as_ref);
        let mapping = mapping
            .ok_or_else(|| start::invalid(format!("{}: BAR {bar} is not mapped", self.subject)))?;
        let end = offset.checked_add(width.into());
        if end.is_some_and(|end| end <= mapping.size) {
            return Ok(mapping);
        }
        let (width, length) = (width.into(), mapping.size);
        Err(self.refuse(bar, &WindowError::OutOfRange { offset, width, length }))
    }

    fn refuse(&self, bar: u8, error: &WindowError) -> Failure {
        start::invalid(format!("{}: BAR {bar}: {error}", self.subject))
    }

    fn in_msix_table(&self, bar: u8, offset: u64, width: u8) -> bool {
        self.msix.is_some_and(|msix| {
            let table = u64::from(msix.table_offset);
            let end = table + capabilities::table_bytes(&msix);
            bar == msix.table_bar && offset < end && table < offset + u64::from(width)
        })
    }
}

/// Whether a BAR has memory that can be mapped (P7.1).
pub(crate) fn is_mappable(info: &BarInfo) -> bool {
    info.size > 0 && info.kind & BarInfo::IO == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dext::fake::Fake;
    use ipc::wire::common::FailureKind;

    fn bars(fake_setup: impl FnOnce(&Fake)) -> (Fake, Bars) {
        let (fake, mut client) = Fake::client();
        fake_setup(&fake);
        let msix = capabilities::msix(&mut client).unwrap();
        let bars = Bars::new(&mut client, msix).unwrap();
        (fake, bars)
    }

    #[test]
    fn p7_1_io_and_missing_bars_are_skipped() {
        let (fake, bars) = bars(|_| {});
        assert_eq!(fake.mapped_bars(), [0, 1, 2]);
        for bar in [3, 4, 5, 6, 255] {
            let error = bars.read(bar, 0, 4).unwrap_err();
            assert_eq!(error.kind, FailureKind::InvalidArgument);
            assert!(error.message.contains(&format!("BAR {bar}")), "{}", error.message);
        }
    }

    #[test]
    fn p7_4_a_bar_that_cannot_be_mapped_leaves_the_others() {
        let (_, bars) = bars(|fake| fake.fail_map(0));
        assert!(bars.read(0, 0, 4).is_err());
        assert!(bars.read(2, 0, 4).is_ok());
    }

    #[test]
    fn p7_5_each_width_is_one_little_endian_access() {
        let (_, bars) = bars(|_| {});
        bars.write(2, 0x100, 8, 0x8877_6655_4433_2211).unwrap();
        assert_eq!(bars.read(2, 0x100, 1).unwrap(), 0x11);
        assert_eq!(bars.read(2, 0x102, 2).unwrap(), 0x4433);
        assert_eq!(bars.read(2, 0x104, 4).unwrap(), 0x8877_6655);
        assert_eq!(bars.read(2, 0x100, 8).unwrap(), 0x8877_6655_4433_2211);
    }

    #[test]
    fn p7_5_accesses_that_are_no_access_are_refused() {
        let (_, bars) = bars(|_| {});
        for (offset, width) in [
            (0, 0),
            (0, 3),
            (0, 16),
            (2, 4),
            (0x10000, 1),
            (0xffff, 2),
            (u64::MAX, 8),
            (u64::MAX, 1),
        ] {
            let error = bars.read(2, offset, width).unwrap_err();
            assert_eq!(error.kind, FailureKind::InvalidArgument, "{offset:#x} {width}");
            assert!(error.message.contains("BAR 2"), "{}", error.message);
            assert!(bars.write(2, offset, width, 0).is_err());
        }
        // BAR 1 is smaller than the page behind it.
        assert!(bars.read(1, 0xffc, 4).is_ok());
        assert!(bars.read(1, 0x1000, 4).is_err());
    }

    #[test]
    fn p7_3_a_guest_cannot_change_the_msix_table() {
        let (_, bars) = bars(|_| {});
        bars.write(0, 0x8000, 4, 0xdead_beef).unwrap();
        bars.write(0, 0x8000 + 16 * 31 + 12, 4, 0xdead_beef).unwrap();
        assert_eq!(bars.read(0, 0x8000, 4).unwrap(), 0);
        assert_eq!(bars.read(0, 0x8000 + 16 * 31 + 12, 4).unwrap(), 0);
        bars.write(0, 0x8000 + 16 * 32, 4, 7).unwrap();
        assert_eq!(bars.read(0, 0x8000 + 16 * 32, 4).unwrap(), 7);
    }
}
