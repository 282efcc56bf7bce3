//! Reads: what a guest sees, given what the device answered.

use super::ConfigSpace;
use crate::bytes;
use crate::msix::MsixRegion;

impl ConfigSpace {
    /// Whether a read of `length` bytes at `offset` must ask the device: some bit of it is neither
    /// kept here nor past the end. A device that is gone is not asked.
    #[must_use]
    pub fn needs_device(&self, offset: u32, length: usize) -> bool {
        let range = bytes::inside(offset, length);
        self.is_present && self.shown[range].iter().any(|shown| *shown != 0xff)
    }

    /// Lays what is kept here over `data`, which the device returned for `offset`. Any offset and
    /// length; bytes past the end are zero (P5.1). All ones while the device is gone.
    pub fn overlay(&self, offset: u32, data: &mut [u8]) {
        if !self.is_present {
            return data.fill(0xff);
        }
        let range = bytes::inside(offset, data.len());
        let (inside, past) = data.split_at_mut(range.len());
        let kept = self.shown[range.clone()].iter().zip(&self.shadow[range]);
        for (to, (shown, kept)) in inside.iter_mut().zip(kept) {
            *to = *to & !shown | kept & shown;
        }
        past.fill(0);
    }

    /// Reads any range. `device` fills its slice from the device, and is called at most once, and
    /// only for the part inside of config space.
    ///
    /// # Errors
    /// Those of `device`; `data` then holds nothing of use.
    pub fn read_with<E>(
        &self,
        offset: u32,
        data: &mut [u8],
        device: impl FnOnce(u32, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.needs_device(offset, data.len()) {
            let inside = bytes::inside(offset, data.len()).len();
            device(offset, &mut data[..inside])?;
        }
        self.overlay(offset, data);
        Ok(())
    }

    /// Whether an access of `length` bytes at `offset` in BAR `bar` is to the MSI-X table or
    /// pending-bit array, and so never the device's (P7.3).
    #[must_use]
    pub fn owns_bar_access(&self, bar: u8, offset: u64, length: usize) -> bool {
        self.msix.as_ref().is_some_and(|msix| msix.region(bar, offset, length).is_some())
    }

    /// Reads the MSI-X table or pending-bit array; whether the access was to one of them. Bytes of
    /// the access that lie outside are zero. All ones while the device is gone.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let Some(msix) = &self.msix else { return false };
        let Some(region) = msix.region(bar, offset, data.len()) else { return false };
        if !self.is_present {
            data.fill(0xff);
            return true;
        }
        data.fill(0);
        let start = u64::from(match region {
            MsixRegion::Table => msix.capability().table_offset,
            MsixRegion::PendingBits => msix.capability().pba_offset,
        });
        let before = usize::try_from(start.saturating_sub(offset)).unwrap_or(data.len());
        let (into, data) = (offset.saturating_sub(start), data.get_mut(before..));
        match (region, data) {
            (MsixRegion::Table, Some(data)) => msix.read_table(into, data),
            (MsixRegion::PendingBits, Some(data)) => msix.read_pending(into, data),
            (_, None) => {}
        }
        true
    }
}
