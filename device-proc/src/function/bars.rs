//! Trapped BAR access (P7.5): what is checked before the backend makes the access.

use cordon_backend::{BackendError, ServedFunction};
use cordon_pci::MsixCapability;
use ipc::WindowError;
use ipc::wire::common::{BarInfo, Failure};

use crate::pci::is_mappable;
use crate::{failure, start};

/// The BARs of one function.
pub struct Bars {
    subject: String,
    infos: [Option<BarInfo>; 6],
    /// Bytes of each BAR that can be accessed; 0 for one that is out of reach.
    reach: [u64; 6],
    msix: Option<MsixCapability>,
}

impl Bars {
    /// Opens every BAR that can be opened; `infos` are what the backend says of them. Skipped are unused,
    /// empty and I/O BARs and the upper halves of 64-bit ones (P7.1); one that cannot be opened is a warning,
    /// and out of reach (P7.4).
    ///
    /// # Errors
    /// [`BackendError`] when the backend is lost.
    pub fn new(
        function: &mut dyn ServedFunction,
        infos: [Option<BarInfo>; 6],
        msix: Option<MsixCapability>,
    ) -> Result<Self, BackendError> {
        let mut reach = [0; 6];
        for (number, (info, reach)) in (0u8..).zip(infos.iter().zip(&mut reach)) {
            let Some(info) = info.filter(is_mappable) else {
                continue;
            };
            match function.open_bar(number) {
                Ok(size) => *reach = info.size.min(size),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => tracing::warn!("BAR {number} cannot be reached: {error}"),
            }
        }
        let subject = format!("Function {}", function.address());
        Ok(Self { subject, infos, reach, msix })
    }

    /// What the backend says of them.
    #[must_use]
    pub fn infos(&self) -> [Option<BarInfo>; 6] {
        self.infos
    }

    /// One load of `width` bytes.
    pub(super) fn read(
        &self,
        function: &mut dyn ServedFunction,
        bar: u8,
        offset: u64,
        width: u8,
    ) -> Result<u64, Failure> {
        self.check(bar, offset, width)?;
        function.bar_read(bar, offset, width).map_err(|error| failure(&error))
    }

    /// One store of `width` bytes. The host owns the messages of MSI-X, so a store to the table
    /// is dropped and reported as done: with it a guest could have interrupts sent anywhere.
    pub(super) fn write(
        &self,
        function: &mut dyn ServedFunction,
        bar: u8,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), Failure> {
        self.check(bar, offset, width)?;
        if self.in_msix_table(bar, offset, width) {
            return Ok(());
        }
        function.bar_write(bar, offset, width, value).map_err(|error| failure(&error))
    }

    /// Whether the access is one of 1, 2, 4 or 8 aligned bytes of what can be accessed.
    fn check(&self, bar: u8, offset: u64, width: u8) -> Result<(), Failure> {
        let length = self.reach.get(usize::from(bar)).copied().unwrap_or_default();
        if length == 0 {
            return Err(start::invalid(format!("{}: BAR {bar} is not mapped", self.subject)));
        }
        let bytes = u64::from(width);
        let error = match offset.checked_add(bytes) {
            Some(end) if end <= length => {
                if ![1, 2, 4, 8].contains(&width) {
                    WindowError::Width(bytes)
                } else if !offset.is_multiple_of(bytes) {
                    WindowError::Misaligned { offset, width: bytes }
                } else {
                    return Ok(());
                }
            }
            _ => WindowError::OutOfRange { offset, width: bytes, length },
        };
        Err(start::invalid(format!("{}: BAR {bar}: {error}", self.subject)))
    }

    fn in_msix_table(&self, bar: u8, offset: u64, width: u8) -> bool {
        self.msix.is_some_and(|msix| {
            let table = u64::from(msix.table_offset);
            let end = table + msix.table_bytes();
            bar == msix.table_bar && offset < end && table < offset + u64::from(width)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dext_client::Client;
    use dext_client::fake::Fake;
    use ipc::wire::common::FailureKind;

    /// A function and its BARs.
    struct Opened {
        client: Client,
        bars: Bars,
    }

    impl Opened {
        fn read(&mut self, bar: u8, offset: u64, width: u8) -> Result<u64, Failure> {
            self.bars.read(&mut self.client, bar, offset, width)
        }

        fn write(&mut self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Failure> {
            self.bars.write(&mut self.client, bar, offset, width, value)
        }
    }

    fn bars(fake_setup: impl FnOnce(&Fake)) -> (Fake, Opened) {
        let (fake, mut client) = Fake::client();
        fake_setup(&fake);
        let msix = crate::pci::msix(&mut client).unwrap();
        let infos = client.bars().unwrap();
        let bars = Bars::new(&mut client, infos, msix).unwrap();
        (fake, Opened { client, bars })
    }

    #[test]
    fn p7_1_io_and_missing_bars_are_skipped() {
        let (fake, mut bars) = bars(|_| {});
        assert_eq!(fake.mapped_bars(), [0, 1, 2]);
        for bar in [3, 4, 5, 6, 255] {
            let error = bars.read(bar, 0, 4).unwrap_err();
            assert_eq!(error.kind, FailureKind::InvalidArgument);
            assert!(error.message.contains(&format!("BAR {bar}")), "{}", error.message);
        }
    }

    #[test]
    fn p7_4_a_bar_that_cannot_be_mapped_leaves_the_others() {
        let (_, mut bars) = bars(|fake| fake.fail_map(0));
        assert!(bars.read(0, 0, 4).is_err());
        assert!(bars.read(2, 0, 4).is_ok());
    }

    #[test]
    fn p7_5_each_width_is_one_little_endian_access() {
        let (_, mut bars) = bars(|_| {});
        bars.write(2, 0x100, 8, 0x8877_6655_4433_2211).unwrap();
        assert_eq!(bars.read(2, 0x100, 1).unwrap(), 0x11);
        assert_eq!(bars.read(2, 0x102, 2).unwrap(), 0x4433);
        assert_eq!(bars.read(2, 0x104, 4).unwrap(), 0x8877_6655);
        assert_eq!(bars.read(2, 0x100, 8).unwrap(), 0x8877_6655_4433_2211);
    }

    #[test]
    fn p7_5_accesses_that_are_no_access_are_refused() {
        let (_, mut bars) = bars(|_| {});
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
        let (_, mut bars) = bars(|_| {});
        bars.write(0, 0x8000, 4, 0xdead_beef).unwrap();
        bars.write(0, 0x8000 + 16 * 31 + 12, 4, 0xdead_beef).unwrap();
        assert_eq!(bars.read(0, 0x8000, 4).unwrap(), 0);
        assert_eq!(bars.read(0, 0x8000 + 16 * 31 + 12, 4).unwrap(), 0);
        assert!(bars.write(0, 0x8000, 3, 0).is_err(), "no access, wherever it goes");
        bars.write(0, 0x8000 + 16 * 32, 4, 7).unwrap();
        assert_eq!(bars.read(0, 0x8000 + 16 * 32, 4).unwrap(), 7);
    }
}
