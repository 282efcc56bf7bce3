//! A device of the fake kernel's: regions, interrupts, resets.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

use super::{invalid, taken};
use crate::abi::Structure;

/// Where a region begins in a device's file.
const REGION_SHIFT: u32 = 40;
/// Regions of a PCI function.
const REGIONS: usize = 9;
/// Bits of a region's flags: read, write, map, capabilities.
const FLAGS: (u32, u32, u32, u32) = (1, 2, 4, 8);

/// A device of the fake kernel's.
#[derive(Debug)]
pub struct FakeDevice {
    /// Bytes of each region.
    pub sizes: [u64; REGIONS],
    /// For BARs that can be mapped in parts: these, by BAR.
    pub sparse: BTreeMap<usize, Vec<(u64, u64)>>,
    /// Interrupts of each kind.
    pub interrupts: [u32; 5],
    /// Whether it can be reset.
    pub resettable: bool,
    file: OwnedFd,
    /// The kind that is on, and whom each of its interrupts signals.
    signalled: Option<(u32, Vec<Option<OwnedFd>>)>,
    request: Option<OwnedFd>,
    /// Functions that a reset of its bus reaches, by address as the kernel has it, and their groups; none where it
    /// has no such reset.
    pub bus: Vec<([u8; 4], u32)>,
    /// Whether INTx is held back.
    masked: bool,
    resets: u32,
}

impl FakeDevice {
    /// One with a BAR 0 of 16 KiB and MSI-X of 8 vectors.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn new(vendor: u16, device: u16) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("fake-device", flags).unwrap();
        rustix::fs::ftruncate(&file, (REGIONS as u64) << REGION_SHIFT).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        let mut sizes = [0; REGIONS];
        (sizes[0], sizes[7]) = (0x4000, 4096);
        let one = Self {
            sizes,
            sparse: BTreeMap::new(),
            interrupts: [1, 0, 8, 1, 1],
            resettable: true,
            file,
            signalled: None,
            request: None,
            bus: Vec::new(),
            masked: false,
            resets: 0,
        };
        one.set(7, 0, &[vendor.to_le_bytes(), device.to_le_bytes()].concat());
        // Non-volatile memory, as NVMe has it; a BAR of 64 bits.
        one.set(7, 8, &[0, 2, 8, 1]);
        one.set(7, 0x10, &4u32.to_le_bytes());
        one
    }

    /// Puts bytes into a region.
    ///
    /// # Panics
    /// When they do not fit in its file.
    pub fn set(&self, region: usize, offset: u64, bytes: &[u8]) {
        let at = ((region as u64) << REGION_SHIFT) + offset;
        rustix::io::pwrite(&self.file, bytes, at).unwrap();
    }

    /// Reads bytes of a region.
    ///
    /// # Panics
    /// When they are not there.
    #[must_use]
    pub fn get(&self, region: usize, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let at = ((region as u64) << REGION_SHIFT) + offset;
        assert_eq!(rustix::io::pread(&self.file, &mut bytes[..], at).unwrap(), length);
        bytes
    }

    /// Fires an interrupt; whether somebody was signalled.
    ///
    /// # Panics
    /// When the event is full.
    pub fn fire(&mut self, index: u32, vector: usize) -> bool {
        let Some((of, whom)) = &self.signalled else { return false };
        let one = whom.get(vector).and_then(Option::as_ref).filter(|_| *of == index);
        let Some(one) = one.filter(|_| index != 0 || !self.masked) else { return false };
        rustix::io::write(one, &1u64.to_ne_bytes()).unwrap();
        self.masked = index == 0;
        true
    }

    /// The kernel wants it back.
    ///
    /// # Panics
    /// When nobody asked to be told.
    pub fn ask_for(&self) {
        rustix::io::write(self.request.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
    }

    /// Whoever has it has the kernel forget whom to tell that it wants it back.
    pub fn forget_request(&mut self) {
        self.request = None;
    }

    /// How often it was reset.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// A duplicate of its file.
    pub(super) fn file(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    pub(super) fn was_reset(&mut self) {
        self.resets += 1;
    }

    /// Nobody has used it since it was opened.
    pub(super) fn is_new(&mut self) {
        (self.signalled, self.request, self.masked) = (None, None, false);
    }

    pub(super) fn describe(&self, info: &mut Structure) {
        *info = info.clone().with(4, 2 | u32::from(self.resettable)).with(8, 9).with(12, 5);
    }

    pub(super) fn describe_bus(&self, info: &mut Structure) -> io::Result<()> {
        if self.bus.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let mut own = info.clone().with(8, u32::try_from(self.bus.len()).unwrap());
        let fits = own.bytes().len() >= 12 + 8 * self.bus.len();
        for (at, (address, group)) in (12..).step_by(8).zip(&self.bus).take_while(|_| fits) {
            own = own.with(at, *group).with(at + 4, u32::from_ne_bytes(*address));
        }
        *info = own;
        if fits { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
    }

    pub(super) fn describe_region(&self, info: &mut Structure) -> io::Result<()> {
        let index = usize::try_from(info.field(8)).unwrap();
        let size = self.sizes.get(index).copied().ok_or_else(invalid)?;
        let (read, write, map, capabilities) = FLAGS;
        let mut flags = if size > 0 { read | write } else { 0 };
        if index < 6 && size > 0 {
            flags |= map;
        }
        let mut own = info.clone().with_long(16, size);
        own = own.with_long(24, (index as u64) << REGION_SHIFT);
        if let Some(areas) = self.sparse.get(&index) {
            flags |= capabilities;
            let count = u32::try_from(areas.len()).unwrap();
            let wanted = 32 + 16 + 16 * areas.len();
            if info.bytes().len() < wanted {
                own = own.with(0, u32::try_from(wanted).unwrap());
            } else {
                own = own.with(12, 32).with(32, 1 | 1 << 16).with(40, count);
                for (number, (offset, size)) in areas.iter().enumerate() {
                    let at = 48 + 16 * number;
                    own = own.with_long(at, *offset).with_long(at + 8, *size);
                }
            }
        }
        *info = own.with(4, flags);
        Ok(())
    }

    /// As the kernel has it: a kind that is on takes no more vectors than it was switched on with.
    pub(super) fn set_interrupts(&mut self, set: &Structure) -> io::Result<()> {
        let (flags, index, start, count) =
            (set.field(4), set.field(8), set.field(12), set.field(16));
        let most = self.interrupts.get(usize::try_from(index).unwrap()).copied().unwrap_or(0);
        if start.checked_add(count).is_none_or(|end| end > most) {
            return Err(invalid());
        }
        let (nothing, event) = (flags & 1 != 0, flags & 4 != 0);
        let (mask, unmask, trigger) = (flags & 8 != 0, flags & 16 != 0, flags & 32 != 0);
        let is_on = self.signalled.as_ref().is_some_and(|(of, _)| *of == index);
        if mask || unmask {
            if index != 0 || !is_on || !nothing || count != 1 {
                return Err(invalid());
            }
            self.masked = mask;
            return Ok(());
        }
        if trigger && nothing && count == 0 && is_on {
            self.signalled = None;
            return Ok(());
        }
        if !trigger || !event || count == 0 || (self.signalled.is_some() && !is_on && index < 3) {
            return Err(invalid());
        }
        let whom = (0..count).map(|number| {
            let at = 20 + 4 * usize::try_from(number).unwrap();
            taken(set.field(at).cast_signed())
        });
        let whom = whom.collect::<io::Result<Vec<_>>>()?;
        if index == 4 {
            self.request = whom.into_iter().next().flatten();
            return Ok(());
        }
        match &mut self.signalled {
            Some((_, there)) if whom.len() > there.len() => return Err(invalid()),
            Some((_, there)) => there.splice(..whom.len(), whom).for_each(drop),
            none => *none = Some((index, whom)),
        }
        self.masked = false;
        Ok(())
    }
}
