//! A kernel of memory in this process, for tests: its files in /sys are those of a folder, its groups and
//! devices are what a test says, and a device's memory is a file that is read, written and mapped as the
//! kernel's would be.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use crate::abi::{Structure, read};
use crate::kernel::{Described, Kernel, Plain};
use crate::sysfs::Places;

/// Where a region begins in a device's file.
const REGION_SHIFT: u32 = 40;
/// Regions of a PCI function.
const REGIONS: usize = 9;
/// Bits of a region's flags: read, write, map, capabilities.
const FLAGS: (u32, u32, u32, u32) = (1, 2, 4, 8);

/// The major number of groups' files, and the number of the container's.
const GROUPS: u32 = 236;
const CONTAINER: (u32, u32) = (10, 196);

/// A folder in the place of /sys and /dev.
#[derive(Debug)]
pub struct Machine(tempfile::TempDir);

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// Without functions.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["sys/bus/pci/devices", "sys/kernel/iommu_groups", "sys/dev/char", "dev/vfio"]
        {
            std::fs::create_dir_all(machine.0.path().join(folder)).unwrap();
        }
        machine.number(CONTAINER, "virtual/misc/vfio");
        machine
    }

    /// Where its files are.
    #[must_use]
    pub fn places(&self) -> Places {
        let root = self.0.path();
        Places { sys: root.join("sys"), dev: root.join("dev"), proc: root.join("proc") }
    }

    /// Writes a file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Has a character device be called so beneath /sys/devices.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn number(&self, (major, minor): (u32, u32), device: &str) {
        let link = self.0.path().join(format!("sys/dev/char/{major}:{minor}"));
        // Once for each function of a group.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(format!("../../devices/{device}"), link).unwrap();
    }

    /// Adds a function in a group.
    ///
    /// # Panics
    /// When it is there already.
    pub fn function(&self, name: &str, group: u32, driver: Option<&str>) {
        let sys = self.0.path().join("sys");
        let function = sys.join("bus/pci/devices").join(name);
        std::fs::create_dir(&function).unwrap();
        let groups = format!("../../../../kernel/iommu_groups/{group}");
        std::os::unix::fs::symlink(groups, function.join("iommu_group")).unwrap();
        if let Some(driver) = driver {
            let driver = format!("../../drivers/{driver}");
            std::os::unix::fs::symlink(driver, function.join("driver")).unwrap();
        }
        let members = sys.join(format!("kernel/iommu_groups/{group}/devices"));
        std::fs::create_dir_all(&members).unwrap();
        std::fs::write(members.join(name), "").unwrap();
        self.number((GROUPS, group), &format!("virtual/vfio/{group}"));
    }
}

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

    /// How often it was reset.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.resets
    }

    fn describe(&self, info: &mut Structure) {
        *info = info.clone().with(4, 2 | u32::from(self.resettable)).with(8, 9).with(12, 5);
    }

    fn describe_bus(&self, info: &mut Structure) -> io::Result<()> {
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

    fn describe_region(&self, info: &mut Structure) -> io::Result<()> {
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
    fn set_interrupts(&mut self, set: &Structure) -> io::Result<()> {
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

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Another handle of a descriptor of this process, by its number; -1 is none.
fn taken(number: i32) -> io::Result<Option<OwnedFd>> {
    if number < 0 {
        return Ok(None);
    }
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(Some(rustix::process::pidfd_getfd(&own, number, PidfdGetfdFlags::empty())?))
}

/// What a descriptor of the fake kernel's is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Container,
    Group(u32),
    Device(String),
}

/// A mapping for DMA: address in the process, bytes, flags.
pub type FakeMapping = (u64, u64, u32);

#[derive(Debug)]
struct State {
    files: BTreeMap<(u64, u64), What>,
    /// Of each group that is open, what hangs up when it is closed.
    open: BTreeMap<u32, UnixStream>,
    /// Groups that are in a container, and in which.
    contained: BTreeMap<u32, (u64, u64)>,
    /// Containers that have a type.
    typed: BTreeSet<(u64, u64)>,
    /// Groups of which somebody has functions open.
    used: BTreeSet<u32>,
    /// Groups whose devices were taken back since their files were opened.
    gone: BTreeSet<u32>,
    devices: BTreeMap<String, FakeDevice>,
    mappings: BTreeMap<u64, FakeMapping>,
    /// Errors that the next requests of these names fail with.
    failing: Vec<(&'static str, i32)>,
    viable: bool,
    version: u32,
    extensions: Vec<u32>,
    /// First and last of each range of bus addresses.
    ranges: Vec<(u64, u64)>,
}

/// The kernel. Clones are the same.
#[derive(Clone, Debug)]
pub struct FakeKernel(Arc<Mutex<State>>);

impl Default for FakeKernel {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            open: BTreeMap::new(),
            contained: BTreeMap::new(),
            typed: BTreeSet::new(),
            used: BTreeSet::new(),
            gone: BTreeSet::new(),
            devices: BTreeMap::new(),
            mappings: BTreeMap::new(),
            failing: Vec::new(),
            viable: true,
            version: 0,
            extensions: vec![1, 3],
            ranges: vec![(0, 0xfedf_ffff), (0xfef0_0000, (1 << 48) - 1)],
        })))
    }
}

impl FakeKernel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a device.
    pub fn add(&self, name: &str, device: FakeDevice) {
        self.state().devices.insert(name.to_owned(), device);
    }

    /// Looks at, or changes, a device.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn device_of<T>(&self, name: &str, look: impl FnOnce(&mut FakeDevice) -> T) -> T {
        look(self.state().devices.get_mut(name).unwrap())
    }

    /// What is mapped for DMA, by bus address.
    #[must_use]
    pub fn mappings(&self) -> BTreeMap<u64, FakeMapping> {
        self.state().mappings.clone()
    }

    /// Has the next request of this name fail.
    pub fn fail(&self, request: &'static str, errno: i32) {
        self.state().failing.push((request, errno));
    }

    /// Whether groups are viable.
    pub fn set_viable(&self, viable: bool) {
        self.state().viable = viable;
    }

    /// Whether somebody has functions of a group open, which keeps it in its container.
    pub fn set_used(&self, group: u32, used: bool) {
        let groups = &mut self.state().used;
        if used {
            groups.insert(group)
        } else {
            groups.remove(&group)
        };
    }

    /// Takes the devices of a group back: its open file is of no use from here on.
    pub fn take_back(&self, group: u32) {
        self.state().gone.insert(group);
    }

    /// Takes a group out of its container.
    pub fn take_from_container(&self, group: u32) {
        self.state().leave(group);
    }

    /// Has another version, and other types of IOMMU.
    pub fn set_version(&self, version: u32, extensions: &[u32]) {
        let mut state = self.state();
        (state.version, state.extensions) = (version, extensions.to_vec());
    }
}

impl State {
    fn what(&self, fd: BorrowedFd<'_>) -> io::Result<What> {
        let unknown = || io::Error::from_raw_os_error(libc::ENOTTY);
        self.files.get(&file(fd)?).cloned().ok_or_else(unknown)
    }

    /// As the kernel has it: by the files of the groups of all that it reaches.
    fn reset_bus(&mut self, name: &str, reset: &Structure) -> io::Result<()> {
        let count = reset.field(8);
        let files = (0..count).map(|number| {
            let at = 12 + 4 * usize::try_from(number).unwrap();
            taken(reset.field(at).cast_signed())?.map_or_else(|| Err(invalid()), Ok)
        });
        let groups = files.map(|file| match self.what(file?.as_fd())? {
            What::Group(group) => Ok(group),
            _ => Err(invalid()),
        });
        let groups = groups.collect::<io::Result<Vec<_>>>()?;
        let reached = self.devices.get(name).unwrap().bus.clone();
        if reached.is_empty() || !reached.iter().all(|(_, group)| groups.contains(group)) {
            return Err(invalid());
        }
        for ([low, high, bus, slot], _) in reached {
            let segment = u16::from_ne_bytes([low, high]);
            let name = format!("{segment:04x}:{bus:02x}:{:02x}.{}", slot >> 3, slot & 7);
            if let Some(device) = self.devices.get_mut(&name) {
                device.resets += 1;
            }
        }
        Ok(())
    }

    fn may_fail(&mut self, request: &str) -> io::Result<()> {
        match self.failing.iter().position(|(name, _)| *name == request) {
            Some(at) => Err(io::Error::from_raw_os_error(self.failing.remove(at).1)),
            None => Ok(()),
        }
    }

    /// Whether a container has a group that is open.
    fn has_group(&self, container: (u64, u64)) -> bool {
        let mut groups = self.contained.iter().filter(|(_, one)| **one == container);
        groups.any(|(group, _)| self.is_open(*group))
    }

    /// The last group that leaves takes the type along.
    fn leave(&mut self, group: u32) {
        if let Some(container) = self.contained.remove(&group)
            && !self.has_group(container)
        {
            self.typed.remove(&container);
        }
    }

    fn is_open(&self, group: u32) -> bool {
        let other = self.open.get(&group);
        // It hangs up with the last duplicate.
        other.is_some_and(|other| !ipc::poll::wait_readable(other, ipc::Deadline::now()).unwrap())
    }

    fn map(&mut self, map: &Structure) -> io::Result<()> {
        let (flags, vaddr, at, size) = (map.field(4), map.long(8), map.long(16), map.long(24));
        let overlaps =
            |(from, (_, length, _)): (&u64, &FakeMapping)| *from < at + size && at < from + length;
        if self.mappings.iter().any(overlaps) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        if size == 0 || !(vaddr | at | size).is_multiple_of(4096) || flags & 3 == 0 {
            return Err(invalid());
        }
        self.mappings.insert(at, (vaddr, size, flags));
        Ok(())
    }

    fn describe_iommu(&self, info: &mut Structure) {
        const PAGES: u64 = 0x4020_1000;
        let mut own = info.clone().with(4, 3).with_long(8, PAGES);
        let wanted = 24 + 16 + 16 * self.ranges.len() + 16;
        if info.bytes().len() < wanted {
            *info = own.with(0, u32::try_from(wanted).unwrap());
            return;
        }
        let second = u32::try_from(wanted - 16).unwrap();
        let count = u32::try_from(self.ranges.len()).unwrap();
        own = own.with(16, 24).with(24, 1 | 1 << 16).with(28, second).with(32, count);
        for (number, (first, last)) in self.ranges.iter().enumerate() {
            let at = 40 + 16 * number;
            own = own.with_long(at, *first).with_long(at + 8, *last);
        }
        let at = usize::try_from(second).unwrap();
        *info = own.with(at, 3 | 1 << 16).with(at + 8, 65_535);
    }
}

/// A file, by what makes it one.
fn file(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Kernel for FakeKernel {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut state = self.state();
        state.may_fail("open")?;
        let name = path.file_name().unwrap().to_str().unwrap();
        let (one, other) = UnixStream::pair()?;
        let what = match name.parse() {
            Ok(group) if state.is_open(group) => {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            Ok(group) => {
                state.open.insert(group, other);
                state.leave(group);
                state.gone.remove(&group);
                What::Group(group)
            }
            Err(_) => What::Container,
        };
        state.files.insert(file(one.as_fd())?, what);
        Ok(one.into())
    }

    /// Those that [`Machine`] has in its /sys.
    fn number(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
        Ok(match self.state().what(fd) {
            Ok(What::Group(group)) => Some((GROUPS, group)),
            Ok(What::Container) => Some(CONTAINER),
            _ => ipc::vfio_file::number(fd)?,
        })
    }

    fn described(
        &self,
        fd: BorrowedFd<'_>,
        request: Described,
        structure: &mut Structure,
    ) -> io::Result<()> {
        let mut state = self.state();
        let size = u32::try_from(structure.bytes().len()).unwrap();
        assert_eq!(read(structure.bytes(), 0).map(u32::from_ne_bytes), Some(size), "argsz");
        let what = state.what(fd)?;
        state.may_fail(match request {
            Described::GroupStatus => "GROUP_GET_STATUS",
            Described::DeviceInfo => "DEVICE_GET_INFO",
            Described::RegionInfo => "DEVICE_GET_REGION_INFO",
            Described::InterruptInfo => "DEVICE_GET_IRQ_INFO",
            Described::SetInterrupts => "DEVICE_SET_IRQS",
            Described::IommuInfo => "IOMMU_GET_INFO",
            Described::MapDma => "IOMMU_MAP_DMA",
            Described::UnmapDma => "IOMMU_UNMAP_DMA",
            Described::HotResetInfo => "DEVICE_GET_PCI_HOT_RESET_INFO",
            Described::HotReset => "DEVICE_PCI_HOT_RESET",
        })?;
        match (what, request) {
            (What::Group(group), Described::GroupStatus) => {
                if state.gone.contains(&group) {
                    return Err(io::Error::from_raw_os_error(libc::ENODEV));
                }
                let contained = if state.contained.contains_key(&group) { 2 } else { 0 };
                *structure = structure.clone().with(4, u32::from(state.viable) | contained);
            }
            (What::Container, Described::MapDma) => state.map(structure)?,
            (What::Container, Described::UnmapDma) => {
                let gone = state.mappings.remove(&structure.long(8));
                *structure = structure.clone().with_long(16, gone.map_or(0, |(_, size, _)| size));
            }
            (What::Container, Described::IommuInfo) if !state.typed.contains(&file(fd)?) => {
                return Err(invalid());
            }
            (What::Container, Described::IommuInfo) => state.describe_iommu(structure),
            (What::Device(name), Described::HotReset) => state.reset_bus(&name, structure)?,
            (What::Device(name), request) => {
                let device = state.devices.get_mut(&name).unwrap();
                match request {
                    Described::DeviceInfo => device.describe(structure),
                    Described::RegionInfo => device.describe_region(structure)?,
                    Described::InterruptInfo => {
                        let index = usize::try_from(structure.field(8)).unwrap();
                        *structure = structure.clone().with(12, device.interrupts[index]);
                    }
                    Described::SetInterrupts => device.set_interrupts(structure)?,
                    Described::HotResetInfo => device.describe_bus(structure)?,
                    _ => return Err(io::Error::from_raw_os_error(libc::ENOTTY)),
                }
            }
            _ => return Err(io::Error::from_raw_os_error(libc::ENOTTY)),
        }
        Ok(())
    }

    fn plain(&self, fd: BorrowedFd<'_>, request: Plain) -> io::Result<u32> {
        let mut state = self.state();
        let what = state.what(fd)?;
        match (what, request) {
            (What::Container, Plain::ApiVersion) => Ok(state.version),
            (What::Container, Plain::CheckExtension(one)) => {
                Ok(state.extensions.contains(&one).into())
            }
            (What::Container, Plain::SetIommu(kind)) => {
                let container = file(fd)?;
                if !state.has_group(container) || state.typed.contains(&container) {
                    return Err(invalid());
                }
                if !state.extensions.contains(&kind) {
                    return Err(io::Error::from_raw_os_error(libc::ENODEV));
                }
                state.may_fail("SET_IOMMU")?;
                state.typed.insert(container);
                Ok(0)
            }
            (What::Group(group), Plain::UnsetContainer) => {
                state.may_fail("GROUP_UNSET_CONTAINER")?;
                if !state.contained.contains_key(&group) {
                    return Err(invalid());
                }
                if state.used.contains(&group) {
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                state.leave(group);
                Ok(0)
            }
            (What::Device(name), Plain::Reset) => {
                state.may_fail("DEVICE_RESET")?;
                state.devices.get_mut(&name).unwrap().resets += 1;
                Ok(0)
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENOTTY)),
        }
    }

    fn set_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.state();
        state.may_fail("GROUP_SET_CONTAINER")?;
        match (state.what(group)?, state.what(container)?) {
            (What::Group(group), What::Container) => {
                if state.contained.contains_key(&group) {
                    return Err(invalid());
                }
                let container = file(container)?;
                state.contained.insert(group, container);
                Ok(())
            }
            _ => Err(invalid()),
        }
    }

    fn device(&self, group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let mut state = self.state();
        state.may_fail("GROUP_GET_DEVICE_FD")?;
        if !matches!(state.what(group)?, What::Group(_)) {
            return Err(invalid());
        }
        let none = || io::Error::from_raw_os_error(libc::ENODEV);
        let fd = state.devices.get(name).ok_or_else(none)?.file.try_clone()?;
        state.files.insert(file(fd.as_fd())?, What::Device(name.to_owned()));
        Ok(fd)
    }
}
