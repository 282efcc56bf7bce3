//! What a `cordon serve` before this one left that was killed, and a keeper held: functions that go on, and their
//! clients.
//!
//! Before functions are attached, everything that they reach is mapped in the container of their group, and what each
//! client mapped of it once more on its behalf. When they are attached the first is given back: what no client mapped,
//! since it was mapped or taken away by a command that was not answered, is not reached any more, and that command is
//! carried out again.

use std::collections::BTreeMap;
use std::sync::Arc;

use cordon_cli::event::{Event, Part};
use cordon_vfio_user::Options;
use cordon_vfio_user::kept::{Adopted, Baseline};
use cordon_vmm::kept::{LeftFunction, Store};
use cordon_vmm::text::printable;
use cordon_vmm::{Container, Function, GuestRegion, PassthroughDevice as _};
use ipc::PciAddress;

use super::slot::Slot;
use crate::Failure;

/// See the module.
pub(super) struct Left<'s> {
    store: Option<&'s Arc<Store>>,
    is_any: bool,
    tell: &'s dyn Fn(&Event),
    functions: BTreeMap<PciAddress, LeftFunction>,
    clients: BTreeMap<PciAddress, (Adopted, Arc<Container>)>,
    /// Of clients that do not go on.
    baselines: BTreeMap<PciAddress, Baseline>,
    /// What is mapped until everything is attached.
    held: Vec<(Arc<Container>, u64, u64)>,
}

impl<'s> Left<'s> {
    /// Of what the keeper passed on. What is of no slot is given up.
    pub(super) fn of(
        store: Option<&'s Arc<Store>>,
        slots: &[Slot],
        how: Options,
        tell: &'s dyn Fn(&Event),
    ) -> Self {
        let (functions, clients, baselines, held) = Default::default();
        let mut left = Self { store, is_any: false, tell, functions, clients, baselines, held };
        let Some(store) = store else { return left };
        // Beside the keeper's socket.
        let was_passed = store.descriptors().len() > 1;
        left.is_any =
            was_passed || !store.unusable().is_empty() || !store.unusable_clients().is_empty();
        for (address, why) in store.unusable() {
            tracing::warn!("{address}: what was kept of it is closed: {}", ipc::chain(&**why));
        }
        for (address, why) in store.unusable_clients() {
            left.lost(*address, &ipc::chain(&**why));
            let baseline = store.take_session(*address).and_then(Baseline::of);
            left.baselines.extend(baseline.map(|baseline| (*address, baseline)));
        }
        let functions = store.left().into_iter().map(|function| (function.address, function));
        left.functions = functions.collect();
        for slot in slots {
            left.hold(slot);
        }
        for address in store.clients() {
            left.adopt(address, store, slots, how);
        }
        let served = |address: &PciAddress| slots.iter().any(|slot| slot.address == *address);
        let groups: Vec<_> = left.functions.values().map(|one| one.group.clone()).collect();
        for group in groups.iter().filter(|group| !group.iter().any(served)) {
            let of_it = |address: &&PciAddress| store.discard(**address);
            if let Some(address) = group.iter().find(of_it) {
                tracing::warn!("{address} was left and is not served any more: it is given back");
            }
            group.iter().for_each(|address| drop(left.functions.remove(address)));
        }
        left
    }

    /// Whether a server before this one left anything, also what cannot be gone on with.
    pub(super) fn is_any(&self) -> bool {
        self.is_any
    }

    /// Whether this function goes on, and was not given up.
    pub(super) fn has(&self, address: PciAddress) -> bool {
        self.functions.contains_key(&address)
    }

    /// A client does not go on.
    pub(super) fn lost(&self, device: PciAddress, why: &str) {
        (self.tell)(&Event::ClientLost { device, why: printable(why) });
    }

    /// Maps what the functions of a slot's group reach, once.
    fn hold(&mut self, slot: &Slot) {
        let (Some(guest), Some(one)) = (&slot.guest, self.functions.get(&slot.address)) else {
            return;
        };
        let container = guest.container();
        let of_group = self.functions.values().filter(|other| one.group.contains(&other.address));
        for region in of_group.flat_map(|other| &other.regions) {
            let GuestRegion { iova, size, offset, writable, .. } = *region;
            let is_held = |(of, at, _): &(Arc<Container>, u64, u64)| {
                Arc::ptr_eq(of, container) && *at == iova
            };
            if self.held.iter().any(is_held) {
                continue;
            }
            let memory = Arc::clone(&region.memory);
            match container.map(GuestRegion { iova, size, memory, offset, writable }) {
                Ok(()) => self.held.push((Arc::clone(container), iova, size)),
                // It is refused by the attach then, with what is there.
                Err(error) => tracing::warn!("{}: {}", slot.address, ipc::chain(&error)),
            }
        }
    }

    /// Looks at the client of a function.
    fn adopt(&mut self, address: PciAddress, store: &Store, slots: &[Slot], how: Options) {
        let Some(client) = store.take_client(address) else { return };
        let slot = slots.iter().find(|slot| slot.address == address);
        let container = slot.and_then(|slot| slot.guest.as_ref()).map(|guest| guest.container());
        let (Some(container), Some(function)) = (container, self.functions.get(&address)) else {
            client.send_away();
            return self.lost(address, "its function is not served any more");
        };
        match Adopted::of(client, container, &function.regions, how) {
            Ok(adopted) => {
                self.clients.insert(address, (adopted, Arc::clone(container)));
            }
            Err(not) => {
                self.lost(address, &ipc::chain(&not.why));
                self.baselines.extend(not.baseline.map(|baseline| (address, baseline)));
            }
        }
    }

    /// Has functions neither reach memory nor interrupt that go on without a client, before that memory is given back.
    pub(super) fn quiet(&self, function: &Function) {
        if function.was_kept()
            && !self.clients.contains_key(&function.address())
            && let Err(error) = function.quiesce()
        {
            tracing::warn!("{}: quiescing what was left: {error}", function.address());
        }
    }

    /// What a client left in a function's config space that does not go on.
    pub(super) fn baseline(&mut self, function: &Function) -> Option<Baseline> {
        // One that was opened anew has what the host had there.
        self.baselines.remove(&function.address()).filter(|_| function.was_kept())
    }

    /// A function that was left cannot be attached as it is: it is given up, with its group if that is not in use.
    /// `false` where it was not left.
    pub(super) fn give_up(&mut self, slot: &Slot, why: &Failure) -> bool {
        let address = slot.address;
        let (Some(store), Some(one)) = (self.store, self.functions.remove(&address)) else {
            return false;
        };
        let why = ipc::chain(&**why);
        tracing::warn!("{address} does not go on as it was left, and is attached anew: {why}");
        self.abandon(address, &why);
        if !store.discard(address) {
            // Others of its group have been attached, and go on with what is held; or nothing of it is there any more.
            return true;
        }
        for other in one.group {
            self.functions.remove(&other);
            self.abandon(other, &why);
        }
        let container = slot.guest.as_ref().map(|guest| guest.container());
        let is_its = |(of, ..): &mut (Arc<Container>, u64, u64)| {
            container.is_some_and(|container| Arc::ptr_eq(of, container))
        };
        for (of, iova, size) in self.held.extract_if(.., is_its) {
            unmap(&of, iova, size);
        }
        true
    }

    /// The client of a function does not go on, if it has one.
    fn abandon(&mut self, address: PciAddress, why: &str) {
        if let Some((client, container)) = self.clients.remove(&address) {
            client.abandon(&container);
            self.lost(address, why);
        }
    }

    /// A function cannot be attached or served, and others go on.
    pub(super) fn stays_detached(&mut self, slot: &Slot, why: &Failure) {
        let (device, why) = (slot.address, ipc::chain(&**why));
        self.functions.remove(&device);
        self.abandon(device, &why);
        let why = printable(&format!("it stays detached: {why}"));
        (self.tell)(&Event::Failed { device, part: Part::Function, why });
    }

    /// Everything is attached.
    pub(super) fn release(&mut self) {
        for (container, iova, size) in std::mem::take(&mut self.held) {
            unmap(&container, iova, size);
        }
    }

    /// The client of a function, if that was attached as it was left.
    pub(super) fn client(&mut self, address: PciAddress, function: &Function) -> Option<Adopted> {
        let (client, container) = self.clients.remove(&address)?;
        if function.was_kept() {
            return Some(client);
        }
        client.abandon(&container);
        self.lost(address, "its function could not be attached as it was left");
        None
    }
}

fn unmap(container: &Container, iova: u64, size: u64) {
    if let Err(error) = container.unmap(iova, size) {
        tracing::warn!("taking back {iova:#x}: {}", ipc::chain(&error));
    }
}
