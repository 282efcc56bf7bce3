//! Requests whose outcome lasts longer than the process that carries it out, where another one adopts what it
//! leaves: guest memory, and what can be asked twice.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use ipc::wire::call::Call;
use ipc::wire::common::Failure;
use ipc::wire::connection::{
    AddMemory, Detach, DmaEntry, DmaStatistics, GetStatistics, MapDma, Mapped, RemoveMemory,
    Request, Reset, UnmapDma,
};
use ipc::{Deadline, PciAddress};
use parking_lot::MutexGuard;

use super::escrow::Account;
use super::{Connection, ConnectionState, Link, still_left};
use crate::child::CallError;
use crate::error::{DeviceError, ErrorKind};
use crate::memory::GuestRegion;

impl Connection {
    /// The state once it is known whether a process serves: another one may be adopting what one that died left.
    pub(super) fn settled(
        &self,
        deadline: Deadline,
    ) -> Result<MutexGuard<'_, ConnectionState>, DeviceError> {
        let mut state = self.shared.state.lock();
        loop {
            let lasts = state.escrow.is_some();
            match &state.link {
                Link::Up(..) if !lasts || !state.process.fate.is_condemned() => return Ok(state),
                Link::Up(..) => {}
                Link::Adopting(..) if lasts => {}
                Link::Adopting(_, death) | Link::Away(death) | Link::Gone(death) => {
                    return Err(DeviceError::gone(Arc::clone(death)));
                }
            }
            if self.shared.changed.wait_until(&mut state, deadline.instant()).timed_out() {
                let subject = &self.shared.spec.subject;
                let message = format!("No connection process of {subject} serves in time");
                return Err(DeviceError::new(ErrorKind::TimedOut, message));
            }
        }
    }

    /// Asks whoever serves, and whoever adopts what that leaves, until one has answered and lived until the
    /// outcome was written down by `done`; or until a successor was told it by the account, as `known` says.
    pub(super) fn ask_lasting<C: Call<Request>>(
        &self,
        address: PciAddress,
        call: impl Fn(u8) -> C,
        handles: &[BorrowedFd<'_>],
        deadline: Deadline,
        known: impl Fn(&ConnectionState) -> Option<C::Reply>,
        done: impl Fn(&mut ConnectionState, &C::Reply),
    ) -> Result<C::Reply, DeviceError> {
        loop {
            let (process, number, generation) = {
                let state = self.settled(deadline)?;
                if let Some(reply) = known(&state) {
                    return Ok(reply);
                }
                (Arc::clone(&state.process), state.number(address), state.generation)
            };
            let called = process.call(&call(number), handles, deadline);
            let mut state = self.shared.state.lock();
            match called {
                // One that adopts has been told as the account was when the other died.
                Ok(_) if state.is_adopted_from(generation) => {}
                Ok((reply, _)) => {
                    done(&mut state, &reply);
                    return Ok(reply);
                }
                Err(CallError::Dead(_)) if state.escrow.is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// [`Connection::ask_lasting`] for what nobody keeps account of.
    fn ask_again<C: Call<Request>>(
        &self,
        address: PciAddress,
        call: impl Fn(u8) -> C,
        deadline: Deadline,
    ) -> Result<C::Reply, DeviceError> {
        self.ask_lasting(address, call, &[], deadline, |_| None, |_, _| {})
    }

    /// Resets a function that comes back (P8).
    pub(crate) fn reset(&self, address: PciAddress) -> Result<(), DeviceError> {
        self.ask_again(address, |function| Reset { function }, self.usual())
    }

    /// Resets a function that its own process cannot reset, for the reason of `failure`: over a backend that hands
    /// functions on, the group's process may.
    pub(crate) fn reset_with_bus(
        &self,
        address: PciAddress,
        failure: Failure,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        if !self.shared.hands_on() {
            return Err(failure.into());
        }
        self.ask_again(address, |function| Reset { function }, deadline)
    }

    /// Registrations of a function, now and at most.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn statistics(&self, address: PciAddress) -> Result<DmaStatistics, DeviceError> {
        self.ask_again(address, |function| GetStatistics { function }, self.usual())
    }

    /// Has the function's opener closed.
    pub(super) fn ask_to_detach(
        &self,
        address: PciAddress,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        self.ask_lasting(
            address,
            |function| Detach { function },
            &[],
            deadline,
            |_| None,
            |state, ()| {
                state.accounts.remove(&address);
                if let Some(escrow) = &mut state.escrow {
                    escrow.remove(address);
                }
                state.keep();
            },
        )
    }

    /// Gives a function a region of guest memory.
    pub(crate) fn add_memory(
        &self,
        address: PciAddress,
        region: &Arc<GuestRegion>,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let GuestRegion { iova: base, size, offset, writable, .. } = **region;
        if self.takes_over_region(address, region) {
            return Ok(());
        }
        self.account(address, |account| {
            account.regions.insert(base, (Arc::clone(region), None));
        });
        let added = self.ask_lasting(
            address,
            |function| AddMemory { function, base, size, offset, writable },
            &[region.memory.as_fd()],
            deadline,
            |state| {
                let (_, has) = state.accounts.get(&address)?.regions.get(&base)?;
                (*has == Some(state.generation)).then_some(())
            },
            |state, ()| {
                let generation = state.generation;
                let account = state.accounts.get_mut(&address);
                if let Some((_, has)) = account.and_then(|one| one.regions.get_mut(&base)) {
                    *has = Some(generation);
                }
            },
        );
        if added.is_err() {
            self.account(address, |account| drop(account.regions.remove(&base)));
        }
        added
    }

    /// Takes a region away from a function, and what its companion registered of it; also from functions of its group
    /// that were left with it and that nobody has attached.
    pub(crate) fn remove_memory(
        &self,
        address: PciAddress,
        base: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        self.remove_memory_of(address, base, deadline)?;
        let others = self.waiting_with(|account| account.regions.contains_key(&base));
        others.into_iter().try_for_each(|other| self.remove_memory_of(other, base, deadline))
    }

    fn remove_memory_of(
        &self,
        address: PciAddress,
        base: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        let call = |function| RemoveMemory { function, base };
        loop {
            let is_done = self.ask_lasting(
                address,
                call,
                &[],
                deadline,
                |_| None,
                |state, is_done| {
                    if let Some(account) = state.accounts.get_mut(&address).filter(|_| *is_done) {
                        account.regions.remove(&base);
                        account.inherited.regions.remove(&base);
                        state.keep();
                    }
                },
            )?;
            if is_done {
                return Ok(());
            }
            if deadline.passed() {
                return Err(still_left(Call::<Request>::name(&call(u8::MAX))));
            }
        }
    }

    /// Registers a range for a function, on behalf of the VMM; its bus address.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn map_dma(
        &self,
        address: PciAddress,
        entry: DmaEntry,
        deadline: Deadline,
    ) -> Result<u64, DeviceError> {
        let key = entry.key;
        if let Some(mapped) = self.takes_over_range(address, &entry) {
            return Ok(mapped.bus_address);
        }
        self.account(address, |account| {
            account.ranges.insert(key, (entry, None));
        });
        let mapped = self.ask_lasting(
            address,
            |function| MapDma { function, entry },
            &[],
            deadline,
            |state| {
                let (_, has) = state.accounts.get(&address)?.ranges.get(&key)?;
                has.filter(|(of, _)| *of == state.generation).map(|(_, mapped)| mapped)
            },
            |state, mapped: &Mapped| {
                let generation = state.generation;
                let account = state.accounts.get_mut(&address);
                if let Some((_, has)) = account.and_then(|one| one.ranges.get_mut(&key)) {
                    *has = Some((generation, *mapped));
                }
                state.keep();
            },
        );
        if let Err(error) = &mapped {
            let mut state = self.shared.state.lock();
            if let Some(account) = state.accounts.get_mut(&address) {
                account.ranges.remove(&key);
            }
            state.keep();
            // Nobody knows whether the kernel maps it by now, and what the VMM does not have mapped nobody may
            // reach: nothing is adopted from the process that was too late.
            if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Gone) {
                state.drop_escrow();
            }
        }
        mapped.map(|mapped| mapped.bus_address)
    }

    /// Removes such a registration; also of functions of its group that were left with it and that nobody has attached:
    /// what one of them has all of them reach.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn unmap_dma(
        &self,
        address: PciAddress,
        key: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        self.unmap_dma_of(address, key, deadline)?;
        let others = self.waiting_with(|account| account.ranges.contains_key(&key));
        others.into_iter().try_for_each(|other| self.unmap_dma_of(other, key, deadline))
    }

    fn unmap_dma_of(
        &self,
        address: PciAddress,
        key: u64,
        deadline: Deadline,
    ) -> Result<(), DeviceError> {
        self.ask_lasting(
            address,
            |function| UnmapDma { function, key },
            &[],
            deadline,
            |_| None,
            |state, ()| {
                if let Some(account) = state.accounts.get_mut(&address) {
                    account.ranges.remove(&key);
                    account.inherited.ranges.remove(&key);
                }
                state.keep();
            },
        )
    }

    /// Functions that were left, that nobody has attached, and of which this is so.
    fn waiting_with(&self, is: impl Fn(&Account) -> bool) -> Vec<PciAddress> {
        let state = self.shared.state.lock();
        let waiting = state.waiting.keys().copied();
        waiting.filter(|address| state.accounts.get(address).is_some_and(&is)).collect()
    }

    /// Changes the account of a function, if one is kept.
    fn account(&self, address: PciAddress, change: impl FnOnce(&mut Account)) {
        let mut state = self.shared.state.lock();
        if state.accounts.get_mut(&address).map(change).is_some() {
            // Before it is asked for: a next VMM is told what may be, never less.
            state.keep();
        }
    }
}
