//! Whoever started this and keeps descriptors for the next one: systemd, or `cordon keep`.

use std::sync::Arc;

use cordon_vmm::kept::Store;

use super::ServeOptions;
use crate::Failure;

/// What is kept, or why nothing is.
pub(super) struct Keeper {
    pub(super) store: Option<Arc<Store>>,
    /// An option that does not go together with it.
    by_number: Option<&'static str>,
}

/// Whether there is one: `cordon keep` and systemd from version 254 on say how many they keep. One that keeps none is
/// not asked to, since each command of a client is more work for that.
fn keeps() -> bool {
    let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
    most.is_some_and(|most: u32| most > 0)
}

impl Keeper {
    /// The one that there is. A next server would have what is kept at the numbers by which this one was given something,
    /// if it was.
    pub(super) fn find(options: &ServeOptions) -> Result<Self, Failure> {
        let keeps = keeps();
        let by_number = options.by_number().filter(|_| keeps);
        let may_keep = keeps && by_number.is_none();
        let store = if may_keep { Store::from_environment()?.map(Arc::new) } else { None };
        Ok(Self { store, by_number })
    }

    /// Of functions of this dext: nothing goes on but what is of VFIO.
    pub(super) fn of_dext(self, dext: &std::ffi::OsStr) -> Self {
        let goes_on = dext == "vfio";
        let Self { store, by_number } = self;
        Self { store: store.filter(|_| goes_on), by_number: by_number.filter(|_| goes_on) }
    }

    /// Says why nothing is kept, once there is a log.
    pub(super) fn warn(&self) {
        if let Some(option) = self.by_number {
            tracing::warn!(
                "nothing is kept for a next server, since a keeper passes descriptors on from number 3 on, where {option} \
                 has others"
            );
        }
    }
}
