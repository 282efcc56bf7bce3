//! Where guest memory is mapped in this process, to be looked up when an access of it fails: in a signal
//! handler, which may neither wait nor allocate.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::memory::MAX_REGIONS;

/// One mapping; a length of 0 is a free slot.
struct Slot {
    at: AtomicUsize,
    length: AtomicUsize,
    guest: AtomicU64,
}

static SLOTS: [Slot; MAX_REGIONS] = [const {
    Slot { at: AtomicUsize::new(0), length: AtomicUsize::new(0), guest: AtomicU64::new(0) }
}; MAX_REGIONS];

/// A mapping that can be looked up for as long as this lives.
#[derive(Debug)]
pub(crate) struct Place(Option<usize>);

impl Place {
    /// `length` bytes of guest memory from `guest` on are mapped `at` this address. Where several tables of
    /// memory in one process are full, it is not found later.
    pub(crate) fn new(at: usize, length: usize, guest: u64) -> Self {
        let taken = SLOTS.iter().position(|slot| {
            let (free, taken) = (0, length);
            slot.length.compare_exchange(free, taken, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        if let Some(slot) = taken.and_then(|number| SLOTS.get(number)) {
            slot.guest.store(guest, Ordering::Relaxed);
            slot.at.store(at, Ordering::Release);
        }
        Self(taken)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(slot) = self.0.and_then(|number| SLOTS.get(number)) {
            slot.at.store(0, Ordering::Relaxed);
            slot.length.store(0, Ordering::Release);
        }
    }
}

/// The guest's address of what is mapped at `address`.
pub(crate) fn guest_address(address: usize) -> Option<u64> {
    SLOTS.iter().find_map(|slot| {
        let at = slot.at.load(Ordering::Acquire);
        let into = address
            .checked_sub(at)
            .filter(|into| at != 0 && *into < slot.length.load(Ordering::Relaxed))?;
        slot.guest.load(Ordering::Relaxed).checked_add(into as u64)
    })
}
