//! The container: guest memory and DMA of the functions of one guest (P2).
//!
//! *direct* mode registers every region of guest memory with the dext under key = iova, and works
//! only where the platform answers bus address == iova (the simulated dext in identity mode).
//! *companion* mode, as on real hardware, registers nothing by itself: the guest maps on demand.
//! In both modes the connection processes are given the memory table, against which every
//! registration is checked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::PciAddress;
use ipc::wire::connection::DmaEntry;

use crate::connection::Connection;
use crate::device::DeviceError;
pub use crate::memory::GuestRegion;
use crate::memory::RingReader;

/// Who maps guest memory for the device (P2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaMode {
    /// This side, all of it.
    Direct,
    /// The guest, on demand, through the companion device.
    Companion,
}

struct Member {
    address: PciAddress,
    connection: Arc<Connection>,
    /// Its connection process is there and has the memory; one that died took it along.
    present: bool,
    /// Its function process, where a companion reads rings in guest RAM.
    reader: Option<Arc<dyn RingReader>>,
}

impl Member {
    fn new(address: PciAddress, connection: &Arc<Connection>) -> Self {
        Self { address, connection: Arc::clone(connection), present: true, reader: None }
    }

    fn is(&self, address: PciAddress, connection: &Arc<Connection>) -> bool {
        self.address == address && Arc::ptr_eq(&self.connection, connection)
    }
}

impl State {
    fn find(&mut self, address: PciAddress, connection: &Arc<Connection>) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.is(address, connection))
    }
}

#[derive(Default)]
struct State {
    regions: BTreeMap<u64, Arc<GuestRegion>>,
    members: Vec<Member>,
}

/// Guest memory and the functions that reach it.
pub struct Container {
    mode: DmaMode,
    state: Mutex<State>,
}

impl Container {
    /// An empty container.
    #[must_use]
    pub fn new(mode: DmaMode) -> Self {
        Self { mode, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.state().members.is_empty()
    }

    /// Dirty page tracking (P2.2): none.
    ///
    /// # Errors
    /// Always [`DeviceError::NotSupported`].
    pub fn start_dirty_tracking(&self) -> Result<(), DeviceError> {
        Err(DeviceError::NotSupported("Dirty page tracking is not supported".to_owned()))
    }

    /// The dirty bitmap (P2.2): none.
    ///
    /// # Errors
    /// Always [`DeviceError::NotSupported`].
    pub fn dirty_bitmap(&self, _iova: u64, _size: u64) -> Result<Vec<u64>, DeviceError> {
        Err(DeviceError::NotSupported("Dirty page tracking is not supported".to_owned()))
    }

    /// A reset of the whole bus: succeeds without doing anything (P2.3).
    pub fn hot_reset(&self) {}

    /// Adds a region of guest memory for every function, attached now or later.
    ///
    /// # Errors
    /// [`DeviceError`]; the region is then known to no function.
    pub fn map(&self, region: GuestRegion) -> Result<(), DeviceError> {
        let region = Arc::new(region);
        let mut state = self.state();
        let end = region.iova.checked_add(region.size).filter(|_| region.size > 0);
        let end = end.ok_or_else(|| {
            let (iova, size) = (region.iova, region.size);
            DeviceError::InvalidArgument(format!(
                "Guest memory {iova:#x}+{size:#x} is empty or wraps"
            ))
        })?;
        let before = state.regions.range(..end).next_back();
        if before.is_some_and(|(start, known)| start + known.size > region.iova) {
            let (iova, size) = (region.iova, region.size);
            return Err(DeviceError::Busy(format!(
                "Guest memory {iova:#x}+{size:#x} overlaps another mapping"
            )));
        }
        for (done, member) in state.members.iter().enumerate() {
            match self.give(member, &region) {
                // It is given everything when it comes back.
                Ok(()) | Err(DeviceError::Gone(_)) => {}
                Err(error) => {
                    for undo in &state.members[..done] {
                        self.take(undo, &region);
                    }
                    return Err(error);
                }
            }
        }
        state.regions.insert(region.iova, region);
        Ok(())
    }

    /// Removes a region. Returns only once no device can reach it.
    ///
    /// # Errors
    /// [`DeviceError::InvalidArgument`] unless exactly this region is mapped.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<(), DeviceError> {
        let mut state = self.state();
        if state.regions.get(&iova).is_none_or(|region| region.size != size) {
            let message = format!("No mapping {iova:#x}+{size:#x}");
            return Err(DeviceError::InvalidArgument(message));
        }
        let Some(region) = state.regions.remove(&iova) else {
            return Ok(());
        };
        for member in &state.members {
            self.take(member, &region);
        }
        Ok(())
    }

    /// Regions and bytes of guest memory.
    #[must_use]
    pub fn usage(&self) -> (usize, u64) {
        let state = self.state();
        (state.regions.len(), state.regions.values().map(|region| region.size).sum())
    }

    /// A function joins: it is given all memory there is.
    pub(crate) fn join(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
    ) -> Result<(), DeviceError> {
        let mut state = self.state();
        let member = Member::new(address, connection);
        self.give_all(&state, &member)?;
        state.members.push(member);
        Ok(())
    }

    fn give_all(&self, state: &State, member: &Member) -> Result<(), DeviceError> {
        for (done, region) in state.regions.values().enumerate() {
            if let Err(error) = self.give(member, region) {
                for undo in state.regions.values().take(done) {
                    self.take(member, undo);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A function's connection process died, and what was mapped for it is gone.
    pub(crate) fn lose(&self, address: PciAddress, connection: &Arc<Connection>) {
        if let Some(member) = self.state().find(address, connection) {
            member.present = false;
        }
    }

    /// A function that was lost is back: it is given all memory there is.
    pub(crate) fn rejoin(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
    ) -> Result<(), DeviceError> {
        let mut state = self.state();
        let member = Member::new(address, connection);
        self.give_all(&state, &member)?;
        if let Some(known) = state.find(address, connection) {
            known.present = true;
        }
        Ok(())
    }

    /// A function's process reads rings in guest RAM from here on, or does not any more.
    pub(crate) fn share(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
        reader: Option<Arc<dyn RingReader>>,
    ) -> Result<(), DeviceError> {
        let mut state = self.state();
        let State { regions, members } = &mut *state;
        let member = members.iter_mut().find(|member| member.is(address, connection));
        let Some(member) = member else { return Ok(()) };
        if let Some(before) = std::mem::replace(&mut member.reader, reader) {
            regions.keys().for_each(|base| before.take(*base));
        }
        let Some(reader) = &member.reader else { return Ok(()) };
        regions.values().try_for_each(|region| reader.give(Arc::clone(region)))
    }

    /// A function leaves: everything that was mapped for it is removed.
    pub(crate) fn leave(&self, address: PciAddress, connection: &Arc<Connection>) {
        let mut state = self.state();
        let is_it = |member: &Member| member.is(address, connection);
        let Some(at) = state.members.iter().position(is_it) else {
            return;
        };
        let member = state.members.remove(at);
        for region in state.regions.values() {
            self.take(&member, region);
        }
    }

    /// Gives one function one region.
    fn give(&self, member: &Member, region: &Arc<GuestRegion>) -> Result<(), DeviceError> {
        let Member { address, connection, present, reader } = member;
        if let Some(reader) = reader {
            reader.give(Arc::clone(region))?;
        }
        if !present {
            return Ok(());
        }
        connection.add_memory(*address, region)?;
        let registered = match self.mode {
            DmaMode::Direct => register(*address, connection, region),
            DmaMode::Companion => Ok(()),
        };
        if registered.is_err() {
            let _ = connection.remove_memory(*address, region.iova);
        }
        registered
    }

    /// Takes one region from one function. What cannot be removed in order is removed with the
    /// process: nobody may reach memory that the guest has got back.
    fn take(&self, member: &Member, region: &GuestRegion) {
        let Member { address, connection, present, reader } = member;
        if let Some(reader) = reader {
            reader.take(region.iova);
        }
        if !present || connection.death().is_some() {
            return;
        }
        let unregistered = match self.mode {
            DmaMode::Direct => connection.unmap_dma(*address, region.iova),
            DmaMode::Companion => Ok(()),
        };
        let taken = unregistered.and_then(|()| connection.remove_memory(*address, region.iova));
        match taken {
            // What it had is gone with it.
            Ok(()) | Err(DeviceError::Gone(_)) => {}
            Err(error) => {
                tracing::error!("Function {address}: {error}: ending its connection process");
                connection.end_process();
            }
        }
    }
}

/// Registers a region under key = iova and checks that the device reaches it there (P2.4).
fn register(
    address: PciAddress,
    connection: &Connection,
    region: &GuestRegion,
) -> Result<(), DeviceError> {
    let entry = DmaEntry { key: region.iova, address: region.iova, size: region.size };
    let bus = connection.map_dma(address, entry)?;
    if bus == region.iova {
        return Ok(());
    }
    let _ = connection.unmap_dma(address, region.iova);
    Err(DeviceError::NotSupported(format!(
        "Function {address}: direct DMA needs bus address == iova, but {:#x} is at {bus:#x}: \
         the platform needs companion mode",
        region.iova
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::SharedMemory;

    fn region(iova: u64, size: u64) -> GuestRegion {
        let memory = SharedMemory::create("ram", 0x10000).unwrap();
        GuestRegion { iova, size, memory, offset: 0, writable: true }
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
}
