//! What is kept of one group: told to the keeper whenever it changes.
//!
//! Something new goes to the keeper before the record says so, and something that goes leaves the record first: a kill
//! between the two leaves a descriptor that no record has, which the next instance closes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use ipc::{PciAddress, SharedMemory};

use super::StoreError;
use super::manager::Manager;
use super::names::Name;
use super::record::{FunctionRecord, Record, RecordFile, RegionRecord};
use crate::connection::{Account, Accounts, Escrow, HeldFunction};

/// See the module.
#[derive(Debug)]
pub(crate) struct Keeping {
    manager: Arc<Manager>,
    key: PciAddress,
    /// None while nothing is kept.
    record: Option<RecordFile>,
    /// How many descriptors the keeper has of the group, and of each function; and whether of its request.
    group: u8,
    functions: BTreeMap<PciAddress, (u8, bool)>,
    /// Files of guest memory, each by the handles that it is known by.
    files: BTreeMap<u32, Vec<Arc<SharedMemory>>>,
    /// It could not be kept, and that was said.
    is_lost: bool,
}

impl Keeping {
    /// Of a group that is opened for this function; nothing is kept yet.
    pub(crate) fn new(manager: Arc<Manager>, key: PciAddress) -> Self {
        Self {
            manager,
            key,
            record: None,
            group: 0,
            functions: BTreeMap::new(),
            files: BTreeMap::new(),
            is_lost: false,
        }
    }

    /// Of what an instance before this one left.
    pub(super) fn left(
        manager: Arc<Manager>,
        key: PciAddress,
        file: RecordFile,
        record: &Record,
        files: BTreeMap<u32, Vec<Arc<SharedMemory>>>,
    ) -> Self {
        let functions =
            record.functions.iter().map(|one| (one.address(), (one.descriptors, one.request)));
        let functions = functions.collect();
        let (record, group) = (Some(file), record.group);
        Self { manager, key, record, group, functions, files, is_lost: false }
    }

    /// The function that the group was opened for.
    pub(super) fn key(&self) -> PciAddress {
        self.key
    }

    /// Every descriptor that it has beside those of the escrow.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let files = self.files.values().flatten().map(|memory| memory.as_fd());
        self.record.iter().map(|file| file.as_fd()).chain(files)
    }

    /// Whether there is guest memory in the file of this number.
    pub(super) fn has_file(&self, number: u32) -> bool {
        self.files.contains_key(&number)
    }

    /// The functions that are kept.
    pub(super) fn functions(&self) -> impl Iterator<Item = PciAddress> {
        self.functions.keys().copied()
    }

    /// This is how things are: what `keeps` says of the escrow, with account of it.
    pub(crate) fn update(
        &mut self,
        escrow: &Escrow,
        accounts: &Accounts,
        keeps: impl Fn(PciAddress) -> bool,
    ) {
        let held = escrow.functions().filter(|one| keeps(one.address));
        let known = held.filter_map(|one| Some((one, accounts.get(&one.address)?)));
        let now: Vec<(HeldFunction<'_>, &Account)> = known.collect();
        if now.is_empty() {
            return self.void();
        }
        match self.try_update(escrow, &now) {
            Ok(()) => {
                self.is_lost = false;
                now.iter().for_each(|(one, _)| self.manager.note(one.address, Some(Ok(()))));
            }
            Err(error) => {
                self.void();
                let error = Arc::new(error);
                for (one, _) in &now {
                    self.manager.note(one.address, Some(Err(Arc::clone(&error))));
                }
                if !std::mem::replace(&mut self.is_lost, true) {
                    let why = ipc::chain(error.as_ref());
                    tracing::warn!("{}: its group is not kept any more: {why}", self.key);
                }
            }
        }
    }

    fn try_update(
        &mut self,
        escrow: &Escrow,
        now: &[(HeldFunction<'_>, &Account)],
    ) -> Result<(), StoreError> {
        let key = self.key;
        for (number, fd) in (self.group..).zip(escrow.group().iter().skip(self.group.into())) {
            self.manager.store(Name::Group(key, number), fd.as_fd())?;
            self.group = number + 1;
        }
        for (one, _) in now {
            let address = one.address;
            if self.functions.contains_key(&address) {
                continue;
            }
            let count = u8::try_from(one.descriptors.len()).unwrap_or(u8::MAX);
            self.functions.insert(address, (count, one.request.is_some()));
            self.store_function(one)?;
        }
        let mut record = Record { group: self.group, functions: Vec::new() };
        let mut used = BTreeSet::new();
        for (one, account) in now {
            let described = self.described(one, account, &mut used)?;
            record.functions.push(described);
        }
        self.write(&record)?;
        let stays = |address: &PciAddress| now.iter().any(|(one, _)| one.address == *address);
        let gone: Vec<PciAddress> = self.functions().filter(|address| !stays(address)).collect();
        gone.into_iter().for_each(|address| self.remove_function(address));
        let manager = &self.manager;
        let handles: BTreeSet<*const SharedMemory> = now
            .iter()
            .flat_map(|(_, account)| account.regions.values())
            .map(|(region, _)| Arc::as_ptr(&region.memory))
            .collect();
        self.files.retain(|number, known| {
            // Each map may come with a handle of its own.
            known.retain(|one| handles.contains(&Arc::as_ptr(one)));
            let is_used = used.contains(number);
            if !is_used {
                manager.release(*number);
            }
            is_used
        });
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        match &mut self.record {
            Some(file) => file.write(record),
            None => {
                let mut file = RecordFile::create()?;
                file.write(record)?;
                self.manager.store(Name::Record(self.key), file.as_fd())?;
                self.record = Some(file);
                Ok(())
            }
        }
    }

    fn described(
        &mut self,
        one: &HeldFunction<'_>,
        account: &Account,
        used: &mut BTreeSet<u32>,
    ) -> Result<FunctionRecord, StoreError> {
        let mut regions = Vec::new();
        for (base, (region, _)) in &account.regions {
            let file = self.number_of(&region.memory)?;
            used.insert(file);
            let (base, size, offset) = (*base, region.size, region.offset);
            regions.push(RegionRecord { base, size, file, offset, writable: region.writable });
        }
        let ranges = account.ranges.values();
        Ok(FunctionRecord {
            descriptors: u8::try_from(one.descriptors.len()).unwrap_or(u8::MAX),
            request: one.request.is_some(),
            identity: account.identity,
            bars: account.bars,
            regions,
            ranges: ranges.map(|(entry, has)| (*entry, has.map(|(_, at)| at))).collect(),
        })
    }

    /// The number of a file, which is kept from here on.
    fn number_of(&mut self, memory: &Arc<SharedMemory>) -> Result<u32, StoreError> {
        let knows = |(_, handles): &(&u32, &Vec<Arc<SharedMemory>>)| {
            handles.iter().any(|one| Arc::ptr_eq(one, memory))
        };
        if let Some((number, _)) = self.files.iter().find(knows) {
            return Ok(*number);
        }
        let number = self.manager.share(memory)?;
        if self.files.contains_key(&number) {
            // Another handle of a file that it has: counted once.
            self.manager.release(number);
        }
        self.files.entry(number).or_default().push(Arc::clone(memory));
        Ok(number)
    }

    /// It was taken over by this process. Everything goes to the keeper again, which leaves out what it has: it may
    /// have closed it meanwhile, since nobody came for it.
    pub(crate) fn taken_over(&self, escrow: Option<&Escrow>) -> Result<(), StoreError> {
        let (key, manager) = (self.key, &self.manager);
        for (number, fd) in (0..self.group).zip(escrow.into_iter().flat_map(Escrow::group)) {
            manager.store(Name::Group(key, number), fd.as_fd())?;
        }
        for one in escrow.into_iter().flat_map(Escrow::functions) {
            self.store_function(&one)?;
        }
        for (number, handles) in &self.files {
            handles
                .first()
                .map_or(Ok(()), |one| manager.store(Name::Memory(*number), one.as_fd()))?;
        }
        // Last, as ever: what it says is there.
        if let Some(file) = &self.record {
            manager.store(Name::Record(key), file.as_fd())?;
        }
        self.functions().for_each(|address| manager.note(address, Some(Ok(()))));
        Ok(())
    }

    fn store_function(&self, one: &HeldFunction<'_>) -> Result<(), StoreError> {
        for (number, fd) in (0..).zip(one.descriptors) {
            self.manager.store(Name::Device(self.key, one.address, number), fd.as_fd())?;
        }
        match one.request {
            Some(fd) => self.manager.store(Name::Request(self.key, one.address), fd.as_fd()),
            None => Ok(()),
        }
    }

    fn remove_function(&mut self, address: PciAddress) {
        let Some((count, request)) = self.functions.remove(&address) else { return };
        for number in 0..count {
            self.manager.remove(Name::Device(self.key, address, number));
        }
        if request {
            self.manager.remove(Name::Request(self.key, address));
        }
        self.manager.note(address, None);
    }

    /// Nothing of the group is kept any more. The record says so first, at once.
    pub(crate) fn void(&mut self) {
        if let Some(mut record) = self.record.take() {
            if let Err(error) = record.write(&Record::default()) {
                tracing::warn!("{}: {}", self.key, ipc::chain(&error));
            }
            self.manager.remove(Name::Record(self.key));
        }
        for address in self.functions().collect::<Vec<_>>() {
            self.remove_function(address);
        }
        for number in 0..std::mem::take(&mut self.group) {
            self.manager.remove(Name::Group(self.key, number));
        }
        for number in std::mem::take(&mut self.files).into_keys() {
            self.manager.release(number);
        }
    }
}
