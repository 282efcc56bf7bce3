//! A caller, and a server that lies.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use cordon_ipc::event::Signaller;
use cordon_ipc::lane::layout::{ANSWERED, NUMBER, OFFSET, VALUE, WAITING, WHAT};
use cordon_ipc::lane::{Caller, LaneError, LaneHandles, SLOTS, Wait};
use cordon_ipc::wire::common::Failure;
use cordon_ipc::wire::function::{Access, Space};
use cordon_ipc::{Deadline, Event};

use super::words::{Page, Store, at};

/// Longer than any call may take: its deadline, and what the machine does meanwhile.
const LONG: Duration = Duration::from_secs(5);

/// One call, and what the server does.
#[derive(Arbitrary, Debug)]
pub struct Call {
    /// The request.
    bar: Option<u8>,
    offset: u64,
    width: u8,
    write: bool,
    /// Once the request can be seen.
    published: Vec<Store>,
    /// One after the other, each time that the caller looks whether the server is dead.
    looks: Vec<Store>,
    /// It dies after that.
    dies: bool,
    /// The caller is woken, whatever for, and given a little time.
    wakes: bool,
    /// The caller asks whether the server is overdue.
    asks: bool,
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    /// Its caller gave up on this request.
    Abandoned(u64),
    /// The server died over its request.
    Lost,
}

struct Model {
    page: Page,
    caller: Caller,
    wakes: Vec<Signaller>,
    /// Of the last request in each slot.
    numbers: [Cell<u64>; SLOTS],
    uses: [Use; SLOTS],
    died: Event,
}

pub fn run(calls: &[Call]) {
    let (caller, handles) = Caller::new().unwrap();
    let page = Page::of(&handles);
    let wakes = wakes(&handles);
    let (numbers, uses) = (Default::default(), [Use::Free; SLOTS]);
    let mut model = Model { page, caller, wakes, numbers, uses, died: Event::new().unwrap() };
    for (count, call) in (0..).zip(calls) {
        model.call(call, 0x5eed_0000_0000_0000 | count);
    }
    model.page.assert_rest_is_untouched();
}

/// What wakes the caller of each slot.
fn wakes(handles: &LaneHandles) -> Vec<Signaller> {
    let wakes = handles.borrowed().into_iter().skip(2);
    wakes.map(|fd| Signaller::from_trusted(fd.try_clone_to_owned().unwrap())).collect()
}

impl Model {
    /// `mark` is the value of the request, by which its slot is found.
    fn call(&mut self, call: &Call, mark: u64) {
        // That is when a caller looks for slots whose answers came.
        if !self.uses.contains(&Use::Free) {
            self.reclaim();
        }
        let Self { page, caller, wakes, numbers, uses, died } = self;
        let space = call.bar.map_or(Space::Config, Space::Bar);
        let (offset, width, write) = (call.offset, call.width, call.write);
        let access = Access { space, offset, width, write, value: mark };
        let marked = |slot: &usize| page.get(at(*slot, VALUE)) == mark;
        (0..SLOTS).filter(marked).for_each(|slot| page.set(at(slot, VALUE), 0));

        let slot = Cell::new(None);
        let published = || {
            let found = (0..SLOTS).find(marked).expect("a request is published in a slot");
            let number = numbers[found].get() + 1;
            numbers[found].set(number);
            slot.set(Some(found));
            assert_eq!(uses[found], Use::Free, "slot {found}");
            assert_eq!(page.get(at(found, NUMBER)), number);
            assert_eq!(page.access(found), Some(access));
            let own = [NUMBER, WHAT, OFFSET, VALUE].map(|word| at(found, word));
            page.assert_changed_only(|index| own.contains(&index));
            call.published.iter().for_each(|store| page.store(*store, found, number));
            if call.wakes {
                wakes[found].signal();
            }
        };
        let looks = RefCell::new(call.looks.iter());
        let is_dead = || match (looks.borrow_mut().next(), slot.get()) {
            (Some(store), Some(slot)) => {
                page.store(*store, slot, numbers[slot].get());
                false
            }
            _ => call.dies,
        };
        let slept = Cell::new(false);
        let wait = || {
            slept.set(true);
            let time = if call.wakes { Duration::from_micros(200) } else { Duration::ZERO };
            Wait { died: died.as_fd(), until: Deadline::after(time), overdue: Instant::now() }
        };
        let began = Instant::now();
        let outcome = caller.call(&access, published, is_dead, wait);
        assert!(began.elapsed() < LONG);
        let Some(slot) = slot.get() else {
            assert!(matches!(outcome, Err(LaneError::Full)), "{outcome:?}");
            page.assert_changed_only(|_| false);
            assert!(!uses.contains(&Use::Free), "{uses:?}");
            return self.ask(call.asks);
        };
        page.assert_changed_only(|index| slept.get() && index == at(slot, WAITING));
        assert!(!slept.get() || page.get(at(slot, WAITING)) == 0);
        let number = numbers[slot].get();
        uses[slot] = judge(page, slot, number, &outcome, call.dies);
        self.ask(call.asks);
    }

    /// Slots whose answers came, though nobody waits for them any more, are free.
    fn reclaim(&mut self) {
        for (slot, one) in self.uses.iter_mut().enumerate() {
            let answered = self.page.get(at(slot, ANSWERED));
            if *one == Use::Abandoned(answered) {
                *one = Use::Free;
            }
        }
    }

    /// Whether the server is overdue; slots whose answers came are free then.
    fn ask(&mut self, asks: bool) {
        if !asks {
            return;
        }
        let is_overdue = self.caller.is_overdue();
        self.reclaim();
        let abandoned = self.uses.iter().any(|one| matches!(one, Use::Abandoned(_)));
        assert_eq!(is_overdue, abandoned, "{:?}", self.uses);
    }
}

/// Whether request `number` of a slot may end like that; what the slot is used for then.
fn judge(
    page: &Page,
    slot: usize,
    number: u64,
    outcome: &Result<Result<u64, Failure>, LaneError>,
    dies: bool,
) -> Use {
    let is_answered = page.get(at(slot, ANSWERED)) == number;
    match outcome {
        Ok(outcome) => {
            assert!(is_answered, "an answer to another request: {outcome:?}");
            assert_eq!(page.outcome(slot).as_ref(), Some(outcome));
            Use::Free
        }
        Err(LaneError::Nonsense) => {
            assert!(is_answered, "nonsense that answers another request");
            assert_eq!(page.outcome(slot), None);
            Use::Free
        }
        Err(LaneError::TimedOut { .. }) => {
            assert!(!is_answered, "an answer that was not taken");
            Use::Abandoned(number)
        }
        Err(LaneError::Dead { .. }) => {
            assert!(dies && !is_answered, "dead: {dies}, answered: {is_answered}");
            Use::Lost
        }
        Err(error @ (LaneError::Full | LaneError::Wait(_))) => panic!("{error:?}"),
    }
}
