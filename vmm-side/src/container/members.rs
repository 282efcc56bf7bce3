//! The functions that reach a guest's memory: how they join and leave, and how each is given and taken
//! one region.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::wire::connection::DmaEntry;
use ipc::{Deadline, PciAddress};
use parking_lot::MutexGuard;

use super::{CHANGE, Container, ContainerState, DmaMode, Member, Membership, Step, change};
use crate::connection::Connection;
use crate::error::{DeviceError, ErrorKind};
use crate::memory::{GuestRegion, RingReader};

impl Container {
    /// A function joins: it is given all memory there is.
    pub(crate) fn join(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
    ) -> Result<(), DeviceError> {
        let given = self.enter(address, connection);
        if given.is_err() {
            // What it was given is taken again.
            self.leave(address, connection);
        }
        given
    }

    /// A function joins that reaches memory already, since a VMM left it so that is dead: what it has is this
    /// container's from here on, and it is given the rest. Where that cannot be, it still has what it had.
    pub(crate) fn join_as_it_is(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
    ) -> Result<(), DeviceError> {
        let given = self.enter(address, connection).and_then(|()| {
            match connection.has_inherited(address) {
                false => Ok(()),
                true => {
                    Err(DeviceError::busy("guest memory that it reaches was taken away meanwhile"))
                }
            }
        });
        if given.is_err() {
            self.forget(address, connection);
        }
        given
    }

    /// The first of these regions that is not here as it is, and what is here.
    pub(crate) fn lacking(&self, wanted: &[Arc<GuestRegion>]) -> Option<String> {
        let state = self.state.lock();
        wanted.iter().find_map(|region| {
            let (iova, size) = (region.iova, region.size);
            let here = match state.regions.get(&iova).filter(|known| !known.leaving) {
                Some(known) if known.region.is_same(region) => return None,
                Some(known) if known.region.size != size => {
                    format!("a region of {:#x} bytes is", known.region.size)
                }
                Some(_) => "other memory is".to_owned(),
                None => "nothing is".to_owned(),
            };
            Some(format!(
                "it reaches guest memory {iova:#x}+{size:#x}, and {here} there in its container"
            ))
        })
    }

    fn enter(&self, address: PciAddress, connection: &Arc<Connection>) -> Result<(), DeviceError> {
        let member = Arc::new(Member { address, connection: Arc::clone(connection) });
        let regions = {
            let mut state = self.state.lock();
            state.members.push(Membership {
                member: Arc::clone(&member),
                epoch: 0,
                present: true,
                steps: BTreeMap::new(),
                reader: None,
            });
            state.all_regions()
        };
        self.give_all(&member, &regions)
    }

    fn give_all(
        &self,
        member: &Arc<Member>,
        regions: &[Arc<GuestRegion>],
    ) -> Result<(), DeviceError> {
        let deadline = Deadline::after(change(regions.iter().map(|region| region.size).sum()));
        regions.iter().try_for_each(|region| self.give(member, region, deadline))
    }

    /// A function's connection process died, and what was mapped for it is gone.
    pub(crate) fn lose(&self, address: PciAddress, connection: &Arc<Connection>) {
        let mut state = self.state.lock();
        if let Some(one) = state.find_by(address, connection) {
            one.present = false;
            one.epoch += 1;
            one.steps.clear();
        }
        self.changed.notify_all();
    }

    /// A function that was lost is back: it is given all memory there is.
    pub(crate) fn rejoin(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
    ) -> Result<(), DeviceError> {
        let (member, regions) = {
            let mut state = self.state.lock();
            let regions = state.all_regions();
            let Some(one) = state.find_by(address, connection) else { return Ok(()) };
            one.present = true;
            one.epoch += 1;
            one.steps.clear();
            (Arc::clone(&one.member), regions)
        };
        self.give_all(&member, &regions)
    }

    /// A function's process reads rings in guest RAM from here on, or does not any more.
    pub(crate) fn share(
        &self,
        address: PciAddress,
        connection: &Arc<Connection>,
        reader: Option<Arc<dyn RingReader>>,
    ) -> Result<(), DeviceError> {
        let deadline = Deadline::after(CHANGE);
        let (before, regions) = {
            let mut state = self.state.lock();
            let regions = state.all_regions();
            let Some(one) = state.find_by(address, connection) else { return Ok(()) };
            (std::mem::replace(&mut one.reader, reader.clone()), regions)
        };
        if let Some(before) = before {
            regions.iter().for_each(|region| before.take(region.iova, deadline));
        }
        let Some(reader) = reader else { return Ok(()) };
        for region in &regions {
            reader.give(Arc::clone(region), deadline)?;
            // One that went meanwhile was taken before it was given.
            let state = self.state.lock();
            let stays = state
                .regions
                .get(&region.iova)
                .is_some_and(|known| Arc::ptr_eq(&known.region, region) && !known.leaving);
            drop(state);
            if !stays {
                reader.take(region.iova, deadline);
            }
        }
        Ok(())
    }

    /// A function leaves. What it was given is released with its opener, which its connection process
    /// closes next.
    pub(crate) fn leave(&self, address: PciAddress, connection: &Arc<Connection>) {
        let (member, regions) = {
            let mut state = self.state.lock();
            let Some(one) = state.find_by(address, connection) else { return };
            (Arc::clone(&one.member), state.all_regions())
        };
        let deadline = Deadline::after(change(regions.iter().map(|region| region.size).sum()));
        for region in &regions {
            self.take(&member, region, deadline);
        }
        self.forget(address, connection);
    }

    /// A function is detached: everything that it was given goes with its opener.
    pub(crate) fn forget(&self, address: PciAddress, connection: &Arc<Connection>) {
        self.state.lock().members.retain(|one| !one.member.is(address, connection));
        self.changed.notify_all();
    }

    /// Waits until nobody gives or takes this region of this member, or it is not a member any more.
    fn settled<'s>(
        &self,
        mut state: MutexGuard<'s, ContainerState>,
        member: &Member,
        base: u64,
        deadline: Deadline,
    ) -> (MutexGuard<'s, ContainerState>, Option<Step>) {
        loop {
            let step = state.find(member).and_then(|one| one.steps.get(&base).copied());
            match step {
                Some(Step::Giving | Step::Taking) => {
                    if self.changed.wait_until(&mut state, deadline.instant()).timed_out() {
                        return (state, step);
                    }
                }
                settled => return (state, settled),
            }
        }
    }

    /// Writes down how far a region has come, unless the member is another's by now.
    pub(super) fn step(&self, member: &Member, epoch: u64, base: u64, step: Option<Step>) -> bool {
        let mut state = self.state.lock();
        let one = state.find(member).filter(|one| one.epoch == epoch);
        let known = one.is_some();
        if let Some(one) = one {
            match step {
                Some(step) => drop(one.steps.insert(base, step)),
                None => drop(one.steps.remove(&base)),
            }
        }
        self.changed.notify_all();
        known
    }

    /// Gives one function one region, unless it has it or the region is leaving.
    pub(super) fn give(
        &self,
        member: &Arc<Member>,
        region: &Arc<GuestRegion>,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let base = region.iova;
        let (mut state, step) = self.settled(self.state.lock(), member, base, deadline);
        let stays = state
            .regions
            .get(&base)
            .is_some_and(|known| Arc::ptr_eq(&known.region, region) && !known.leaving);
        let Some(one) = state.find(member) else { return Ok(()) };
        if step.is_some() || !stays {
            return Ok(());
        }
        let (reader, present, epoch) = (one.reader.clone(), one.present, one.epoch);
        if present {
            one.steps.insert(base, Step::Giving);
        }
        drop(state);
        if let Some(reader) = reader {
            let read = reader.give(Arc::clone(region), deadline);
            if read.is_err() {
                self.step(member, epoch, base, None);
                return read;
            }
        }
        if !present {
            return Ok(());
        }
        let given = self.register(member, region, deadline);
        self.step(member, epoch, base, given.is_ok().then_some(Step::Given));
        given
    }

    fn register(
        &self,
        member: &Member,
        region: &Arc<GuestRegion>,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let Member { address, connection } = member;
        connection.add_memory(*address, region, deadline)?;
        let registered = match self.mode {
            DmaMode::Direct => register_direct(*address, connection, region, deadline),
            DmaMode::Companion => Ok(()),
        };
        if registered.is_err() {
            let removed = connection.remove_memory(*address, region.iova, deadline);
            release_or_end(*address, connection, removed);
        }
        registered
    }

    /// Takes one region from one function. What cannot be removed in order is removed with the
    /// process: nobody may reach memory that the guest has got back.
    pub(super) fn take(&self, member: &Arc<Member>, region: &GuestRegion, deadline: Deadline) {
        let base = region.iova;
        let (mut state, step) = self.settled(self.state.lock(), member, base, deadline);
        let Some(one) = state.find(member) else { return };
        let (reader, epoch) = (one.reader.clone(), one.epoch);
        if step == Some(Step::Given) {
            one.steps.insert(base, Step::Taking);
        }
        drop(state);
        if let Some(reader) = reader {
            reader.take(base, deadline);
        }
        let Member { address, connection } = &**member;
        match step {
            None => {}
            Some(Step::Given) => {
                let unregistered = match self.mode {
                    DmaMode::Direct => pieces(region)
                        .try_for_each(|piece| connection.unmap_dma(*address, piece.key, deadline)),
                    DmaMode::Companion => Ok(()),
                };
                let taken =
                    unregistered.and_then(|()| connection.remove_memory(*address, base, deadline));
                release_or_end(*address, connection, taken);
                self.step(member, epoch, base, None);
            }
            // Somebody is at it and does not come back in time.
            Some(Step::Giving | Step::Taking) => {
                connection.end_process(&format!("guest memory {base:#x} was not taken in time"));
            }
        }
    }
}

/// Ends a connection process that may still reach what was to be taken from it.
fn release_or_end(address: PciAddress, connection: &Connection, taken: Result<(), DeviceError>) {
    match taken {
        Ok(()) => {}
        // What it had is gone with it.
        Err(error) if error.kind() == ErrorKind::Gone => {}
        Err(error) => {
            tracing::error!("Function {address}: {error}: ending its connection process");
            connection.end_process(&format!("guest memory was not taken back: {error}"));
        }
    }
}

/// Most bytes of one registration: making and pinning that much memory takes a connection process well below the time
/// after which it is taken for hung.
const PIECE: u64 = 1 << 30;

/// The registrations that a region is made of, each under key = iova. They end at multiples of [`PIECE`], so that the
/// large pages of an IOMMU fit.
fn pieces(region: &GuestRegion) -> impl Iterator<Item = DmaEntry> {
    let (mut at, mut left) = (region.iova, region.size);
    std::iter::from_fn(move || {
        let size = left.min(PIECE - at % PIECE);
        let entry = DmaEntry { key: at, address: at, size };
        // The last one may end where addresses do.
        (at, left) = (at.wrapping_add(size), left - size);
        (size > 0).then_some(entry)
    })
}

/// Registers a region piece by piece and checks that the device reaches it there (P2.4).
fn register_direct(
    address: PciAddress,
    connection: &Connection,
    region: &GuestRegion,
    deadline: Deadline,
) -> Result<(), DeviceError> {
    for piece in pieces(region) {
        let registered = match connection.map_dma(address, piece, deadline) {
            Ok(bus) if bus == piece.key => continue,
            registered => registered,
        };
        let ends = piece.key + if registered.is_ok() { piece.size } else { 0 };
        let given = pieces(region).take_while(|given| given.key < ends);
        for given in given.collect::<Vec<_>>() {
            let removed = connection.unmap_dma(address, given.key, deadline);
            release_or_end(address, connection, removed);
        }
        let bus = registered?;
        return Err(DeviceError::not_supported(format!(
            "Function {address}: direct DMA needs bus address == iova, but {:#x} is at {bus:#x}: \
             the platform needs companion mode",
            piece.key
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::SharedMemory;

    fn pieces_of(iova: u64, size: u64) -> Vec<(u64, u64)> {
        let memory = SharedMemory::create("ram", 0x1000).unwrap().into();
        let region = GuestRegion { iova, size, memory, offset: 0, writable: true };
        let whole = pieces(&region).inspect(|piece| assert_eq!(piece.key, piece.address));
        whole.map(|piece| (piece.key, piece.size)).collect()
    }

    #[test]
    fn a_region_is_registered_in_pieces_that_end_at_multiples() {
        assert_eq!(pieces_of(0x10000, 0x1000), [(0x10000, 0x1000)]);
        assert_eq!(pieces_of(0, 2 * PIECE), [(0, PIECE), (PIECE, PIECE)]);
        let from = PIECE - 0x1000;
        let three = [(from, 0x1000), (PIECE, PIECE), (2 * PIECE, 0x3000)];
        assert_eq!(pieces_of(from, PIECE + 0x4000), three);
        let last = u64::MAX - 0xfff;
        assert_eq!(pieces_of(last, 0xfff), [(last, 0xfff)]);
    }
}
