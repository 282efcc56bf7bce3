//! A device's descriptor: what it has, accesses of its regions, its interrupts and its reset.
//!
//! Held by the connection process and by the function process of its function, as duplicates. All that is
//! asked of the kernel about the device is asked when it is opened, before its process confines itself.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cordon_backend::BackendError;
use ipc::PciAddress;
use ipc::wire::common::{BarInfo, Identity};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_device_info, vfio_irq_info,
    vfio_irq_set, vfio_region_info,
};

use crate::abi::Structure;
use crate::backend::subject;
use crate::capabilities::{self, ChainError};
use crate::error::VfioError;
use crate::kernel::{Described, Kernel, Plain};

const CONFIG: usize = VFIO_PCI_CONFIG_REGION_INDEX as usize;
const REGIONS: usize = VFIO_PCI_NUM_REGIONS as usize;
const INTERRUPTS: usize = VFIO_PCI_NUM_IRQS as usize;

/// COMMAND in config space, and what of it lets a device decode its memory and reach ours.
const COMMAND: u32 = 0x04;
const DECODE_AND_REACH: u32 = 0b110;
const REACH: u32 = 0b100;
/// What keeps it from using its pin.
const INTX_DISABLE: u32 = 1 << 10;

/// One region of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes, 0 where there is none.
    pub size: u64,
    /// Where it begins in the device's descriptor.
    pub offset: u64,
    /// Whether it can be read and written through the descriptor.
    pub accessible: bool,
    /// Offset and size of the parts that can be mapped, in order and apart.
    pub mappable: Vec<(u64, u64)>,
}

impl Region {
    /// How many bytes from its beginning on can be mapped as one.
    #[must_use]
    pub fn mappable_from_start(&self) -> u64 {
        let parts = self.mappable.iter().scan(0, |end, (offset, size)| {
            let joins = offset == end;
            *end += size;
            joins.then_some(*end)
        });
        parts.last().unwrap_or(0)
    }
}

/// A device that is open.
#[derive(Debug)]
pub struct Device {
    kernel: Arc<dyn Kernel>,
    fd: OwnedFd,
    address: PciAddress,
    regions: [Region; REGIONS],
    /// Interrupts of each kind.
    interrupts: [u32; INTERRUPTS],
    resettable: bool,
    identity: Identity,
    bars: [Option<BarInfo>; 6],
}

impl Device {
    /// The device behind `fd`, which is the function at `address`.
    ///
    /// # Errors
    /// [`VfioError`] when it is no PCI function, or is described with what makes no sense.
    pub fn new(
        kernel: Arc<dyn Kernel>,
        fd: OwnedFd,
        address: PciAddress,
    ) -> Result<Self, VfioError> {
        let mut info = Structure::new(size_of::<vfio_device_info>());
        kernel
            .described(fd.as_fd(), Described::DeviceInfo, &mut info)
            .map_err(VfioError::refused("DEVICE_GET_INFO"))?;
        let flags = info.field(offset_of!(vfio_device_info, flags));
        let count =
            |at: usize, most: usize| usize::try_from(info.field(at)).unwrap_or(most).min(most);
        let regions = count(offset_of!(vfio_device_info, num_regions), REGIONS);
        let kinds = count(offset_of!(vfio_device_info, num_irqs), INTERRUPTS);
        if flags & VFIO_DEVICE_FLAGS_PCI == 0 || regions <= CONFIG {
            let why =
                format!("what is open is no PCI function: flags {flags:#x}, {regions} regions");
            return Err(VfioError::Invalid(why));
        }
        let mut device = Self {
            kernel,
            fd,
            address,
            regions: Default::default(),
            interrupts: [0; INTERRUPTS],
            resettable: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            identity: Identity { address, vendor: 0, device: 0, class: 0 },
            bars: [None; 6],
        };
        for index in 0..regions {
            device.regions[index] = device.describe_region(index)?;
        }
        for index in 0..kinds {
            device.interrupts[index] = device.describe_interrupts(index)?;
        }
        device.identify()?;
        Ok(device)
    }

    /// One region; none where the kernel knows none of that number, as VGA of most devices.
    fn describe_region(&self, index: usize) -> Result<Region, VfioError> {
        const FIXED: usize = size_of::<vfio_region_info>();
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let ask = |size: usize| {
            let at = offset_of!(vfio_region_info, index);
            let mut info = Structure::new(size).with(at, number);
            let done = self.kernel.described(self.fd.as_fd(), Described::RegionInfo, &mut info);
            done.map(|()| info)
        };
        let first = match ask(FIXED) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && index > CONFIG => {
                return Ok(Region::default());
            }
            other => other.map_err(VfioError::refused("DEVICE_GET_REGION_INFO"))?,
        };
        let info = first.whole(&format!("region {index}"), |size| {
            ask(size).map_err(VfioError::refused("DEVICE_GET_REGION_INFO"))
        })?;
        let flags = info.field(offset_of!(vfio_region_info, flags));
        let size = info.long(offset_of!(vfio_region_info, size));
        let offset = info.long(offset_of!(vfio_region_info, offset));
        if i64::try_from(size).is_err()
            || offset.checked_add(size).is_none_or(|end| i64::try_from(end).is_err())
        {
            let why = format!("region {index} is said to be {offset:#x}+{size:#x} of its device");
            return Err(VfioError::Invalid(why));
        }
        let both = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        let mut mappable = Vec::new();
        if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 && size > 0 {
            mappable = parts(&info, flags, size)
                .map_err(|source| VfioError::Chain { object: format!("region {index}"), source })?;
        }
        Ok(Region { size, offset, accessible: flags & both == both, mappable })
    }

    fn describe_interrupts(&self, index: usize) -> Result<u32, VfioError> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let mut info = Structure::new(size_of::<vfio_irq_info>())
            .with(offset_of!(vfio_irq_info, index), number);
        match self.kernel.described(self.fd.as_fd(), Described::InterruptInfo, &mut info) {
            Ok(()) => Ok(info.field(offset_of!(vfio_irq_info, count))),
            // A kind that this device has not: errors of a conventional one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(0),
            Err(source) => Err(VfioError::Refused { request: "DEVICE_GET_IRQ_INFO", source }),
        }
    }

    /// Learns what it is and what its BARs are from its config space.
    fn identify(&mut self) -> Result<(), VfioError> {
        let low = |value: u32| u16::try_from(value & 0xffff).unwrap_or_default();
        let ids = self.config_read(0, 4)?;
        let class = self.config_read(8, 4)? >> 8;
        self.identity =
            Identity { address: self.address, vendor: low(ids), device: low(ids >> 16), class };
        for bar in 0..6u8 {
            let size = self.regions[usize::from(bar)].size;
            if size > 0 {
                let kind = self.config_read(0x10 + 4 * u32::from(bar), 4)? & 0xf;
                let kind = u8::try_from(kind).unwrap_or_default();
                self.bars[usize::from(bar)] = Some(BarInfo { memory_index: bar, size, kind });
            }
        }
        Ok(())
    }

    /// Whom it asks.
    pub(crate) fn kernel(&self) -> &dyn Kernel {
        self.kernel.as_ref()
    }

    /// What it is and where.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Makes a backend's error of one of `operation` on this device.
    pub(crate) fn failed(
        &self,
        operation: &'static str,
    ) -> impl Fn(VfioError) -> BackendError + use<> {
        let address = self.address;
        move |error| error.of(subject(address), operation)
    }

    /// Its BARs: none for an unused one, and for the upper half of a 64-bit one.
    #[must_use]
    pub fn bars(&self) -> [Option<BarInfo>; 6] {
        self.bars
    }

    /// A region, by its number.
    #[must_use]
    pub fn region(&self, index: usize) -> Option<&Region> {
        self.regions.get(index)
    }

    /// Interrupts of a kind: INTx 0, MSI 1, MSI-X 2, errors 3, requests of the kernel's 4.
    #[must_use]
    pub fn interrupts(&self, index: u32) -> u32 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.interrupts.get(index).copied().unwrap_or(0)
    }

    /// Whether the kernel can reset the function by itself.
    #[must_use]
    pub fn is_resettable(&self) -> bool {
        self.resettable
    }

    /// Reads 1, 2 or 4 bytes of config space, zero-extended. Past the end of it, which of a conventional
    /// device is at 256, they are zero.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn config_read(&self, offset: u32, width: u8) -> Result<u32, VfioError> {
        if self.is_past_config(offset, width) {
            return Ok(0);
        }
        let value = self.read(CONFIG, offset.into(), width)?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// Writes 1, 2 or 4 bytes of config space; past the end of it nothing is written.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn config_write(&self, offset: u32, width: u8, value: u32) -> Result<(), VfioError> {
        if self.is_past_config(offset, width) {
            return Ok(());
        }
        self.write(CONFIG, offset.into(), width, value.into())
    }

    fn is_past_config(&self, offset: u32, width: u8) -> bool {
        u64::from(offset) + u64::from(width) > self.regions[CONFIG].size
    }

    /// Lets it decode its memory, and reach ours.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn switch_on(&self) -> Result<(), VfioError> {
        let command = self.config_read(COMMAND, 2)?;
        self.config_write(COMMAND, 2, command & !INTX_DISABLE | DECODE_AND_REACH)
    }

    /// Takes from it to reach our memory, and its pin. It goes on to decode its own: a window that somebody
    /// still has would be an error of the bus.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn switch_off(&self) -> Result<(), VfioError> {
        let command = self.config_read(COMMAND, 2)?;
        self.config_write(COMMAND, 2, command & !REACH | INTX_DISABLE)
    }

    fn place(&self, index: usize, offset: u64, width: u8) -> Result<u64, VfioError> {
        let region = self.regions.get(index).filter(|region| region.accessible);
        let fits = |region: &&Region| {
            let end = offset.checked_add(width.into());
            matches!(width, 1 | 2 | 4 | 8) && end.is_some_and(|end| end <= region.size)
        };
        region.filter(fits).map(|region| region.offset + offset).ok_or_else(|| {
            VfioError::Invalid(format!(
                "{width} bytes at {offset:#x} of region {index}: out of reach"
            ))
        })
    }

    /// Reads 1, 2, 4 or 8 bytes of a region, little endian and zero-extended.
    ///
    /// # Errors
    /// [`VfioError`]; [`io::ErrorKind::Other`] (EIO) of memory that is not decoded.
    pub fn read(&self, index: usize, offset: u64, width: u8) -> Result<u64, VfioError> {
        let at = self.place(index, offset, width)?;
        let mut bytes = [0; 8];
        let into = &mut bytes[..usize::from(width)];
        let length = into.len();
        let read = rustix::io::pread(&self.fd, into, at);
        whole(read.map_err(io::Error::from), length, "pread")?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `width` bytes of `value` to a region: 1, 2, 4 or 8.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn write(&self, index: usize, offset: u64, width: u8, value: u64) -> Result<(), VfioError> {
        let at = self.place(index, offset, width)?;
        let bytes = value.to_le_bytes();
        let from = &bytes[..usize::from(width)];
        let written = rustix::io::pwrite(&self.fd, from, at);
        whole(written.map_err(io::Error::from), from.len(), "pwrite")
    }

    /// Resets the function.
    ///
    /// # Errors
    /// [`VfioError::Refused`].
    pub fn reset(&self) -> Result<(), VfioError> {
        self.kernel
            .plain(self.fd.as_fd(), Plain::Reset)
            .map(drop)
            .map_err(VfioError::refused("DEVICE_RESET"))
    }

    /// Has the kernel signal these for the first interrupts of a kind, `None` for one that nobody waits
    /// for; nobody for all of them, and the kind is off.
    ///
    /// # Errors
    /// [`VfioError::Refused`].
    pub fn signal(&self, index: u32, whom: &[Option<BorrowedFd<'_>>]) -> Result<(), VfioError> {
        let data = if whom.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
        let mut set = interrupts(index, data | VFIO_IRQ_SET_ACTION_TRIGGER, whom.len());
        for (at, one) in (offset_of!(vfio_irq_set, data)..).step_by(4).zip(whom) {
            // -1 is nobody.
            let number = one.map_or(-1, |one| one.as_raw_fd());
            set = set.with(at, number.cast_unsigned());
        }
        self.set_interrupts(set)
    }

    /// Holds INTx back, or lets it through.
    ///
    /// # Errors
    /// [`VfioError::Refused`].
    pub fn mask_intx(&self, masked: bool) -> Result<(), VfioError> {
        let action = if masked { VFIO_IRQ_SET_ACTION_MASK } else { VFIO_IRQ_SET_ACTION_UNMASK };
        let set = interrupts(0, VFIO_IRQ_SET_DATA_NONE | action, 0);
        self.set_interrupts(set.with(offset_of!(vfio_irq_set, count), 1))
    }

    fn set_interrupts(&self, mut set: Structure) -> Result<(), VfioError> {
        let done = self.kernel.described(self.fd.as_fd(), Described::SetInterrupts, &mut set);
        done.map_err(VfioError::refused("DEVICE_SET_IRQS"))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The parts of a region that can be mapped: all of it, unless the kernel names some.
fn parts(info: &Structure, flags: u32, size: u64) -> Result<Vec<(u64, u64)>, ChainError> {
    if flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        let first = info.field(offset_of!(vfio_region_info, cap_offset));
        let fixed = size_of::<vfio_region_info>();
        for one in capabilities::chain(info.bytes(), fixed, first)? {
            if u32::from(one.id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
                return one.areas(size);
            }
        }
    }
    Ok(vec![(0, size)])
}

/// A change of a kind's interrupts from the first one on, with room for `count` descriptors.
fn interrupts(index: u32, flags: u32, count: usize) -> Structure {
    Structure::new(offset_of!(vfio_irq_set, data) + 4 * count)
        .with(offset_of!(vfio_irq_set, flags), flags)
        .with(offset_of!(vfio_irq_set, index), index)
        .with(offset_of!(vfio_irq_set, count), u32::try_from(count).unwrap_or(u32::MAX))
}

/// All of an access was made.
fn whole(done: io::Result<usize>, length: usize, request: &'static str) -> Result<(), VfioError> {
    match done {
        Ok(made) if made == length => Ok(()),
        Ok(made) => Err(VfioError::Invalid(format!("{request}: {made} bytes instead of {length}"))),
        Err(source) => Err(VfioError::Refused { request, source }),
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
