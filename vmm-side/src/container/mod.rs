//! The container: guest memory and DMA of the functions of one guest (P2).
//!
//! *direct* mode registers every region of guest memory with the dext under key = iova, and works
//! only where the platform answers bus address == iova (the simulated dext in identity mode).
//! *companion* mode, as on real hardware, registers nothing by itself: the guest maps on demand.
//! In both modes the connection processes are given the memory table, against which every
//! registration is checked.

mod members;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipc::{Deadline, PciAddress};
use parking_lot::{Condvar, Mutex};

use crate::connection::Connection;
use crate::error::{DeviceError, ErrorKind};
pub use crate::memory::GuestRegion;
use crate::memory::RingReader;

/// How long one change of guest memory may take, however many functions it concerns: below the 5 s
/// after which QEMU gives up on a request.
const CHANGE: Duration = Duration::from_millis(4500);

/// How much longer it may take for each GiB: the kernel makes and pins memory that nobody has touched yet.
const PER_GIB: Duration = Duration::from_secs(2);

/// How long a change of so many bytes may take.
fn change(bytes: u64) -> Duration {
    let gib = u32::try_from(bytes >> 30).unwrap_or(u32::MAX);
    CHANGE.saturating_add(PER_GIB.saturating_mul(gib))
}

/// Who maps guest memory for the device (P2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaMode {
    /// This side, all of it.
    Direct,
    /// The guest, on demand, through the companion device.
    Companion,
}

/// A function that reaches the memory.
struct Member {
    address: PciAddress,
    connection: Arc<Connection>,
}

impl Member {
    fn is(&self, address: PciAddress, connection: &Arc<Connection>) -> bool {
        self.address == address && Arc::ptr_eq(&self.connection, connection)
    }
}

/// How far one region has come with one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is being given, by one thread.
    Giving,
    /// The function has it.
    Given,
    /// It is being taken, by one thread.
    Taking,
}

/// What is known of a member.
struct Membership {
    member: Arc<Member>,
    /// Counts the connection processes that it was a member through: what was begun with one that
    /// died is not finished with its successor.
    epoch: u64,
    /// Its connection process is there; one that died took all memory along.
    present: bool,
    /// Regions that its connection process has, or is being given.
    steps: BTreeMap<u64, Step>,
    /// Its function process, where a companion reads rings in guest RAM.
    reader: Option<Arc<dyn RingReader>>,
}

struct Region {
    region: Arc<GuestRegion>,
    /// How often it was mapped and not unmapped since.
    holders: usize,
    /// It is being removed: nobody is given it any more.
    leaving: bool,
}

#[derive(Default)]
struct ContainerState {
    regions: BTreeMap<u64, Region>,
    members: Vec<Membership>,
}

impl ContainerState {
    fn find(&mut self, member: &Member) -> Option<&mut Membership> {
        let is_it = |one: &&mut Membership| one.member.is(member.address, &member.connection);
        self.members.iter_mut().find(is_it)
    }

    fn find_by(
        &mut self,
        address: PciAddress,
        connection: &Arc<Connection>,
    ) -> Option<&mut Membership> {
        self.members.iter_mut().find(|one| one.member.is(address, connection))
    }

    fn everybody(&self) -> Vec<Arc<Member>> {
        self.members.iter().map(|one| Arc::clone(&one.member)).collect()
    }

    fn all_regions(&self) -> Vec<Arc<GuestRegion>> {
        let staying = self.regions.values().filter(|one| !one.leaving);
        staying.map(|one| Arc::clone(&one.region)).collect()
    }
}

/// Guest memory and the functions that reach it.
///
/// ```
/// use cordon_vmm::{Container, DmaMode, GuestRegion, SharedMemory};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let container = Container::new(DmaMode::Direct);
/// let memory = SharedMemory::create("guest-ram", 64 << 20)?.into();
/// container.map(GuestRegion { iova: 1 << 31, size: 64 << 20, memory, offset: 0, writable: true })?;
/// assert_eq!(container.usage(), (1, 64 << 20));
/// // Whatever is attached with it from here on may reach that memory, and nothing else.
/// container.unmap(1 << 31, 64 << 20)?;
/// # Ok(())
/// # }
/// ```
///
/// Its lock is never held while a process is asked: what is under way is written down
/// (`Step`), and whoever needs the same region of the same function waits for that alone.
pub struct Container {
    mode: DmaMode,
    state: Mutex<ContainerState>,
    changed: Condvar,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Container {
    /// An empty container.
    #[must_use]
    pub fn new(mode: DmaMode) -> Self {
        Self { mode, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Who maps.
    #[must_use]
    pub fn mode(&self) -> DmaMode {
        self.mode
    }

    /// The page size that mappings are made of: the host's, 16 KiB on Apple silicon (P2.1).
    #[must_use]
    pub fn page_size(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    /// Whether the VMM may discard guest RAM on its own (a balloon): not while a function is
    /// attached, which may have it registered (P1.1).
    #[must_use]
    pub fn discard_allowed(&self) -> bool {
        self.state.lock().members.is_empty()
    }

    /// Dirty page tracking (P2.2): none.
    ///
    /// # Errors
    /// Always, of kind [`ErrorKind::NotSupported`].
    pub fn start_dirty_tracking(&self) -> Result<(), DeviceError> {
        Err(DeviceError::not_supported("Dirty page tracking is not supported"))
    }

    /// The dirty bitmap (P2.2): none.
    ///
    /// # Errors
    /// Always, of kind [`ErrorKind::NotSupported`].
    pub fn dirty_bitmap(&self, _iova: u64, _size: u64) -> Result<Vec<u64>, DeviceError> {
        Err(DeviceError::not_supported("Dirty page tracking is not supported"))
    }

    /// A reset of the whole bus: succeeds without doing anything (P2.3).
    pub fn hot_reset(&self) {}

    /// Adds a region of guest memory for every function, attached now or later.
    ///
    /// # Errors
    /// [`DeviceError`]; the region is then known to no function.
    pub fn map(&self, region: GuestRegion) -> Result<(), DeviceError> {
        self.add(region, false)
    }

    /// [`Container::map`] by one of several who describe the same guest memory, each all of it: the same part
    /// of the same memory may be there already. It stays until each of them has unmapped it.
    ///
    /// # Errors
    /// As [`Container::map`], also of a region at the same address that is other memory.
    pub fn map_too(&self, region: GuestRegion) -> Result<(), DeviceError> {
        self.add(region, true)
    }

    fn add(&self, region: GuestRegion, too: bool) -> Result<(), DeviceError> {
        let deadline = Deadline::after(change(region.size));
        let (region, members) = self.insert(Arc::new(region), too, deadline)?;
        let mut failed = None;
        for member in &members {
            match self.give(member, &region, deadline) {
                // It is given everything when it comes back.
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Gone => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        match failed {
            None => Ok(()),
            Some(error) => {
                let _ = self.remove(region.iova, region.size);
                Err(error)
            }
        }
    }

    /// Checks a region and writes it down, or that it is there once more; it, and who is to be given it.
    fn insert(
        &self,
        region: Arc<GuestRegion>,
        too: bool,
        deadline: Deadline,
    ) -> Result<(Arc<GuestRegion>, Vec<Arc<Member>>), DeviceError> {
        let (iova, size) = (region.iova, region.size);
        let end = iova.checked_add(size).filter(|_| size > 0);
        let end = end.ok_or_else(|| {
            DeviceError::invalid(format!("Guest memory {iova:#x}+{size:#x} is empty or wraps"))
        })?;
        let mut state = self.state.lock();
        loop {
            let known =
                state.regions.get_mut(&iova).filter(|known| too && known.region.is_same(&region));
            let Some(known) = known else { break };
            if !known.leaving {
                known.holders += 1;
                let known = Arc::clone(&known.region);
                return Ok((known, state.everybody()));
            }
            // The others have unmapped it a moment ago.
            if self.changed.wait_until(&mut state, deadline.instant()).timed_out() {
                break;
            }
        }
        let before = state.regions.range(..end).next_back();
        if before.is_some_and(|(start, known)| start + known.region.size > iova) {
            let message = format!("Guest memory {iova:#x}+{size:#x} overlaps another mapping");
            return Err(DeviceError::busy(message));
        }
        let known = Region { region: Arc::clone(&region), holders: 1, leaving: false };
        state.regions.insert(iova, known);
        Ok((region, state.everybody()))
    }

    /// Removes a region, unless it was mapped once more. Returns only once no device can reach it.
    ///
    /// # Errors
    /// [`DeviceError`] unless exactly this region is mapped.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<(), DeviceError> {
        self.remove(iova, size)
    }

    fn remove(&self, iova: u64, size: u64) -> Result<(), DeviceError> {
        let deadline = Deadline::after(change(size));
        let (region, members) = {
            let mut state = self.state.lock();
            let known = state.regions.get_mut(&iova);
            let known = known.filter(|known| known.region.size == size && !known.leaving);
            let Some(known) = known else {
                return Err(DeviceError::invalid(format!("No mapping {iova:#x}+{size:#x}")));
            };
            known.holders -= 1;
            if known.holders > 0 {
                return Ok(());
            }
            known.leaving = true;
            (Arc::clone(&known.region), state.everybody())
        };
        for member in &members {
            self.take(member, &region, deadline);
        }
        self.state.lock().regions.remove(&iova);
        self.changed.notify_all();
        Ok(())
    }

    /// Regions and bytes of guest memory.
    #[must_use]
    pub fn usage(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.regions.len(), state.regions.values().map(|one| one.region.size).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::SharedMemory;

    fn region(iova: u64, size: u64) -> GuestRegion {
        let memory = SharedMemory::create("ram", 0x10000).unwrap();
        GuestRegion { iova, size, memory: memory.into(), offset: 0, writable: true }
    }

    #[test]
    fn p2_1_the_page_size_is_the_hosts() {
        let container = Container::new(DmaMode::Direct);
        assert_eq!(container.page_size(), rustix::param::page_size() as u64);
    }

    #[test]
    fn p2_2_no_dirty_tracking() {
        let container = Container::new(DmaMode::Direct);
        assert_eq!(container.start_dirty_tracking().unwrap_err().errno(), libc::ENOTTY);
        assert_eq!(container.dirty_bitmap(0, 4096).unwrap_err().errno(), libc::ENOTTY);
    }

    #[test]
    fn p2_3_a_hot_reset_succeeds_and_changes_nothing() {
        let container = Container::new(DmaMode::Direct);
        container.map(region(0, 0x10000)).unwrap();
        container.hot_reset();
        assert_eq!(container.usage(), (1, 0x10000));
    }

    #[test]
    fn mappings_that_cannot_be_are_refused() {
        let container = Container::new(DmaMode::Companion);
        container.map(region(0x10000, 0x10000)).unwrap();
        let refused = |iova, size| container.map(region(iova, size)).unwrap_err().errno();
        assert_eq!(refused(0, 0), libc::EINVAL);
        assert_eq!(refused(u64::MAX, 2), libc::EINVAL);
        assert_eq!(refused(0x1f000, 0x1000), libc::EBUSY);
        assert_eq!(refused(0, 0x11000), libc::EBUSY);
        assert_eq!(container.unmap(0x10000, 0x8000).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(container.unmap(0, 0x10000).unwrap_err().errno(), libc::EINVAL);
        container.unmap(0x10000, 0x10000).unwrap();
    }

    #[test]
    fn what_several_map_is_there_until_the_last_has_unmapped_it() {
        let container = Container::new(DmaMode::Direct);
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x20000).unwrap();
        // As each of them has it: by a descriptor of its own.
        let part = |offset, writable| {
            let memory = SharedMemory::from_trusted(file.try_clone().unwrap().into(), 0x20000);
            let memory = Arc::new(memory.unwrap());
            GuestRegion { iova: 0x10000, size: 0x10000, memory, offset, writable }
        };
        container.map_too(part(0, true)).unwrap();
        container.map_too(part(0, true)).unwrap();
        assert_eq!(container.usage(), (1, 0x10000));
        for other in [part(0x10000, true), part(0, false), region(0x10000, 0x10000)] {
            assert_eq!(container.map_too(other).unwrap_err().errno(), libc::EBUSY);
        }
        assert_eq!(container.map(part(0, true)).unwrap_err().errno(), libc::EBUSY);
        container.unmap(0x10000, 0x10000).unwrap();
        assert_eq!(container.usage(), (1, 0x10000));
        container.unmap(0x10000, 0x10000).unwrap();
        assert_eq!(container.usage(), (0, 0));
        assert_eq!(container.unmap(0x10000, 0x10000).unwrap_err().errno(), libc::EINVAL);
        container.map_too(part(0x10000, true)).unwrap();
    }
}
