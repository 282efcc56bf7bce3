//! A kernel of memory in this process, for tests: its files in /sys are those of a folder, its groups and
//! devices are what a test says, and a device's memory is a file that is read, written and mapped as the
//! kernel's would be.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod device;
mod iommufd;
mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use self::iommufd::Iommufds;
use crate::abi::{Structure, read};
use crate::kernel::{Described, IoasRanges, Kernel, Plain};

pub use self::device::FakeDevice;
pub use self::machine::Machine;

/// The major numbers of groups' files and of devices' own, and the numbers of the container's and of the iommufd's.
const GROUPS: u32 = 236;
const DEVICES: u32 = 237;
const CONTAINER: (u32, u32) = (10, 196);
const IOMMUFD: (u32, u32) = (10, 124);

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
    Iommufd,
}

/// A file, by device and number.
type FileId = (u64, u64);

/// A mapping for DMA: address in the process, bytes, flags.
pub type FakeMapping = (u64, u64, u32);

#[derive(Debug)]
struct State {
    files: BTreeMap<FileId, What>,
    /// Of each group that is open, what hangs up when it is closed.
    open: BTreeMap<u32, UnixStream>,
    /// Groups that are in a container, and in which.
    contained: BTreeMap<u32, FileId>,
    /// Containers that have a type.
    typed: BTreeSet<FileId>,
    /// Groups of which somebody has functions open.
    used: BTreeSet<u32>,
    /// Groups whose devices were taken back since their files were opened.
    gone: BTreeSet<u32>,
    devices: BTreeMap<String, FakeDevice>,
    iommufds: Iommufds,
    mappings: BTreeMap<u64, FakeMapping>,
    /// Errors that the next requests of these names fail with.
    failing: Vec<(&'static str, i32)>,
    /// And those that all fail with.
    always: Vec<(&'static str, i32)>,
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
            iommufds: Iommufds::default(),
            mappings: BTreeMap::new(),
            failing: Vec::new(),
            always: Vec::new(),
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

    /// Has a device be opened by a file of its own, `/dev/vfio/devices/vfioNUMBER`, and memory be mapped for it by an
    /// iommufd.
    pub fn add_cdev(&self, name: &str, number: u32) {
        self.state().iommufds.cdevs.insert(number, name.to_owned());
    }

    /// Somebody keeps a device's own file open, so that it stays bound whoever dies.
    pub fn hold(&self, name: &str) {
        self.state().iommufds.held.insert(name.to_owned());
    }

    /// Has iommufds map memory by its address only, as before Linux 6.13.
    pub fn set_old_iommufd(&self) {
        self.state().iommufds.is_old = true;
    }

    /// Whether a device is bound to an iommufd.
    #[must_use]
    pub fn is_bound(&self, name: &str) -> bool {
        self.state().iommufds.is_bound(name)
    }

    /// The address space that a device is attached to.
    #[must_use]
    pub fn attached(&self, name: &str) -> Option<u32> {
        self.state().iommufds.attached(name)
    }

    /// How many address spaces iommufds have.
    #[must_use]
    pub fn spaces(&self) -> usize {
        self.state().iommufds.spaces()
    }

    /// What is mapped for DMA, by bus address.
    #[must_use]
    pub fn mappings(&self) -> BTreeMap<u64, FakeMapping> {
        let mut state = self.state();
        state.iommufds.spaces();
        state.mappings.clone().into_iter().chain(state.iommufds.mappings()).collect()
    }

    /// Has a request of this name fail after so many that do not.
    pub fn fail_after(&self, request: &'static str, good: usize, errno: i32) {
        let mut state = self.state();
        state.failing.extend(std::iter::repeat_n((request, 0), good));
        state.failing.push((request, errno));
    }

    /// Has every request of this name fail.
    pub fn fail_always(&self, request: &'static str, errno: i32) {
        self.state().always.push((request, errno));
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

    /// Of a device that an iommufd has, the kernel says whether that has the others, and not their groups.
    fn own_bus(&mut self, name: &str, info: &mut Structure) {
        const DEV_ID: u32 = 1;
        if !self.iommufds.is_bound(name) {
            return;
        }
        let count = usize::try_from(info.field(8)).unwrap();
        let mut own = info.clone().with(4, DEV_ID);
        for at in (12..).step_by(8).take(count) {
            let other = named(own.field(at + 4).to_ne_bytes());
            let owned = self.iommufds.is_beside(&other, name);
            own = own.with(at, if owned { 1 } else { u32::MAX });
        }
        *info = own;
    }

    /// As the kernel has it: by the files of the groups of all that it reaches, or by the iommufd that has them all.
    fn reset_bus(&mut self, name: &str, reset: &Structure) -> io::Result<()> {
        let count = reset.field(8);
        if count == 0 {
            let reached = self.devices.get(name).unwrap().bus.clone();
            let names: Vec<String> =
                reached.into_iter().map(|(address, _)| named(address)).collect();
            if names.is_empty() || !names.iter().all(|one| self.iommufds.is_beside(one, name)) {
                return Err(invalid());
            }
            names.iter().for_each(|one| self.devices.get_mut(one).unwrap().was_reset());
            return Ok(());
        }
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
        for (address, _) in reached {
            if let Some(device) = self.devices.get_mut(&named(address)) {
                device.was_reset();
            }
        }
        Ok(())
    }

    fn may_fail(&mut self, request: &str) -> io::Result<()> {
        if let Some((_, errno)) = self.always.iter().find(|(name, _)| *name == request) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        match self.failing.iter().position(|(name, _)| *name == request) {
            Some(at) => match self.failing.remove(at).1 {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            None => Ok(()),
        }
    }

    /// Whether a container has a group that is open.
    fn has_group(&self, container: FileId) -> bool {
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

/// A function's name, of its address as the kernel has it.
fn named([low, high, bus, slot]: [u8; 4]) -> String {
    let segment = u16::from_ne_bytes([low, high]);
    format!("{segment:04x}:{bus:02x}:{:02x}.{}", slot >> 3, slot & 7)
}

/// A file, by what makes it one.
fn file(fd: BorrowedFd<'_>) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Kernel for FakeKernel {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut state = self.state();
        state.may_fail("open")?;
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(number) = name.strip_prefix("vfio").and_then(|number| number.parse().ok()) {
            let name =
                state.iommufds.cdevs.get(&number).cloned().ok_or(rustix::io::Errno::NOENT)?;
            state.iommufds.by_group.remove(&name);
            let fd = state.devices.get(&name).ok_or(rustix::io::Errno::NODEV)?.file()?;
            state.files.insert(file(fd.as_fd())?, What::Device(name));
            return Ok(fd);
        }
        let (one, other) = UnixStream::pair()?;
        if name == "iommu" {
            let id = file(one.as_fd())?;
            state.iommufds.opened(id, other);
            state.files.insert(id, What::Iommufd);
            return Ok(one.into());
        }
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
        let what = self.state().what(fd);
        Ok(match what {
            Ok(What::Group(group)) => Some((GROUPS, group)),
            Ok(What::Container) => Some(CONTAINER),
            Ok(What::Iommufd) => Some(IOMMUFD),
            Ok(What::Device(name)) => {
                let state = self.state();
                let mut cdevs = state.iommufds.cdevs.iter();
                cdevs.find(|(_, one)| **one == name).map(|(number, _)| (DEVICES, *number))
            }
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
            Described::BindIommufd => "DEVICE_BIND_IOMMUFD",
            Described::AttachIoas => "DEVICE_ATTACH_IOMMUFD_PT",
            Described::DetachIoas => "DEVICE_DETACH_IOMMUFD_PT",
            Described::AllocateIoas => "IOMMU_IOAS_ALLOC",
            Described::MapIoas => "IOMMU_IOAS_MAP",
            Described::MapFileIoas => "IOMMU_IOAS_MAP_FILE",
            Described::UnmapIoas => "IOMMU_IOAS_UNMAP",
            Described::DestroyIommu => "IOMMU_DESTROY",
        })?;
        match (what, request) {
            (What::Iommufd, request) => {
                let iommufd = file(fd)?;
                state.iommufds.described(iommufd, request, structure)?;
            }
            (
                What::Device(name),
                Described::BindIommufd | Described::AttachIoas | Described::DetachIoas,
            ) => state.bind(&name, request, structure)?,
            (What::Device(name), _) if !state.iommufds.is_usable(&name) => return Err(invalid()),
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
                    Described::HotResetInfo => {
                        device.describe_bus(structure)?;
                        state.own_bus(&name, structure);
                    }
                    _ => return Err(io::Error::from_raw_os_error(libc::ENOTTY)),
                }
            }
            _ => return Err(io::Error::from_raw_os_error(libc::ENOTTY)),
        }
        Ok(())
    }

    fn ioas_ranges(
        &self,
        iommufd: BorrowedFd<'_>,
        number: u32,
        _most: usize,
    ) -> io::Result<IoasRanges> {
        let mut state = self.state();
        state.may_fail("IOMMU_IOAS_IOVA_RANGES")?;
        if state.what(iommufd)? != What::Iommufd {
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        }
        let ranges = state.ranges.clone();
        state.iommufds.ranges(file(iommufd)?, number, &ranges)
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
                state.devices.get_mut(&name).unwrap().was_reset();
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
        let fd = state.devices.get(name).ok_or_else(none)?.file()?;
        state.iommufds.by_group.insert(name.to_owned());
        state.files.insert(file(fd.as_fd())?, What::Device(name.to_owned()));
        Ok(fd)
    }
}
