//! VFIO behind the backend traits, and its connection side: a group and its functions.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cordon_backend::{
    Backend, BackendError, BackendKind, Backing, BarMemory, BusAddresses, BusRange, DmaRange,
    DmaSpace, Group, GroupFunction, Listed, Liveness, OpenFunction, OpenGroup, Reset, ResetKind,
    ServedFunction, Source, Survives, SurvivingFunction,
};
use ipc::wire::common::{BarInfo, Identity};
use ipc::{DeviceMemory, PciAddress};
use rustix::event::{EventfdFlags, eventfd};

use crate::address_space::{AddressSpace, Mapper, Range};
use crate::bus::{self, Reached};
use crate::cdev;
use crate::device::Device;
use crate::error::VfioError;
use crate::group::{self, Opened, OpenedDevice};
use crate::handed;
use crate::kernel::{Kernel, Linux};
use crate::listed;
use crate::served::Served;
use crate::sysfs::Places;

/// The interrupt by which the kernel asks for a device.
const REQUEST: u32 = 4;

/// Functions that are bound to vfio-pci.
#[derive(Debug)]
pub struct Vfio {
    kernel: Arc<dyn Kernel>,
    places: Places,
}

impl Default for Vfio {
    /// Those of the kernel that runs here.
    fn default() -> Self {
        Self::over(Arc::new(Linux), Places::default())
    }
}

impl Vfio {
    /// Those of a kernel whose files are at `places`.
    #[must_use]
    pub fn over(kernel: Arc<dyn Kernel>, places: Places) -> Self {
        Self { kernel, places }
    }
}

pub(crate) fn subject(address: PciAddress) -> String {
    format!("Function {address}")
}

impl Backend for Vfio {
    fn kind(&self) -> BackendKind {
        BackendKind::Vfio
    }

    fn list(&self, limit: usize) -> Result<Vec<Listed>, BackendError> {
        listed::list(self.kernel.as_ref(), &self.places, limit)
            .map_err(|error| error.of("VFIO", "List"))
    }

    fn open_function(
        &self,
        address: PciAddress,
        source: Source,
    ) -> Result<Box<dyn ServedFunction>, BackendError> {
        let failed = |error: VfioError| error.of(subject(address), "Open");
        let Source::Handed(descriptors) = source else {
            return Err(failed(VfioError::Unsupported(
                "the process that holds its group hands it on: nobody else opens it",
            )));
        };
        let count = descriptors.len();
        let [device] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| {
            failed(VfioError::Invalid(format!("{count} descriptors were handed on instead of 1")))
        })?;
        let device = Device::new(Arc::clone(&self.kernel), device, address).map_err(failed)?;
        Ok(Box::new(Served::new(device)))
    }

    fn open_group(&self, address: PciAddress, source: Source) -> Result<OpenGroup, BackendError> {
        let failed = |error: VfioError| error.of(subject(address), "Open");
        let opened = match source {
            Source::Own | Source::OwnAt(_) => {
                match cdev::open(&self.kernel, &self.places, address) {
                    Ok(None) => group::open(&self.kernel, &self.places, address),
                    Ok(Some(opened)) => Ok(opened),
                    Err(error) => Err(error),
                }
            }
            Source::Adopted(left) => group::adopt(&self.kernel, &self.places, address, left),
            Source::HandedGroup(handed) => {
                handed::open(&self.kernel, &self.places, address, handed)
            }
            Source::HandedDevices(handed) => {
                cdev::open_handed(&self.kernel, &self.places, address, handed)
            }
            Source::Handed(_) => Err(VfioError::Unsupported("a group is opened, not handed on")),
        };
        let Opened { number, file, space, devices } = opened.map_err(failed)?;
        let (space, claimed) = (Mutex::new(space), Mutex::default());
        let shared = Arc::new(Shared { number, file, space, claimed });
        let functions = devices
            .into_iter()
            .map(|device| Grouped::new(device, Arc::clone(&shared)).map(|one| Box::new(one) as _))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let (space, by_iommufd) = {
            let space = shared.space();
            (space.descriptor(), matches!(space.mapper(), Mapper::Ioas(_)))
        };
        let group = Box::new(OpenedGroup { shared, space, by_iommufd });
        Ok(OpenGroup { group, functions })
    }
}

/// What the functions of a group share.
#[derive(Debug)]
struct Shared {
    number: u32,
    /// Of a group that was opened by its file. Closed with the last function: whoever has it may reset their bus.
    file: Option<OwnedFd>,
    space: Mutex<AddressSpace>,
    /// Functions that are in use.
    claimed: Mutex<BTreeSet<PciAddress>>,
}

impl Shared {
    fn space(&self) -> MutexGuard<'_, AddressSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeSet<PciAddress>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group itself: closed, it gives everything back.
struct OpenedGroup {
    shared: Arc<Shared>,
    space: Arc<OwnedFd>,
    by_iommufd: bool,
}

impl Group for OpenedGroup {
    /// The kernel lets a device go on for as long as somebody has its group and container, or its iommufd, and itself
    /// open.
    fn survives(&self) -> Survives<'_> {
        Survives::Descriptors(self.descriptors())
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        None
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        VfioError::Requested.of(format!("IOMMU group {}", self.shared.number), operation)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.shared.file.as_ref().into_iter().chain([&*self.space]).map(OwnedFd::as_fd).collect()
    }

    fn uses_iommufd(&self) -> bool {
        self.by_iommufd
    }
}

/// A function of an open group.
struct Grouped {
    device: Device,
    /// The descriptor by which windows are handed on. A process that is confined cannot make another.
    memory: Arc<DeviceMemory>,
    /// Readable once the kernel wants the device back; none where it does not say.
    request: Option<OwnedFd>,
    shared: Arc<Shared>,
    is_claimed: bool,
    /// What it was given, by bus address.
    mapped: BTreeSet<u64>,
    /// A process that is dead claimed it, and its guest has set it up since.
    in_use: bool,
    /// Whom a reset of its bus reaches, where it cannot be reset alone; or what the kernel says instead.
    bus: Option<Result<Vec<Reached>, String>>,
    /// [`OpenedDevice::duplicate`].
    _duplicate: Option<OwnedFd>,
}

impl Grouped {
    fn new(opened: OpenedDevice, shared: Arc<Shared>) -> Result<Self, VfioError> {
        let OpenedDevice { device, request, claimed: in_use, duplicate: _duplicate } = opened;
        let memory = device.as_fd().try_clone_to_owned();
        let memory = memory.map_err(VfioError::refused("duplicating the device"))?;
        let memory = DeviceMemory::of_device(memory)
            .map_err(|error| VfioError::Invalid(ipc::chain(&error)))?;
        let request = match request {
            None if device.interrupts(REQUEST) == 0 => None,
            // The event that the kernel was told of goes on, with what it has signalled. It is told of it again: a
            // function process can have it forget that.
            adopted => {
                let event = adopted
                    .map_or_else(|| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK), Ok);
                let event = event.map_err(|error| VfioError::refused("eventfd")(error.into()))?;
                device.signal(REQUEST, &[Some(event.as_fd())])?;
                Some(event)
            }
        };
        let memory = Arc::new(memory);
        let (is_claimed, mapped) = (false, BTreeSet::new());
        // Asked now, since a confined process cannot.
        let bus = match device.is_resettable() {
            true => None,
            false => bus::reached(device.kernel(), device.as_fd())
                .map_err(|error| ipc::chain(&error))
                .transpose(),
        };
        if in_use {
            shared.claimed().insert(device.identity().address);
        }
        Ok(Self { device, memory, request, shared, is_claimed, mapped, in_use, bus, _duplicate })
    }

    /// Has the space map a range, in one way or the other.
    fn map(
        &mut self,
        range: &DmaRange<'_>,
        how: fn(&mut AddressSpace, &Range<'_>) -> Result<(), VfioError>,
    ) -> Result<BusRange, BackendError> {
        let failed = self.device.failed("MapDma");
        let file = rustix::fs::fstat(range.behind.memory)
            .map_err(|error| failed(VfioError::refused("fstat")(error.into())))?;
        let memory = (file.st_dev, file.st_ino, range.behind.offset);
        let (at, size, writable) = (range.key, range.size, range.behind.writable);
        if self.mapped.contains(&at) {
            return Err(failed(VfioError::Mapped { address: at, size }));
        }
        let (mapped_at, file) = (range.mapped_at, range.behind.memory.as_fd());
        let mapping = Range { at, size, mapped_at, writable, memory, file };
        how(&mut self.shared.space(), &mapping).map_err(failed)?;
        self.mapped.insert(at);
        Ok(BusRange { address: at, length: size })
    }

    /// Takes back what it was given: what another function of the group has too stays there.
    fn unmap_all(&mut self) -> Result<(), VfioError> {
        let mut space = self.shared.space();
        let mut done = Ok(());
        for at in std::mem::take(&mut self.mapped) {
            done = done.and(space.unmap(at));
        }
        done
    }

    /// Ends what the claim began. The rest of the group may have the same memory, so that it is not enough to
    /// take that back. Whom the kernel signals for its interrupts stays until somebody else is named: without
    /// bus mastering there are no messages, and its pin is off.
    fn quiet(&mut self) -> Result<(), VfioError> {
        self.device.switch_off()?;
        self.unmap_all()
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        self.shared.claimed().remove(&self.device.identity().address);
        if !self.mapped.is_empty() {
            // It may still be told to reach memory that others of the group have.
            let _ = self.device.switch_off();
        }
        // What cannot be taken back goes with the group in any case.
        let _ = self.unmap_all();
    }
}

impl OpenFunction for Grouped {
    fn identity(&self) -> Identity {
        self.device.identity()
    }

    fn bars(&mut self) -> Result<[Option<BarInfo>; 6], BackendError> {
        Ok(self.device.bars())
    }

    fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, BackendError> {
        self.device.config_read(offset, width).map_err(self.device.failed("ConfigRead"))
    }

    /// Not by another process: the kernel opens a group for one.
    fn is_claimed(&mut self) -> Result<bool, BackendError> {
        Ok(self.is_claimed)
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        self.request.as_ref().map(|request| Liveness::Readable(request.as_fd()))
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        self.device.failed(operation)(VfioError::Requested)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let own = [Some(self.device.as_fd()), self.memory.descriptor()];
        own.into_iter().flatten().chain(self.request.as_ref().map(OwnedFd::as_fd)).collect()
    }
}

impl Reset for Grouped {
    fn reset_kinds(&self) -> &[ResetKind] {
        if self.bus.is_some() { &[ResetKind::Bus] } else { kinds(&self.device) }
    }

    /// A bus, if nothing else on it is in use: everybody else's device would be as at its beginning.
    fn reset(&mut self, kind: ResetKind) -> Result<(), BackendError> {
        let (ResetKind::Bus, Some(bus)) = (kind, &self.bus) else {
            return reset(&self.device, kind);
        };
        let failed = self.device.failed("Reset");
        let reached = bus.as_ref().map_err(|why| failed(VfioError::Invalid(why.clone())))?;
        let of = (self.device.identity().address, self.shared.number);
        let claimed = self.shared.claimed();
        bus::may_reset(reached, of, |address| claimed.contains(&address)).map_err(&failed)?;
        let file = self.shared.file.as_ref().map(OwnedFd::as_fd);
        bus::reset(self.device.kernel(), &self.device, file).map_err(failed)
    }
}

/// The kinds of reset that a device has.
pub(crate) fn kinds(device: &Device) -> &'static [ResetKind] {
    if device.is_resettable() { &[ResetKind::Function] } else { &[] }
}

/// Resets a device.
pub(crate) fn reset(device: &Device, kind: ResetKind) -> Result<(), BackendError> {
    let failed = device.failed("Reset");
    match kind {
        ResetKind::Function if device.is_resettable() => device.reset().map_err(failed),
        ResetKind::Function => Err(failed(VfioError::Unsupported(
            "the kernel has no way to reset this function alone",
        ))),
        ResetKind::Bus => {
            Err(failed(VfioError::Unsupported("the process that has its group resets its bus")))
        }
    }
}

impl GroupFunction for Grouped {
    fn claim(&mut self) -> Result<(), BackendError> {
        if !std::mem::take(&mut self.in_use) {
            self.device.switch_on().map_err(self.device.failed("Claim"))?;
        }
        self.is_claimed = true;
        self.shared.claimed().insert(self.device.identity().address);
        Ok(())
    }

    /// The group stays with this process, and no other could open the function.
    fn release(mut self: Box<Self>) -> Result<Option<Box<dyn GroupFunction>>, BackendError> {
        // Otherwise it is closed, and the kernel ends what it does.
        self.quiet().map_err(self.device.failed("Release"))?;
        self.is_claimed = false;
        self.shared.claimed().remove(&self.device.identity().address);
        Ok(Some(self))
    }

    fn is_lost_alone(&self) -> bool {
        true
    }

    fn handed(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.device.as_fd()]
    }

    fn survives(&self) -> SurvivingFunction<'_> {
        let request = self.request.as_ref().map(OwnedFd::as_fd);
        SurvivingFunction { descriptors: self.handed(), request }
    }

    fn window_granule(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn bar_memory(&mut self, bar: u8) -> Result<BarMemory, BackendError> {
        let region = self.device.region(usize::from(bar)).filter(|_| bar < 6);
        let (size, base) =
            region.map_or((0, 0), |region| (region.mappable_from_start(), region.offset));
        if size == 0 {
            let none = VfioError::Unsupported("the kernel does not let it be mapped");
            return Err(self.device.failed("MapMemory")(none));
        }
        let memory = Arc::clone(&self.memory);
        Ok(BarMemory { size, backing: Backing::Shared { memory, base } })
    }

    fn dma_space(&self) -> DmaSpace {
        let shared = self.shared.space();
        let space = shared.space();
        DmaSpace {
            addresses: BusAddresses::Chosen,
            granule: space.granule,
            max_ranges: space.mappings,
            needs_mapping: shared.needs_mapping(),
            shared: true,
        }
    }

    fn register_dma(&mut self, range: &DmaRange<'_>) -> Result<BusRange, BackendError> {
        self.map(range, AddressSpace::map)
    }

    fn adopt_dma(&mut self, range: &DmaRange<'_>) -> Result<BusRange, BackendError> {
        self.map(range, AddressSpace::adopt)
    }

    fn unregister_dma(&mut self, key: u64, _at: BusRange) -> Result<(), BackendError> {
        let failed = self.device.failed("UnmapDma");
        if !self.mapped.contains(&key) {
            return Err(failed(VfioError::Invalid(format!("nothing is mapped at {key:#x}"))));
        }
        self.shared.space().unmap(key).map_err(failed)?;
        self.mapped.remove(&key);
        Ok(())
    }
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
