//! Who owns which host function (P1.2, P1.3).
//!
//! A connection is published under its function's address; others (a companion device) find it
//! there and share it. The last one to let go takes the entry with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::PciAddress;

/// Somebody publishes a function that is owned already (P1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("duplicate owner for host PCI {0}")]
pub struct DuplicateOwner(pub PciAddress);

/// Connections by address, with a count of who uses each.
#[derive(Debug)]
pub struct Registry<C>(Mutex<BTreeMap<PciAddress, (Arc<C>, usize)>>);

impl<C> Default for Registry<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> Registry<C> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PciAddress, (Arc<C>, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a connection with one reference, the publisher's.
    ///
    /// # Errors
    /// [`DuplicateOwner`] when the address is taken.
    pub fn publish(&self, address: PciAddress, connection: Arc<C>) -> Result<(), DuplicateOwner> {
        let mut entries = self.lock();
        if entries.contains_key(&address) {
            return Err(DuplicateOwner(address));
        }
        entries.insert(address, (connection, 1));
        Ok(())
    }

    /// Finds a published connection and adds a reference.
    #[must_use]
    pub fn look_up(&self, address: PciAddress) -> Option<Arc<C>> {
        let mut entries = self.lock();
        let (connection, references) = entries.get_mut(&address)?;
        *references += 1;
        Some(Arc::clone(connection))
    }

    /// Drops a reference. `true` when it was the last: the entry is forgotten and the caller
    /// disconnects. With another connection than the registered one nothing happens.
    #[must_use]
    pub fn release(&self, address: PciAddress, connection: &Arc<C>) -> bool {
        let mut entries = self.lock();
        let Some((registered, references)) = entries.get_mut(&address) else {
            return false;
        };
        if !Arc::ptr_eq(registered, connection) {
            return false;
        }
        *references -= 1;
        let last = *references == 0;
        if last {
            entries.remove(&address);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> PciAddress {
        "01:00.0".parse().unwrap()
    }

    #[test]
    fn p1_2_a_second_owner_is_refused_by_name() {
        let registry = Registry::default();
        registry.publish(address(), Arc::new(1)).unwrap();
        let refused = registry.publish(address(), Arc::new(2)).unwrap_err();
        assert_eq!(refused.to_string(), "duplicate owner for host PCI 01:00.0");
    }

    #[test]
    fn p1_3_the_last_release_forgets() {
        let registry = Registry::default();
        let connection = Arc::new(1);
        registry.publish(address(), Arc::clone(&connection)).unwrap();
        let found = registry.look_up(address()).unwrap();
        assert!(!registry.release(address(), &connection));
        assert!(registry.release(address(), &found));
        assert!(registry.look_up(address()).is_none());
        assert!(!registry.release(address(), &connection));
    }

    #[test]
    fn p1_3_another_connection_releases_nothing() {
        let registry = Registry::default();
        let connection = Arc::new(1);
        registry.publish(address(), Arc::clone(&connection)).unwrap();
        assert!(!registry.release(address(), &Arc::new(1)));
        assert!(registry.release(address(), &connection));
    }
}
