//! The calls of kernel VFIO that are checked: group, container of type 1, device.
#![expect(unsafe_code, reason = "ioctl, and a mapping that the kernel is told the address of")]

use std::ffi::{CString, c_int, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE, vfio_device_info,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

/// Calls, by their distance from the first.
#[derive(Clone, Copy)]
enum Call {
    ApiVersion = 0,
    CheckExtension = 1,
    SetIommu = 2,
    GroupStatus = 3,
    SetContainer = 4,
    DeviceFd = 6,
    DeviceInfo = 7,
    RegionInfo = 8,
    IrqInfo = 9,
    SetIrqs = 10,
    Reset = 11,
    MapDma = 13,
}

/// The size that a structure of the interface says of itself.
fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

fn number(call: Call) -> c_ulong {
    (c_ulong::from(VFIO_TYPE) << 8) | (c_ulong::from(VFIO_BASE) + call as c_ulong)
}

/// A call whose argument is a value, or nothing.
fn call(fd: BorrowedFd<'_>, which: Call, value: c_ulong) -> io::Result<c_int> {
    // SAFETY: an open descriptor; these calls take their argument as a number and touch no memory of ours.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), number(which), value) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// A call whose argument is a structure, which says its own size where the kernel writes to it.
fn call_with<T: ?Sized>(fd: BorrowedFd<'_>, which: Call, argument: &mut T) -> io::Result<c_int> {
    let argument: *mut c_void = std::ptr::from_mut(argument).cast();
    // SAFETY: an open descriptor, and a structure of the call's own layout that is valid for reads and writes for as
    // long as the call lasts.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), number(which), argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// The container, whose functions share their IOMMU's mappings.
pub(crate) struct Container(File);

impl Container {
    pub(crate) fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open("/dev/vfio/vfio").map(Self)
    }

    pub(crate) fn api_version(&self) -> io::Result<c_int> {
        call(self.0.as_fd(), Call::ApiVersion, 0)
    }

    /// Whether it offers this kind of IOMMU.
    pub(crate) fn offers(&self, kind: u32) -> io::Result<bool> {
        Ok(call(self.0.as_fd(), Call::CheckExtension, kind.into())? != 0)
    }

    /// Uses this kind of IOMMU.
    pub(crate) fn set(&self, kind: u32) -> io::Result<()> {
        call(self.0.as_fd(), Call::SetIommu, kind.into()).map(drop)
    }

    /// Lets functions of the container reach memory of a file at an address of theirs.
    pub(crate) fn map(&self, memory: &Memory, iova: u64) -> io::Result<()> {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size::<vfio_iommu_type1_dma_map>(),
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: memory.address as u64,
            iova,
            size: memory.length as u64,
        };
        call_with(self.0.as_fd(), Call::MapDma, &mut map).map(drop)
    }
}

/// An IOMMU group.
pub(crate) struct Group(File);

impl Group {
    /// Where the group of a function is.
    pub(crate) fn path(address: &str) -> io::Result<PathBuf> {
        let group = std::fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group"))?;
        Ok(PathBuf::from("/dev/vfio").join(group.file_name().unwrap_or_default()))
    }

    pub(crate) fn open(address: &str) -> io::Result<Self> {
        File::options().read(true).write(true).open(Self::path(address)?).map(Self)
    }

    /// Flags of its state.
    pub(crate) fn flags(&self) -> io::Result<u32> {
        let mut status =
            vfio_group_status { argsz: size::<vfio_group_status>(), ..Default::default() };
        call_with(self.0.as_fd(), Call::GroupStatus, &mut status)?;
        Ok(status.flags)
    }

    pub(crate) fn enter(&self, container: &Container) -> io::Result<()> {
        let mut descriptor = container.0.as_raw_fd();
        call_with(self.0.as_fd(), Call::SetContainer, &mut descriptor).map(drop)
    }

    /// Opens a function of the group.
    pub(crate) fn device(&self, address: &str) -> io::Result<Device> {
        let name = CString::new(address)?;
        let mut name = name.into_bytes_with_nul();
        let descriptor = call_with(self.0.as_fd(), Call::DeviceFd, name.as_mut_slice())?;
        // SAFETY: the call's answer is a new descriptor that nothing else knows.
        Ok(Device(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) })))
    }
}

/// A function.
pub(crate) struct Device(File);

impl Device {
    pub(crate) fn info(&self) -> io::Result<vfio_device_info> {
        let mut info = vfio_device_info { argsz: size::<vfio_device_info>(), ..Default::default() };
        call_with(self.0.as_fd(), Call::DeviceInfo, &mut info)?;
        Ok(info)
    }

    pub(crate) fn region(&self, index: u32) -> io::Result<vfio_region_info> {
        let mut info =
            vfio_region_info { argsz: size::<vfio_region_info>(), index, ..Default::default() };
        call_with(self.0.as_fd(), Call::RegionInfo, &mut info)?;
        Ok(info)
    }

    pub(crate) fn interrupt(&self, index: u32) -> io::Result<vfio_irq_info> {
        let mut info =
            vfio_irq_info { argsz: size::<vfio_irq_info>(), index, ..Default::default() };
        call_with(self.0.as_fd(), Call::IrqInfo, &mut info)?;
        Ok(info)
    }

    /// Does something to the first interrupt of an index, or has it signal an event.
    pub(crate) fn set_interrupt(
        &self,
        index: u32,
        flags: u32,
        event: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        #[repr(C)]
        struct WithEvent {
            set: vfio_irq_set,
            event: c_int,
        }
        let event_size = if event.is_some() { size::<c_int>() } else { 0 };
        let mut with = WithEvent {
            set: vfio_irq_set {
                argsz: size::<vfio_irq_set>() + event_size,
                flags,
                index,
                start: 0,
                count: 1,
                ..Default::default()
            },
            event: event.map_or(-1, |event| event.as_raw_fd()),
        };
        call_with(self.0.as_fd(), Call::SetIrqs, &mut with).map(drop)
    }

    pub(crate) fn reset(&self) -> io::Result<()> {
        call(self.0.as_fd(), Call::Reset, 0).map(drop)
    }

    /// Maps a page of a region: what a 32-bit load of it finds.
    pub(crate) fn load(&self, region: &vfio_region_info, at: usize) -> io::Result<u32> {
        const PAGE: usize = 4096;
        assert!(at.is_multiple_of(4) && at < PAGE && PAGE as u64 <= region.size);
        // SAFETY: a new shared mapping of an open descriptor, at an address that the kernel chooses.
        let mapped = unsafe {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            mmap(std::ptr::null_mut(), PAGE, access, flags, &self.0, region.offset)
        }?;
        // SAFETY: within the page that was mapped, and aligned, as was asserted.
        let value = unsafe { mapped.cast::<u32>().wrapping_add(at / 4).read_volatile() };
        // SAFETY: exactly what was mapped above, and nobody else knows it.
        unsafe { munmap(mapped, PAGE) }?;
        Ok(value)
    }

    pub(crate) fn read<const N: usize>(
        &self,
        region: &vfio_region_info,
        at: u64,
    ) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, region.offset + at)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, region: &vfio_region_info, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, region.offset + at)
    }
}

/// Memory of a file without a name, mapped for the kernel to find its pages by.
pub(crate) struct Memory {
    file: File,
    address: *mut c_void,
    length: usize,
}

impl Memory {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let file = File::from(memfd_create("dma", MemfdFlags::CLOEXEC)?);
        file.set_len(length as u64)?;
        // SAFETY: a new shared mapping of an open file, at an address that the kernel chooses.
        let address = unsafe {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            mmap(std::ptr::null_mut(), length, access, flags, &file, 0)
        }?;
        Ok(Self { file, address, length })
    }

    /// Through the file: what a device wrote is in it, not in a copy.
    pub(crate) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; nothing borrows from it.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}
