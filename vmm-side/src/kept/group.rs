//! What an instance of the VMM left that is dead: put together from what the keeper passed on, or not, and why not.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ipc::wire::connection::{Escrowed, EscrowedFunction};
use ipc::{Deadline, Handles, PciAddress, SharedMemory};

use super::StoreError;
use super::keeping::Keeping;
use super::manager::{Manager, file_id};
use super::names::Name;
use super::record::{FunctionRecord, RecordFile};
use crate::connection::{Account, Accounts, Escrow};
use crate::memory::GuestRegion;

/// A group whose device goes on, and what there is to go on with.
#[derive(Debug)]
pub(crate) struct KeptGroup {
    pub(crate) escrow: Escrow,
    pub(crate) accounts: Accounts,
    pub(crate) keeping: Keeping,
}

/// The files of guest memory that were passed on.
pub(super) type Files = BTreeMap<u32, Arc<SharedMemory>>;

/// What was passed on of one group, by names.
pub(super) type Parts = BTreeMap<Name, Vec<OwnedFd>>;

/// Takes the one descriptor of this name.
pub(super) fn take(parts: &mut Parts, name: Name) -> Result<OwnedFd, StoreError> {
    let missing = || StoreError::Missing(name.to_string());
    let mut found = parts.remove(&name).ok_or_else(missing)?;
    match (found.pop(), found.is_empty()) {
        (Some(fd), true) => Ok(fd),
        (None, _) => Err(missing()),
        // Which of them is meant nobody can know.
        (Some(_), false) => Err(StoreError::Absurd(format!("{name} was passed on twice"))),
    }
}

fn is_readable(fd: &OwnedFd) -> bool {
    ipc::poll::wait_readable(&fd.as_fd(), Deadline::now()).unwrap_or(true)
}

impl KeptGroup {
    /// Puts it together; what its record does not have stays in `parts`.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be gone on with.
    pub(super) fn of(
        manager: &Arc<Manager>,
        key: PciAddress,
        parts: &mut Parts,
        files: &Files,
    ) -> Result<Self, StoreError> {
        let (file, record) = RecordFile::read(take(parts, Name::Record(key))?)?;
        if record.functions.is_empty() {
            return Err(StoreError::Unrecorded);
        }
        let (mut handles, mut functions, mut accounts) = (Vec::new(), Vec::new(), Accounts::new());
        for number in 0..record.group {
            handles.push(take(parts, Name::Group(key, number))?);
        }
        let mut used = BTreeMap::new();
        for function in &record.functions {
            let (address, descriptors) = (function.address(), function.descriptors);
            for number in 0..descriptors {
                handles.push(take(parts, Name::Device(key, address, number))?);
            }
            if function.request {
                let request = take(parts, Name::Request(key, address))?;
                if is_readable(&request) {
                    return Err(StoreError::Requested);
                }
                handles.push(request);
            }
            let request = function.request;
            functions.push(EscrowedFunction { address, descriptors, request });
            accounts.insert(address, account(function, files, &mut used)?);
        }
        let escrowed = Escrowed { group: record.group, functions };
        let escrow = Escrow::of(&escrowed, Handles::from(handles));
        let escrow = escrow.map_err(|error| StoreError::Absurd(error.to_string()))?;
        let escrow = escrow.ok_or_else(|| StoreError::Absurd("it has no group".to_owned()))?;
        for (number, handles) in &used {
            for memory in handles {
                manager.share_left(*number, file_id(memory).map_err(StoreError::Passed)?);
            }
        }
        let keeping = Keeping::left(Arc::clone(manager), key, file, &record, used);
        Ok(Self { escrow, accounts, keeping })
    }

    /// Its functions.
    pub(super) fn functions(&self) -> impl Iterator<Item = PciAddress> {
        self.accounts.keys().copied()
    }

    /// Whether this is one of its functions.
    pub(super) fn has(&self, address: PciAddress) -> bool {
        self.accounts.contains_key(&address)
    }

    /// Every descriptor of it.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let functions = self.escrow.functions();
        let functions = functions
            .flat_map(|one| one.descriptors.iter().chain(one.request))
            .map(|fd| fd.as_fd());
        let group = self.escrow.group().iter().map(|fd| fd.as_fd());
        group.chain(functions).chain(self.keeping.descriptors())
    }

    /// The guest memory that its functions reach.
    pub(crate) fn regions(&self, address: PciAddress) -> Vec<Arc<GuestRegion>> {
        let account = self.accounts.get(&address);
        let regions = account.into_iter().flat_map(|one| one.regions.values());
        regions.map(|(region, _)| Arc::clone(region)).collect()
    }

    /// The guest memory of all of them.
    pub(crate) fn all_regions(&self) -> Vec<Arc<GuestRegion>> {
        self.functions().flat_map(|address| self.regions(address)).collect()
    }
}

/// What a function's processes were told, with the memory that is there again.
fn account(
    function: &FunctionRecord,
    files: &Files,
    used: &mut BTreeMap<u32, Vec<Arc<SharedMemory>>>,
) -> Result<Account, StoreError> {
    let mut account = Account::new(function.identity, function.bars);
    for region in &function.regions {
        let memory = files.get(&region.file);
        let memory =
            memory.ok_or_else(|| StoreError::Missing(Name::Memory(region.file).to_string()))?;
        let (iova, size, offset) = (region.base, region.size, region.offset);
        // That it does not wrap was checked with the record.
        if offset.checked_add(size).is_none_or(|end| end > memory.size()) {
            let why = format!(
                "guest memory {iova:#x}+{size:#x} is said to be at {offset:#x} of a file of {:#x} bytes",
                memory.size()
            );
            return Err(StoreError::Absurd(why));
        }
        used.entry(region.file).or_insert_with(|| vec![Arc::clone(memory)]);
        let (memory, writable) = (Arc::clone(memory), region.writable);
        let region = Arc::new(GuestRegion { iova, size, memory, offset, writable });
        account.inherited.regions.insert(iova);
        account.regions.insert(iova, (region, None));
    }
    for (entry, mapped) in &function.ranges {
        account.inherited.ranges.insert(entry.key);
        account.ranges.insert(entry.key, (*entry, mapped.map(|mapped| (0, mapped))));
    }
    Ok(account)
}
