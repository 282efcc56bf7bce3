//! Who holds which host function (P1.2, P1.3): one map, by address. No I/O.
//!
//! A function is held by its device, by companions, or by both; whoever of them lets go last ends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::PciAddress;

/// Somebody attaches a function that is owned already (P1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("duplicate owner for host PCI {0}")]
pub struct DuplicateOwner(pub PciAddress);

/// An attached function `F` with its companions `K`.
pub(super) struct Holders<F, K> {
    pub(super) function: Arc<F>,
    pub(super) device: bool,
    /// Companions, and whether each came with the device (P10.2).
    pub(super) companions: Vec<(Arc<K>, bool)>,
}

/// What became of an address.
pub(super) enum Entry<F, K, C> {
    /// Being attached; through this connection, once that is known.
    Attaching(Option<C>),
    /// Attached.
    Attached(Holders<F, K>),
}

/// All of one VMM's; `C` is a connection.
pub(super) struct Attachments<F, K, C>(BTreeMap<PciAddress, Entry<F, K, C>>);

impl<F, K, C> Default for Attachments<F, K, C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<F, K, C> Attachments<F, K, C> {
    /// Takes an address, to attach its function.
    ///
    /// # Errors
    /// [`DuplicateOwner`] when it is taken (P1.2).
    pub(super) fn begin(&mut self, address: PciAddress) -> Result<(), DuplicateOwner> {
        if self.0.contains_key(&address) {
            return Err(DuplicateOwner(address));
        }
        self.0.insert(address, Entry::Attaching(None));
        Ok(())
    }

    /// The connection of a function that is being attached is known.
    pub(super) fn through(&mut self, address: PciAddress, connection: C) {
        if let Some(Entry::Attaching(through)) = self.0.get_mut(&address) {
            *through = Some(connection);
        }
    }

    /// A function is attached, and held by its device.
    pub(super) fn publish(&mut self, address: PciAddress, function: Arc<F>) {
        let holders = Holders { function, device: true, companions: Vec::new() };
        self.0.insert(address, Entry::Attached(holders));
    }

    /// A function was not attached after all.
    pub(super) fn abandon(&mut self, address: PciAddress) {
        if matches!(self.0.get(&address), Some(Entry::Attaching(_))) {
            self.0.remove(&address);
        }
    }

    /// Everything that is or is being attached.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PciAddress, &Entry<F, K, C>)> {
        self.0.iter().map(|(address, entry)| (*address, entry))
    }

    /// An attached function and who holds it.
    pub(super) fn holders(&mut self, address: PciAddress) -> Option<&mut Holders<F, K>> {
        match self.0.get_mut(&address) {
            Some(Entry::Attached(holders)) => Some(holders),
            Some(Entry::Attaching(_)) | None => None,
        }
    }

    /// The device of `function` lets go, and with it the companions that came with it, which are
    /// given back; and whether that was the last holder (P1.3). `None` when it does not hold it.
    pub(super) fn release_device(
        &mut self,
        address: PciAddress,
        function: &F,
    ) -> Option<(Vec<Arc<K>>, bool)> {
        let holders = self.holders(address)?;
        if !holders.device || !std::ptr::eq(Arc::as_ptr(&holders.function), function) {
            return None;
        }
        holders.device = false;
        let own = holders.companions.extract_if(.., |(_, automatic)| *automatic);
        let own = own.map(|(companion, _)| companion).collect();
        Some((own, self.forget_if_last(address)))
    }

    /// A companion lets go; whether it was the last holder. `None` when it does not hold it.
    pub(super) fn release_companion(
        &mut self,
        address: PciAddress,
        companion: &Arc<K>,
    ) -> Option<bool> {
        let holders = self.holders(address)?;
        let is_it = |one: &(Arc<K>, bool)| Arc::ptr_eq(&one.0, companion);
        let at = holders.companions.iter().position(is_it)?;
        holders.companions.remove(at);
        Some(self.forget_if_last(address))
    }

    fn forget_if_last(&mut self, address: PciAddress) -> bool {
        let held = self
            .holders(address)
            .is_some_and(|holders| holders.device || !holders.companions.is_empty());
        if !held {
            self.0.remove(&address);
        }
        !held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = Attachments<&'static str, u32, ()>;

    fn address() -> PciAddress {
        "01:00.0".parse().unwrap()
    }

    #[test]
    fn p1_2_a_second_owner_is_refused_by_name() {
        let mut all = Plain::default();
        all.begin(address()).unwrap();
        let refused = all.begin(address()).unwrap_err();
        assert_eq!(refused.to_string(), "duplicate owner for host PCI 01:00.0");
        all.publish(address(), Arc::new("disk"));
        all.begin(address()).unwrap_err();
        // Who gives up takes nothing away from who has it.
        all.abandon(address());
        assert!(all.holders(address()).is_some());
    }

    #[test]
    fn p1_3_the_last_release_forgets() {
        let mut all = Plain::default();
        let disk = Arc::new("disk");
        all.begin(address()).unwrap();
        all.publish(address(), Arc::clone(&disk));
        let (automatic, own) = (Arc::new(1), Arc::new(2));
        let holders = all.holders(address()).unwrap();
        holders.companions.push((Arc::clone(&automatic), true));
        holders.companions.push((Arc::clone(&own), false));
        let (withdrawn, last) = all.release_device(address(), &disk).unwrap();
        assert_eq!((withdrawn, last), (vec![automatic], false));
        assert!(all.release_device(address(), &disk).is_none());
        assert_eq!(all.release_companion(address(), &own), Some(true));
        assert_eq!(all.release_companion(address(), &own), None);
        all.begin(address()).unwrap();
    }

    #[test]
    fn p1_3_another_function_releases_nothing() {
        let mut all = Plain::default();
        let disk = Arc::new("disk");
        all.publish(address(), Arc::clone(&disk));
        assert!(all.release_device(address(), &Arc::new("disk")).is_none());
        assert!(all.release_device(address(), &disk).is_some());
    }
}
