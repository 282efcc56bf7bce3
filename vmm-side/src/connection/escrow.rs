//! What keeps the functions of a connection process going when that dies, where the backend has them go on: the
//! descriptors that the process gave ([`Escrow`]), and account of what it was told ([`Account`]).
//!
//! Nothing is done with the descriptors here but to look whether the kernel wants a function back, and to hand
//! them to a successor, which is confined as the process was that gave them: one that lies gains nothing.
//!
//! Account is written before a process is asked, and corrected when it has answered: a successor is told what the
//! dead one may have been told, never less, and whoever waits for memory to be taken away asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ipc::handles::HandleCountError;
use ipc::wire::common::{BarInfo, Identity};
use ipc::wire::connection::{DmaEntry, Escrowed, EscrowedFunction, Mapped};
use ipc::{Deadline, Handles, PciAddress, Tube, TubeError};

use crate::memory::GuestRegion;

/// Descriptors of a group and of those of its functions that are attached. Clones hold the same ones open.
#[derive(Clone, Debug)]
pub(crate) struct Escrow {
    group: Vec<Arc<OwnedFd>>,
    functions: Vec<Held>,
}

/// What there is in it of one function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldFunction<'e> {
    pub(crate) address: PciAddress,
    pub(crate) descriptors: &'e [Arc<OwnedFd>],
    /// Readable once the kernel wants the function back.
    pub(crate) request: Option<&'e Arc<OwnedFd>>,
}

/// Of one function.
#[derive(Clone, Debug)]
struct Held {
    address: PciAddress,
    descriptors: Vec<Arc<OwnedFd>>,
    /// Readable once the kernel wants the function back.
    request: Option<Arc<OwnedFd>>,
}

impl Escrow {
    /// What a process gave; nothing where nothing outlives it.
    ///
    /// # Errors
    /// [`HandleCountError`] when it gave other than it said.
    pub(crate) fn of(
        escrowed: &Escrowed,
        mut handles: Handles,
    ) -> Result<Option<Self>, HandleCountError> {
        handles.expect(escrowed.descriptors())?;
        if escrowed.group == 0 {
            return Ok(None);
        }
        let mut next = |count: u8| -> Vec<Arc<OwnedFd>> {
            handles.by_ref().take(count.into()).map(Arc::new).collect()
        };
        let group = next(escrowed.group);
        let functions = escrowed.functions.iter().map(|one| Held {
            address: one.address,
            descriptors: next(one.descriptors),
            request: next(one.request.into()).pop(),
        });
        Ok(Some(Self { functions: functions.collect(), group }))
    }

    /// The group's own descriptors.
    pub(crate) fn group(&self) -> &[Arc<OwnedFd>] {
        &self.group
    }

    /// Its functions.
    pub(crate) fn functions(&self) -> impl Iterator<Item = HeldFunction<'_>> {
        self.functions.iter().map(|one| HeldFunction {
            address: one.address,
            descriptors: &one.descriptors,
            request: one.request.as_ref(),
        })
    }

    /// Whether the kernel wants one of the functions back.
    pub(crate) fn is_requested(&self) -> bool {
        let requests = self.functions.iter().filter_map(|one| one.request.as_ref());
        let mut asked = requests.map(|one| ipc::poll::wait_readable(&one.as_fd(), Deadline::now()));
        asked.any(|asked| asked.unwrap_or(true))
    }

    /// A function was given back: nothing of it is kept.
    pub(super) fn remove(&mut self, address: PciAddress) {
        self.functions.retain(|one| one.address != address);
    }

    /// Hands it to a process that has just been started.
    ///
    /// # Errors
    /// [`TubeError`].
    pub(crate) fn send(&self, tube: &mut Tube, deadline: Deadline) -> Result<(), TubeError> {
        let count = |fds: &[_]| u8::try_from(fds.len()).unwrap_or(u8::MAX);
        let functions = self.functions.iter().map(|one| EscrowedFunction {
            address: one.address,
            descriptors: count(&one.descriptors),
            request: one.request.is_some(),
        });
        let message = Escrowed { group: count(&self.group), functions: functions.collect() };
        let of_functions =
            self.functions.iter().flat_map(|one| one.descriptors.iter().chain(&one.request));
        let handles: Vec<BorrowedFd<'_>> =
            self.group.iter().chain(of_functions).map(|fd| fd.as_fd()).collect();
        tube.send(0, &message, &handles, deadline)
    }
}

/// What a function was claimed as and what its process was told of, with the generation of the process that is
/// known to have it.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) identity: Identity,
    pub(crate) bars: [Option<BarInfo>; 6],
    pub(crate) regions: BTreeMap<u64, (Arc<GuestRegion>, Option<u64>)>,
    pub(crate) ranges: BTreeMap<u64, (DmaEntry, Option<(u64, Mapped)>)>,
    pub(crate) inherited: Inherited,
}

/// What the processes of a VMM that is dead were told, and what the one that lives has not asked for yet: regions and
/// ranges by their keys in the account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    pub(crate) regions: BTreeSet<u64>,
    pub(crate) ranges: BTreeSet<u64>,
}

impl Account {
    /// Of a function that was just claimed.
    pub(crate) fn new(identity: Identity, bars: [Option<BarInfo>; 6]) -> Self {
        let (regions, ranges) = (BTreeMap::new(), BTreeMap::new());
        Self { identity, bars, regions, ranges, inherited: Inherited::default() }
    }
}

/// Of each function that is attached.
pub(crate) type Accounts = BTreeMap<PciAddress, Account>;

#[cfg(test)]
#[path = "escrow_tests.rs"]
mod tests;
