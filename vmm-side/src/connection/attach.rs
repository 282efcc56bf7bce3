//! Claiming a function: what comes of it, its windows, what its processes are handed, and what goes on without the
//! process.

use std::sync::Arc;

use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::connection::{Attach, Attached, Carrier, Escrow as GetEscrow, HandOver};
use ipc::{Deadline, DeviceMemory, Handles, PciAddress, SharedMemory};

use super::escrow::{Account, Escrow};
use super::{Connection, Link, Process, own};
use crate::device::BarMemory;
use crate::error::DeviceError;
use crate::window_check;

/// What a claim brought.
#[derive(Debug)]
pub struct Claimed {
    /// What was claimed.
    pub identity: Identity,
    /// Its BARs.
    pub bars: [Option<BarInfo>; 6],
    /// The parts of them that a guest may have.
    pub windows: Vec<BarMemory>,
    /// What the processes that serve it are handed: nothing where they open it themselves.
    pub(crate) handed: Vec<DeviceMemory>,
    /// It was left by a VMM that is dead, and is as it was.
    pub(crate) kept: bool,
}

impl Connection {
    /// Claims a function, one that was reserved or one that comes back, and takes its windows.
    ///
    /// # Errors
    /// [`DeviceError`]; [`ErrorKind::Busy`](crate::error::ErrorKind::Busy) while somebody else holds the claim, or the
    /// dext still cleans up after somebody who did.
    pub fn attach(&self, address: PciAddress) -> Result<Claimed, DeviceError> {
        if let Some(claimed) = self.take_waiting(address) {
            return Ok(claimed);
        }
        let deadline = self.usual();
        let (process, function) = self.process(address, deadline)?;
        let (attached, handles) = process.call(&Attach { function }, &[], deadline)?;
        if attached.identity.address != address {
            let found = attached.identity.address;
            return Err(DeviceError::io(format!("Asked for {address}, {found} was claimed")));
        }
        for warning in &attached.warnings {
            tracing::warn!("{}", crate::text::printable(warning));
        }
        let memories =
            self.memories(&process, (function, address), &attached, handles, deadline)?;
        let windows = window_check::take(&attached, memories)
            .map_err(|why| DeviceError::io(format!("Function {address}: {why}")))?;
        try_windows(address, &windows)?;
        let handed = self.handed(&process, (function, address), deadline)?;
        let escrow = self.escrow(&process, address, deadline)?;
        let mut state = self.shared.state.lock();
        let serves = matches!(state.link, Link::Up(..)) && Arc::ptr_eq(&state.process, &process);
        if self.shared.hands_on() && !serves {
            // What is adopted meanwhile has the function as it was before: not claimed.
            drop(state);
            return Err(DeviceError::gone(process.fate.wait_for_death()));
        }
        state.reserved.remove(&address);
        state.attached.insert(address);
        if escrow.is_some() && !state.companion {
            state.accounts.insert(address, Account::new(attached.identity, attached.bars));
            state.escrow = escrow;
            state.keep();
        } else {
            state.drop_escrow();
        }
        drop(state);
        let Attached { identity, bars, .. } = *attached;
        Ok(Claimed { identity, bars, windows, handed, kept: false })
    }

    /// What keeps functions going when the process dies, where the backend has that and it is replaced.
    fn escrow(
        &self,
        process: &Process,
        address: PciAddress,
        deadline: Deadline,
    ) -> Result<Option<Escrow>, DeviceError> {
        if !self.shared.hands_on() || !self.shared.recovery.is_on() {
            return Ok(None);
        }
        let (escrowed, handles) = process.call(&GetEscrow, &[], deadline)?;
        Escrow::of(&escrowed, handles)
            .map_err(|error| DeviceError::io(format!("Function {address} is not kept: {error}")))
    }

    /// What function processes are handed, where they open nothing themselves: one device.
    fn handed(
        &self,
        process: &Process,
        (function, address): (u8, PciAddress),
        deadline: Deadline,
    ) -> Result<Vec<DeviceMemory>, DeviceError> {
        if !self.shared.hands_on() {
            return Ok(Vec::new());
        }
        let ((), handles) = process.call(&HandOver { function }, &[], deadline)?;
        let device = handles.one().map_err(|error| DeviceError::io(error.to_string()))?;
        let device = DeviceMemory::of_device(device).map_err(|error| {
            DeviceError::io(format!("Function {address} is not handed on: {}", ipc::chain(&error)))
        })?;
        Ok(vec![device])
    }

    /// The memory of each window, by the way that it comes.
    fn memories(
        &self,
        process: &Process,
        (function, address): (u8, PciAddress),
        attached: &Attached,
        handles: Handles,
        deadline: Deadline,
    ) -> Result<Vec<DeviceMemory>, DeviceError> {
        let by_descriptor = attached.carrier == Carrier::Descriptors;
        let count = if by_descriptor { attached.windows.len() } else { 0 };
        handles.expect(count).map_err(|error| DeviceError::io(error.to_string()))?;
        match (attached.carrier, &self.shared.own) {
            (Carrier::Port, _) => {
                let sizes: Vec<u64> = attached.windows.iter().map(|one| one.length).collect();
                let entries = process.memories().receive(function.into(), &sizes, deadline);
                let entries = entries.map_err(|error| {
                    DeviceError::io(format!("The memory of its windows did not come: {error}"))
                })?;
                Ok(entries.into_iter().map(DeviceMemory::Entry).collect())
            }
            (Carrier::Own, Some(dext)) => own::memory(dext, address, &attached.windows),
            (Carrier::Own, None) => {
                Err(DeviceError::io("It describes windows that it was to hand on"))
            }
            (Carrier::Descriptors, _) => {
                // Its windows may be anywhere in it: `window_check` compares them with the size.
                let of_devices = self.shared.hands_on();
                let take = |fd| match of_devices {
                    true => DeviceMemory::of_device(fd),
                    false => SharedMemory::measured(fd).map(DeviceMemory::from),
                };
                let taken: Result<_, _> = handles.map(take).collect();
                taken.map_err(|error| DeviceError::io(ipc::chain(&error)))
            }
        }
    }
}

/// A device's descriptor has no size: what it has is found by mapping, before a guest's is mapped over.
pub(super) fn try_windows(address: PciAddress, windows: &[BarMemory]) -> Result<(), DeviceError> {
    for one in windows.iter().filter(|one| matches!(one.memory, DeviceMemory::Device(_))) {
        one.map().map_err(|error| {
            let why = format!("Function {address}: BAR {}: {}", one.bar, ipc::chain(&error));
            DeviceError::io(why)
        })?;
    }
    Ok(())
}
