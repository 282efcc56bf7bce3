//! The last requests that one child was sent, for whoever asks why it died: kinds, places and sizes, and
//! nothing that a guest wrote or read. Kept for children that are observed; whoever sends a request writes two
//! words and takes no lock.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ipc::wire::function::{Access, Space};

use super::lane;
use crate::faults::{CONNECTION_REQUESTS, FUNCTION_REQUESTS};
use crate::limits::MAX_TRAIL;
use crate::sys;

/// Before the numbers of requests of connection processes.
const CONNECTION: usize = 64;
/// Bits of an offset that are kept: a BAR of a TiB.
const OFFSET_BITS: u32 = 40;

/// A request that a process was sent, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requested {
    /// Its name, as in fault plans: "BarWrite".
    pub name: &'static str,
    /// Of an access to a BAR, which.
    pub bar: Option<u8>,
    /// Of an access, the first byte of config space or of the BAR; at most 2^40 - 1.
    pub offset: Option<u64>,
    /// Of an access, how many bytes.
    pub bytes: Option<u8>,
    /// How long before the death was told it was sent, to within some milliseconds.
    pub ago: Duration,
}

#[derive(Default)]
struct Slot {
    /// Microseconds of the coarse clock.
    when: AtomicU64,
    /// From the low end: 8 bits of number, 8 of BAR, 8 of width, 40 of offset. 0: nothing.
    what: AtomicU64,
}

pub(super) struct Trail {
    next: AtomicUsize,
    slots: [Slot; MAX_TRAIL],
}

fn now() -> u64 {
    u64::try_from(sys::coarse_now().as_micros()).unwrap_or(u64::MAX)
}

/// What only one kind of process is asked has one number; what both are, that of its kind.
fn number(name: &str) -> u64 {
    let at = |all: &[&str]| all.iter().position(|one| *one == name);
    let number = at(&FUNCTION_REQUESTS)
        .map(|at| at + 1)
        .or_else(|| at(&CONNECTION_REQUESTS).map(|at| CONNECTION + at + 1));
    number.map_or(u64::from(u8::MAX), |number| number as u64)
}

fn name(number: usize) -> &'static str {
    let of =
        |all: &'static [&str], before: usize| all.get(number.checked_sub(before + 1)?).copied();
    of(&FUNCTION_REQUESTS, 0).or(of(&CONNECTION_REQUESTS, CONNECTION)).unwrap_or("another request")
}

impl Trail {
    pub(super) fn new() -> Self {
        Self { next: AtomicUsize::new(0), slots: std::array::from_fn(|_| Slot::default()) }
    }

    fn note(&self, what: u64) {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % MAX_TRAIL];
        slot.when.store(now(), Ordering::Relaxed);
        slot.what.store(what, Ordering::Relaxed);
    }

    /// An access is sent.
    pub(super) fn access(&self, access: &Access) {
        let bar = if let Space::Bar(bar) = access.space { bar } else { 0 };
        let offset = access.offset.min((1 << OFFSET_BITS) - 1);
        let (number, width) = (u64::from(lane::number(access)), u64::from(access.width));
        self.note(number | u64::from(bar) << 8 | width << 16 | offset << 24);
    }

    /// Another request is sent. Accesses, which have more to tell, are noted as such.
    pub(super) fn request(&self, name: &str) {
        let number = number(name);
        if number > 4 {
            self.note(number);
        }
    }

    /// All that is kept, oldest first.
    pub(super) fn requests(&self) -> Vec<Requested> {
        let (next, now) = (self.next.load(Ordering::Relaxed), now());
        let kept = next.saturating_sub(MAX_TRAIL)..next;
        let read = kept.filter_map(|at| {
            let slot = &self.slots[at % MAX_TRAIL];
            let (when, what) =
                (slot.when.load(Ordering::Relaxed), slot.what.load(Ordering::Relaxed));
            let [number, bar, width, ..] = what.to_le_bytes();
            let is_access = (1..=4).contains(&number);
            (number > 0).then(|| Requested {
                name: name(number.into()),
                bar: (is_access && number > 2).then_some(bar),
                offset: is_access.then_some(what >> 24),
                bytes: is_access.then_some(width),
                ago: Duration::from_micros(now.saturating_sub(when)),
            })
        });
        read.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_requests_are_kept_without_their_values() {
        let trail = Trail::new();
        assert!(trail.requests().is_empty());
        trail.request("Reset");
        trail.request("MapDma");
        // Noted by its access.
        trail.request("BarWrite");
        trail.access(&Access::read(Space::Config, 0x10, 4));
        trail.access(&Access::write(Space::Bar(4), 0x12_3456_7890, 8, 0xdead_beef));
        let all = trail.requests();
        let told: Vec<_> =
            all.iter().map(|one| (one.name, one.bar, one.offset, one.bytes)).collect();
        assert_eq!(
            told,
            [
                ("Reset", None, None, None),
                ("MapDma", None, None, None),
                ("ConfigRead", None, Some(0x10), Some(4)),
                ("BarWrite", Some(4), Some(0x12_3456_7890), Some(8)),
            ]
        );
        assert!(all.iter().all(|one| one.ago < Duration::from_secs(60)));
        assert!(!format!("{all:?}").contains(&0xdead_beef_u32.to_string()));
        for at in 0..1000 {
            trail.access(&Access::write(Space::Bar(0), at, 1, 7));
        }
        let offsets: Vec<_> = trail.requests().iter().filter_map(|one| one.offset).collect();
        assert_eq!(offsets, (1000 - MAX_TRAIL as u64..1000).collect::<Vec<_>>());
    }

    #[test]
    fn every_request_that_has_a_name_is_known_by_it() {
        for one in FUNCTION_REQUESTS.into_iter().chain(CONNECTION_REQUESTS) {
            assert_eq!(name(usize::try_from(number(one)).unwrap()), one);
        }
        assert_eq!(name(usize::try_from(number("Other")).unwrap()), "another request");
    }
}
