//! What is known of a client: all of a session that cannot be asked of the device or the container again.

use cordon_vmm::InterruptIndex;
use serde::{Deserialize, Serialize};

use super::KeptError;
use crate::limits::{MAX_TOLD_DATA, MAX_TOLD_DESCRIPTORS};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Descriptors and bytes of data in a message that the client takes, once it has said.
    pub(crate) negotiated: Option<(u64, u32)>,
    /// Address, size, and whether there is memory behind it, in order.
    pub(crate) maps: Vec<(u64, u64, bool)>,
    pub(crate) config: Option<ConfigRecord>,
    pub(crate) events: EventsRecord,
    pub(crate) handover: HandoverRecord,
    /// Budgets that the client was told of being at, by number.
    pub(crate) told: Vec<u8>,
}

/// The model of config space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigRecord {
    /// What the device showed when it was made.
    pub(crate) found: Vec<u8>,
    /// What the guest wrote.
    pub(crate) saved: Vec<u8>,
}

/// Vectors by interrupt index and number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventsRecord {
    /// Those that have an event.
    pub(crate) held: Vec<(u8, u16)>,
    /// Those whose event is being given, replaced or taken away: whether it is kept nobody knows.
    pub(crate) changing: Vec<(u8, u16)>,
    /// Those whose event the keeper has by another name than theirs, with that.
    pub(crate) names: Vec<((u8, u16), (u8, u16))>,
    pub(crate) intx_masked: bool,
    pub(crate) intx_disabled: bool,
}

impl EventsRecord {
    /// What the keeper calls the event of a vector.
    pub(crate) fn name(&self, vector: (u8, u16)) -> (u8, u16) {
        let other = self.names.iter().find(|(one, _)| *one == vector);
        other.map_or(vector, |(_, name)| *name)
    }
}

/// What is put back when the client is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandoverRecord {
    /// Config space as the first client found it.
    pub(crate) found: Vec<u8>,
    /// Registers that were written since.
    pub(crate) written: Vec<u16>,
}

impl Record {
    /// Whether it can be.
    pub(crate) fn check(&self) -> Result<(), KeptError> {
        let absurd = |what: String| Err(KeptError::Absurd(what));
        if let Some((descriptors, data)) = self.negotiated
            && (descriptors > MAX_TOLD_DESCRIPTORS || u64::from(data) > MAX_TOLD_DATA || data == 0)
        {
            return absurd(format!("it takes {descriptors} descriptors and {data} bytes"));
        }
        let mut end = 0;
        for (iova, size, _) in &self.maps {
            let ends = iova.checked_add(*size).filter(|_| *iova >= end && *size > 0);
            let Some(ends) = ends else {
                return absurd(format!("map {iova:#x}+{size:#x} is out of order, empty or wraps"));
            };
            end = ends;
        }
        let of_events = self.events.held.iter().chain(&self.events.changing);
        for (index, vector) in of_events {
            if InterruptIndex::try_from(u32::from(*index)).is_err() || *vector >= 2048 {
                return absurd(format!("there is no vector {vector} of interrupt index {index}"));
            }
        }
        Ok(())
    }
}
