//! What a VMM left that is dead, and a keeper held: a connection process adopts it, as one does that comes after
//! another of the same VMM. All functions of the group are claimed as they are; each waits for whoever attaches it, and
//! its guest memory, which is registered already, for the same to be given to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipc::wire::connection::{Attached, Carrier, DmaEntry, HandOver, Mapped, Ready};
use ipc::{Deadline, DeviceMemory, Handles, PciAddress};
use parking_lot::Mutex;

use super::adopt::{refused, tell};
use super::attach::try_windows;
use super::escrow::Accounts;
use super::{Claimed, Connection, ConnectionState, numbers};
use crate::child::start::Kept;
use crate::child::{CallError, Cause, ConnectionProtocol, Death, Spec};
use crate::error::DeviceError;
use crate::keeper::{Keeper, ReadyChild, StartError};
use crate::kept::KeptGroup;
use crate::memory::GuestRegion;
use crate::recovery::Recovery;
use crate::text::printable;
use crate::window_check;

/// Functions that are claimed and that nobody has attached.
pub(super) type Waiting = BTreeMap<PciAddress, Claimed>;

/// What a process has taken over.
pub(super) struct TakenOver {
    told: Accounts,
    waiting: Waiting,
}

/// What was left is as it was, and not taken over.
pub(crate) struct NotTakenOver {
    /// It; nothing where the process began to serve and was lost in the same moment.
    pub(crate) group: Option<KeptGroup>,
    /// Why.
    pub(crate) death: Arc<Death>,
}

/// Starts a process that takes a group over.
pub(super) fn start(
    keeper: &Keeper<ConnectionProtocol>,
    spec: &Spec,
    group: &KeptGroup,
    timeout: Duration,
) -> Result<(ReadyChild<ConnectionProtocol>, TakenOver), StartError> {
    // Ended before it serves, it takes nothing along, and whoever asked for it hears why.
    let mut spec = Spec { expendable: true, ..spec.clone() };
    spec.arguments.push("--adopt".into());
    spec.adopted = Some(group.escrow.clone());
    let (mut kept, ready) = keeper.start_as(&spec)?;
    match claim_all(keeper, &mut kept, (&ready, spec.address), group, timeout) {
        Ok(taken) => Ok(((kept, ready), taken)),
        Err(CallError::Dead(death)) => Err(StartError::Died(death)),
        // Ended in order it would give back what it took over.
        Err(error) => {
            let why = printable(&error.to_string());
            kept.end(Cause::Broken("did not take over".to_owned()));
            let cause = Cause::StartFailed(why);
            Err(StartError::Died(Arc::new(Death::of_connection(&spec.subject, cause))))
        }
    }
}

fn claim_all(
    keeper: &Keeper<ConnectionProtocol>,
    kept: &mut Kept<ConnectionProtocol>,
    (ready, of): (&Ready, Option<PciAddress>),
    group: &KeptGroup,
    timeout: Duration,
) -> Result<TakenOver, CallError> {
    let deadline = Deadline::after(timeout);
    let accounts = group.accounts.clone();
    let mut claims = Vec::new();
    let mut claimed = |attached, handles| claims.push((attached, handles));
    let told = tell(keeper, kept, (ready, of), accounts, deadline, &mut claimed)?;
    let numbers = numbers(ready, of);
    let mut waiting = Waiting::new();
    for (attached, handles) in claims {
        let address = attached.identity.address;
        for warning in &attached.warnings {
            tracing::warn!("{}", printable(warning));
        }
        let number = numbers.iter().find(|(_, one)| *one == address).map_or(u8::MAX, |one| one.0);
        let child = Arc::clone(&kept.child);
        let (_, mut handed) = keeper.with_in_hand(&child, || {
            kept.call_with(&HandOver { function: number }, &[], deadline)
        })?;
        let device = handed.next().filter(|_| handed.is_empty());
        let device = device.ok_or_else(|| refused("it does not hand a function on"))?;
        let claimed = described(&attached, handles, device);
        let claimed = claimed.map_err(|error| refused(&error.to_string()))?;
        waiting.insert(address, claimed);
    }
    Ok(TakenOver { told, waiting })
}

/// A function that was claimed as it was.
fn described(
    attached: &Attached,
    handles: Handles,
    device: std::os::fd::OwnedFd,
) -> Result<Claimed, DeviceError> {
    let Attached { identity, bars, .. } = *attached;
    let address = identity.address;
    let failed = |why: String| DeviceError::io(format!("Function {address}: {why}"));
    if attached.carrier != Carrier::Descriptors {
        return Err(failed("its windows come without descriptors".to_owned()));
    }
    handles.expect(attached.windows.len()).map_err(|error| failed(error.to_string()))?;
    let of_device = |fd| DeviceMemory::of_device(fd).map_err(|error| failed(ipc::chain(&error)));
    let memories = handles.map(of_device).collect::<Result<_, _>>()?;
    let windows = window_check::take(attached, memories).map_err(|why| failed(why.to_string()))?;
    try_windows(address, &windows)?;
    Ok(Claimed { identity, bars, windows, handed: vec![of_device(device)?], kept: true })
}

impl ConnectionState {
    /// Its process has taken this over.
    pub(super) fn take_over(&mut self, taken: TakenOver, group: KeptGroup) {
        let KeptGroup { escrow, accounts, keeping } = group;
        (self.escrow, self.accounts, self.waiting) = (Some(escrow), accounts, taken.waiting);
        self.was_told(&taken.told, self.generation);
        if let Err(error) = keeping.taken_over(self.escrow.as_ref()) {
            tracing::warn!("{}", ipc::chain(&error));
        }
        self.keeping = Some(keeping);
        self.keep();
    }
}

impl Connection {
    /// Starts a connection process that takes over what a VMM left that is dead. Nothing is opened, claimed anew or
    /// reset.
    ///
    /// # Errors
    /// [`NotTakenOver`].
    pub(crate) fn take_over(
        spec: &Spec,
        recovery: Recovery,
        group: KeptGroup,
    ) -> Result<Self, Box<NotTakenOver>> {
        let left = Arc::new(Mutex::new(Some(group)));
        let started = Self::start_with(spec, recovery, None, &left);
        let rest = left.lock().take();
        started.map_err(|death| Box::new(NotTakenOver { group: rest, death }))
    }

    /// What was left of a function that is attached now, if it was.
    pub(super) fn take_waiting(&self, address: PciAddress) -> Option<Claimed> {
        let mut state = self.shared.state.lock();
        let claimed = state.waiting.remove(&address)?;
        state.reserved.remove(&address);
        state.attached.insert(address);
        state.keep();
        Some(claimed)
    }

    /// Whether this region is one that the function has from before; from here on it is whoever's asks.
    pub(super) fn takes_over_region(&self, address: PciAddress, region: &Arc<GuestRegion>) -> bool {
        let mut state = self.shared.state.lock();
        let Some(account) = state.accounts.get_mut(&address) else { return false };
        let base = region.iova;
        let Some((left, _)) = account.regions.get_mut(&base) else { return false };
        if !account.inherited.regions.contains(&base) || !left.is_same(region) {
            return false;
        }
        account.inherited.regions.remove(&base);
        *left = Arc::clone(region);
        state.keep();
        true
    }

    /// Where the device reaches a range that was registered before; from here on it is whoever's asks.
    pub(super) fn takes_over_range(&self, address: PciAddress, entry: &DmaEntry) -> Option<Mapped> {
        let mut state = self.shared.state.lock();
        let account = state.accounts.get_mut(&address)?;
        let (left, has) = account.ranges.get(&entry.key)?;
        let (_, mapped) = has.filter(|_| left == entry)?;
        account.inherited.ranges.remove(&entry.key).then_some(mapped)
    }

    /// Whether there is something from before that nobody has asked for.
    pub(crate) fn has_inherited(&self, address: PciAddress) -> bool {
        let state = self.shared.state.lock();
        let account = state.accounts.get(&address);
        account.is_some_and(|one| {
            !one.inherited.regions.is_empty() || !one.inherited.ranges.is_empty()
        })
    }

    /// Gives back the functions that were taken over with another one of their group and that nobody has attached, as
    /// [`Connection::detach`] does: none of them reaches memory or interrupts anybody when this returns. Which they were.
    pub(crate) fn give_back_waiting(&self, deadline: Deadline) -> Vec<PciAddress> {
        let waiting = {
            let mut state = self.shared.state.lock();
            let waiting = std::mem::take(&mut state.waiting);
            // Nobody attaches one meanwhile.
            state.free.retain(|address| !waiting.contains_key(address));
            waiting
        };
        let addresses: Vec<_> = waiting.into_keys().collect();
        for address in &addresses {
            if let Err(error) = self.detach(*address, deadline) {
                tracing::warn!("Function {address}, which was left: giving it back: {error}");
            }
        }
        addresses
    }

    /// Lets go of what was taken over, if nobody but this function was attached: it goes on as it is, and is there
    /// to be taken over again. `None` where others use it, or there is nothing any more.
    pub(crate) fn leave(&self, address: PciAddress) -> Option<KeptGroup> {
        let (group, process) = {
            let mut state = self.shared.state.lock();
            if state.attached.iter().chain(&state.reserved).any(|one| *one != address) {
                return None;
            }
            let escrow = state.escrow.take()?;
            let keeping = state.keeping.take()?;
            state.attached.remove(&address);
            state.closed = true;
            let mut accounts = std::mem::take(&mut state.accounts);
            state.waiting.clear();
            for account in accounts.values_mut() {
                account.inherited.regions.extend(account.regions.keys());
                account.inherited.ranges.extend(account.ranges.keys());
            }
            (KeptGroup { escrow, accounts, keeping }, Arc::clone(&state.process))
        };
        // Not in order: it would give everything back.
        process.fate.condemn(Cause::Broken("what it took over was not attached".to_owned()));
        process.fate.wait_for_death();
        Some(group)
    }
}
