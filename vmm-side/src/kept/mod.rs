//! A VMM that is killed leaves devices that never stopped (Linux's VFIO): what keeps them going is held by a *keeper*
//! meanwhile, and the next instance of the VMM goes on with them as they are.
//!
//! The keeper is systemd (its file descriptor store, `FileDescriptorStoreMax=`) or `cordon keep`. A [`Store`] gives it,
//! whenever that changes: the descriptors of each group and its functions, the files of guest memory, and a record of
//! what there is, which is a file in memory too. What is given back is taken from the keeper first or at once:
//! a function that is detached or has a companion, one that the kernel wants back, and everything of a group whose
//! connection process may have been taken over.
//!
//! ```no_run
//! use std::sync::Arc;
//! use cordon_vmm::kept::Store;
//! use cordon_vmm::{Container, DmaMode, Host, HostConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Before anything else is opened.
//! let store = Store::from_environment()?.map(Arc::new);
//! let container = Arc::new(Container::new(DmaMode::Direct));
//! let left = store.as_ref().map(|store| store.left()).unwrap_or_default();
//! for region in left.into_iter().flat_map(|function| function.regions) {
//!     // This is the guest's memory, with all that is in it: to be mapped for the guest again.
//!     container.map(region)?;
//! }
//! let host = Host::new(HostConfig::new("/usr/libexec/device-proc", "vfio").with_store(store));
//! let function = host.attach("01:00.0".parse()?, &container, None)?;
//! if function.was_kept() {
//!     // It runs, and was not reset: the guest's driver goes on where it was.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A front end ([`Host`](crate::Host) in a program of its own, for a VMM that it is not linked into) has the connection
//! of its client kept too: see [`KeptClient`] and [`LeftClient`].
//!
//! Nothing of a guest but its memory is kept: what its processors were doing is the VMM's own to save. Interrupts are
//! set up by the VMM anew, and each message vector of a function that was kept is signalled once when it is, since one
//! may have come while nobody was there to be woken; INTx is signalled if the device asserts it.
//!
//! The keeper is trusted as whoever started the VMM is. What it passes on is checked all the same, so that one that
//! mixes things up costs a device its state and no more.

mod client;
mod error;
mod group;
mod keeping;
mod manager;
mod names;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use ipc::{Deadline, PciAddress, SharedMemory};
use parking_lot::Mutex;

use self::client::Clients;
use self::group::{Files, Parts};
use self::manager::{Manager, Passed};
use self::names::Name;
use crate::memory::GuestRegion;
use crate::sys;

pub use self::client::{KeptClient, LeftClient, LeftSession};
pub use self::error::StoreError;
pub(crate) use self::group::KeptGroup;
pub(crate) use self::keeping::Keeping;
pub use self::names::{is_ours, wanted_back};

/// A function that an instance of the VMM left which is dead, and that goes on.
#[derive(Debug)]
#[non_exhaustive]
pub struct LeftFunction {
    /// Where it is.
    pub address: PciAddress,
    /// The guest memory that it reaches: [`Host::attach`](crate::Host::attach) wants the same in its container.
    pub regions: Vec<GuestRegion>,
    /// All functions of its group that were left. Those that are not attached go on until they are given up
    /// ([`Host::discard_unattached`](crate::Host::discard_unattached)), or given back with the last one of the group.
    pub group: Vec<PciAddress>,
}

/// What a keeper has for this process: see the [module](self).
#[derive(Debug)]
pub struct Store {
    manager: Arc<Manager>,
    /// By the functions that they were opened for.
    left: Mutex<BTreeMap<PciAddress, KeptGroup>>,
    unusable: Vec<(PciAddress, Arc<StoreError>)>,
    clients: Mutex<BTreeMap<PciAddress, LeftClient>>,
    sessions: Mutex<BTreeMap<PciAddress, LeftSession>>,
    unusable_clients: Vec<(PciAddress, Arc<StoreError>)>,
}

impl Store {
    /// The keeper that started this process: systemd, or `cordon keep`. `None` where there is none (NOTIFY_SOCKET is
    /// not set), and on systems without one.
    ///
    /// What an instance before this one left is looked at here, and what cannot be gone on with is closed and taken
    /// from the keeper: see [`Store::unusable`]. To be called once, and before anything else of this process is opened
    /// or started: descriptors that were passed on are taken by their numbers, those of ours by their names
    /// (`cordon.…`). Others are left to whoever they are for.
    ///
    /// # Errors
    /// [`StoreError`] when the keeper cannot be reached, or what it passed on cannot be taken.
    pub fn from_environment() -> Result<Option<Self>, StoreError> {
        match sys::keeper_socket().map_err(StoreError::Unreachable)? {
            None => Ok(None),
            Some(socket) => {
                let passed = sys::passed_on(is_ours).map_err(StoreError::Passed)?;
                // systemd says so from version 254 on; by an older one nobody knows.
                let room = std::env::var("FDSTORE").ok().and_then(|room| room.parse().ok());
                Ok(Some(Self::of(socket, passed, room.unwrap_or(usize::MAX), &[])))
            }
        }
    }

    /// For tests of front ends: that these functions are kept, and go on, is taken for granted.
    #[doc(hidden)]
    #[must_use]
    pub fn with_functions(
        socket: UnixDatagram,
        passed: Vec<(std::os::fd::OwnedFd, String)>,
        functions: &[PciAddress],
    ) -> Self {
        Self::of(socket, passed, usize::MAX, functions)
    }

    /// Of a keeper that has room for so many descriptors, and of functions that are taken for kept.
    fn of(
        socket: UnixDatagram,
        passed: Vec<Passed>,
        room: usize,
        functions: &[PciAddress],
    ) -> Self {
        let manager = Arc::new(Manager::new(socket, room));
        functions.iter().for_each(|address| manager.note(*address, Some(Ok(()))));
        let (mut groups, mut files) = (BTreeMap::<PciAddress, Parts>::new(), Files::new());
        let mut numbers = BTreeSet::new();
        let mut of_clients = BTreeMap::<PciAddress, Parts>::new();
        for (fd, name) in passed {
            let parsed = Name::parse(&name);
            manager.has(parsed);
            match parsed {
                Some(Name::Memory(number)) => {
                    let again = !numbers.insert(number);
                    let size = SharedMemory::size_of(&fd);
                    // As the VMM itself had it: not every VMM seals its guest's memory.
                    match size.and_then(|size| SharedMemory::from_trusted(fd, size)) {
                        Ok(memory) if !again => drop(files.insert(number, Arc::new(memory))),
                        // Two of one name are none.
                        _ => drop(files.remove(&number)),
                    }
                }
                Some(name @ Name::Client(address, _)) => {
                    of_clients.entry(address).or_default().entry(name).or_default().push(fd);
                }
                Some(name) => {
                    let Some(key) = name.group() else { continue };
                    groups.entry(key).or_default().entry(name).or_default().push(fd);
                }
                None => tracing::warn!("the keeper passed on {name:?}, which is no name of ours"),
            }
        }
        let (mut left, mut unusable) = (BTreeMap::new(), Vec::new());
        for (key, mut parts) in groups {
            let names: BTreeSet<Name> = parts.keys().copied().collect();
            match KeptGroup::of(&manager, key, &mut parts, &files) {
                Ok(group) => {
                    // What its record does not have.
                    let surplus: BTreeSet<Name> = parts.into_keys().collect();
                    let others = surplus.iter().filter_map(|name| name.function());
                    let others: BTreeSet<_> = others.filter(|one| !group.has(*one)).collect();
                    let error = Arc::new(StoreError::Unrecorded);
                    unusable.extend(others.into_iter().map(|one| (one, Arc::clone(&error))));
                    surplus.into_iter().for_each(|name| manager.remove(name));
                    left.insert(key, group);
                }
                Err(error) => {
                    drop(parts);
                    tracing::warn!("what was kept of {key} is closed: {}", ipc::chain(&error));
                    let functions = names.iter().filter_map(|name| name.function());
                    let functions: BTreeSet<_> = functions.chain([key]).collect();
                    let error = Arc::new(error);
                    unusable.extend(functions.into_iter().map(|one| (one, Arc::clone(&error))));
                    names.into_iter().for_each(|name| manager.remove(name));
                }
            }
        }
        // Memory that no record has.
        let is_used =
            |number: &u32| left.values().any(|group: &KeptGroup| group.keeping.has_file(*number));
        numbers.into_iter().filter(|number| !is_used(number)).for_each(|number| {
            manager.remove(Name::Memory(number));
        });
        let goes_on = |address| {
            let of_group = left.values().any(|group: &KeptGroup| group.has(address));
            of_group || functions.contains(&address)
        };
        let Clients { whole, sessions, unusable: unusable_clients } =
            Clients::all(&manager, of_clients, goes_on);
        let (left, clients, sessions) = (Mutex::new(left), Mutex::new(whole), Mutex::new(sessions));
        Self { manager, left, unusable, clients, sessions, unusable_clients }
    }

    /// The client that a front end had for a function that was left, if it is there: the caller's from here on.
    #[must_use]
    pub fn take_client(&self, address: PciAddress) -> Option<LeftClient> {
        self.clients.lock().remove(&address)
    }

    /// What was known of the client of a function, if that client is unusable and the function is not: the caller's from
    /// here on. Until that is given up ([`KeptClient::give_up`]), no other client of the function is kept.
    #[must_use]
    pub fn take_session(&self, address: PciAddress) -> Option<LeftSession> {
        self.sessions.lock().remove(&address)
    }

    /// Functions whose clients were left and that nobody took.
    #[must_use]
    pub fn clients(&self) -> Vec<PciAddress> {
        self.clients.lock().keys().copied().collect()
    }

    /// Functions whose clients were left and cannot be gone on with, and why. They were sent away.
    #[must_use]
    pub fn unusable_clients(&self) -> &[(PciAddress, Arc<StoreError>)] {
        &self.unusable_clients
    }

    /// For a front end: what keeps its next client of a function; `None` where the function is not kept itself, or has
    /// a client that is.
    #[must_use]
    pub fn client(&self, address: PciAddress) -> Option<KeptClient> {
        let is_free = self.keeps(address).is_ok() && !self.manager.has_client(address);
        is_free.then(|| KeptClient::new(Arc::clone(&self.manager), address))
    }

    /// The number of every descriptor of the keeper's and of what was left: for a process that closes all that it does
    /// not know of.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let (left, clients, sessions) =
            (self.left.lock(), self.clients.lock(), self.sessions.lock());
        let of_groups = left.values().flat_map(KeptGroup::descriptors);
        let of_clients = clients.values().flat_map(LeftClient::descriptors);
        let known = sessions.values().map(|one| one.session.as_fd());
        let all = of_groups.chain(of_clients).chain(known).chain([self.manager.socket()]);
        all.map(|fd| fd.as_raw_fd()).collect()
    }

    /// What an instance before this one left and nobody has attached, by address. To be attached or discarded soon:
    /// nobody drives it meanwhile. What the kernel wants back is closed here and not listed.
    #[must_use]
    pub fn left(&self) -> Vec<LeftFunction> {
        let mut left = self.left.lock();
        left.retain(|key, group| {
            let is_wanted = group.escrow.is_requested();
            if is_wanted {
                tracing::info!("what was kept of {key} is closed: {}", StoreError::Requested);
                group.keeping.void();
            }
            !is_wanted
        });
        let functions = left.values().flat_map(|group| {
            group.functions().map(|address| LeftFunction {
                address,
                regions: group.regions(address).iter().map(|one| copy(one)).collect(),
                group: group.functions().collect(),
            })
        });
        let mut functions: Vec<_> = functions.collect();
        functions.sort_unstable_by_key(|function| function.address);
        functions
    }

    /// What was passed on to this process and could not be gone on with, by function, and why. It is closed, so the
    /// function can be attached as one that nobody had.
    #[must_use]
    pub fn unusable(&self) -> &[(PciAddress, Arc<StoreError>)] {
        &self.unusable
    }

    /// Gives up what was left of a function, with the rest of its group: the kernel stops and resets it. Whether there
    /// was something. One that is attached is detached instead ([`Host::detach`](crate::Host::detach)).
    pub fn discard(&self, address: PciAddress) -> bool {
        let group = self.take(address);
        group.map(|mut group| group.keeping.void()).is_some()
    }

    /// Whether everything of a function that is attached was given to the keeper, as things are now. A keeper does not
    /// say that it took something; it is given no more than it says that it has room for (`FDSTORE`, which systemd sets
    /// from version 254 on), so that this is an error where there is none.
    ///
    /// # Errors
    /// Why it would not.
    pub fn keeps(&self, address: PciAddress) -> Result<(), Arc<StoreError>> {
        let noted = self.manager.noted(address);
        noted.unwrap_or_else(|| Err(Arc::new(StoreError::NotKept(address))))
    }

    /// For a process that ends at once, out of order, and is not to be gone on with: has the keeper close everything,
    /// and gives it nothing any more. Whether it could be told all of that by `until`. Whatever this process has of it
    /// is given back with its end.
    pub fn give_up_all(&self, until: Deadline) -> bool {
        self.manager.close(until)
    }

    /// What is kept of a group from here on.
    pub(crate) fn keeping(&self, key: PciAddress) -> Keeping {
        Keeping::new(Arc::clone(&self.manager), key)
    }

    /// The group of a function that was left: the caller's from here on.
    pub(crate) fn take(&self, address: PciAddress) -> Option<KeptGroup> {
        let mut left = self.left.lock();
        let key = left.iter().find(|(_, group)| group.has(address)).map(|(key, _)| *key)?;
        left.remove(&key)
    }

    /// A group that was not attached after all.
    pub(crate) fn put_back(&self, group: KeptGroup) {
        self.left.lock().insert(group.keeping.key(), group);
    }
}

fn copy(region: &GuestRegion) -> GuestRegion {
    let GuestRegion { iova, size, offset, writable, .. } = *region;
    GuestRegion { iova, size, memory: Arc::clone(&region.memory), offset, writable }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[path = "store_tests.rs"]
mod tests;
