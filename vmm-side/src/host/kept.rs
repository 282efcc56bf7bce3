//! Attaching what an instance of this VMM left that is dead, and a keeper held.

use std::sync::Arc;

use ipc::{Deadline, PciAddress};

use super::attachments::Entry;
use super::{AttachError, DETACH, Host};
use crate::connection::{Connection, NotTakenOver};
use crate::container::{Container, DmaMode};
use crate::error::DeviceError;
use crate::kept::KeptGroup;

impl Host {
    /// A connection process that has taken over the group of a function that was left, with a place for that; `None`
    /// where none was.
    pub(super) fn take_over(
        &self,
        address: PciAddress,
        container: &Arc<Container>,
    ) -> Result<Option<Arc<Connection>>, AttachError> {
        let config = self.config();
        let Some(store) = &config.store else { return Ok(None) };
        let Some(mut group) = store.take(address) else { return Ok(None) };
        let refused = |error| AttachError::Step { address, step: STEP, error };
        if group.escrow.is_requested() {
            let handed = config.vfio_groups.iter().filter(|one| one.has(address));
            handed.for_each(|one| one.give_back());
            group.keeping.void();
            return Err(refused(DeviceError::no_device("the kernel wants it back: it was closed")));
        }
        if let Some(why) = does_not_fit(&group, container) {
            store.put_back(group);
            return Err(refused(DeviceError::busy(still_there(&why))));
        }
        let spec = config.connection_spec(address);
        let connection = match Connection::take_over(&spec, config.recovery, group) {
            Ok(connection) => Arc::new(connection),
            Err(not) => {
                let NotTakenOver { group, death } = *not;
                let why = death.to_string();
                let error = match group {
                    Some(group) => {
                        store.put_back(group);
                        DeviceError::io(still_there(&why))
                    }
                    None => DeviceError::io(why),
                };
                return Err(refused(error));
            }
        };
        if connection.reserve(address, container).is_err() {
            self.leave_as_it_is(&connection, address);
            connection.stop();
            let why = still_there("its connection process has no place for it");
            return Err(refused(DeviceError::io(why)));
        }
        self.attachments.lock().through(address, Arc::clone(&connection));
        self.changed.notify_all();
        Ok(Some(connection))
    }

    /// Gives up what was left of functions that are not attached while others of their groups are: those that this VMM
    /// does not have any more. They were taken over with their groups, and do what they were doing until this is
    /// called, which is when everything has been attached and before a guest runs: what one function of a group is
    /// given all of them reach. They have stopped and reach nothing when it returns, after a second at most for each
    /// group. Which they were.
    pub fn discard_unattached(&self) -> Vec<PciAddress> {
        let mut connections: Vec<Arc<Connection>> = Vec::new();
        for (_, entry) in self.attachments.lock().iter() {
            let connection = match entry {
                Entry::Attached(holders) => holders.function.connection_handle(),
                Entry::Attaching(Some(connection)) => connection,
                Entry::Attaching(None) => continue,
            };
            if !connections.iter().any(|known| Arc::ptr_eq(known, connection)) {
                connections.push(Arc::clone(connection));
            }
        }
        let given_back =
            connections.iter().map(|one| one.give_back_waiting(Deadline::after(DETACH)));
        given_back.flatten().collect()
    }

    /// A function that was taken over is not attached after all: it and its group are as they were, to be attached or
    /// discarded. `false` where functions of the group are in use, or nothing of it goes on any more.
    pub(super) fn leave_as_it_is(&self, connection: &Connection, address: PciAddress) -> bool {
        let config = self.config();
        let Some(store) = &config.store else { return false };
        let Some(group) = connection.leave(address) else { return false };
        store.put_back(group);
        true
    }
}

const STEP: &str = "taking over what was kept of it";

fn still_there(why: &str) -> String {
    format!("{why}; it goes on as it was left, and Store::discard gives it up")
}

/// Why a group cannot go on in a container.
fn does_not_fit(group: &KeptGroup, container: &Container) -> Option<String> {
    let is_registered = group.accounts.values().any(|account| !account.ranges.is_empty());
    if is_registered && container.mode() != DmaMode::Direct {
        return Some(
            "all guest memory is mapped for it, and its container is of companion mode".to_owned(),
        );
    }
    container.lacking(&group.all_regions())
}
