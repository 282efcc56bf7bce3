//! A server, and callers that lie.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use cordon_ipc::Handles;
use cordon_ipc::lane::layout::{
    ANSWERED, ASLEEP, BEGUN, LENGTH, NUMBER, RESULT, SLOT, STATUS, TEXT, WAITING,
};
use cordon_ipc::lane::{Caller, MAX_TEXT, SLOTS, Server};
use cordon_ipc::wire::common::Failure;

use super::words::{KINDS, Page, Store, at};

/// Longer than a server may look for requests.
const LONG: Duration = Duration::from_secs(5);

/// What happens next.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// The peer writes.
    Store(Store),
    /// The server takes a request, the peer writes, and the server answers.
    Take(Vec<Store>, Answer),
    /// The server looks for a request.
    Look,
    /// The server is about to sleep.
    Sleep,
    /// It woke, because it was signalled or not.
    Wake(bool),
}

/// How a request is answered.
#[derive(Arbitrary, Debug)]
pub enum Answer {
    Value(u64),
    Failure { kind: u8, code: Option<u32>, message: String },
    Nonsense,
    Nothing,
}

impl Answer {
    fn outcome(&self) -> Option<Result<u64, Failure>> {
        match self {
            Self::Value(value) => Some(Ok(*value)),
            Self::Failure { kind, code, message } => {
                let kind = KINDS[usize::from(*kind) % KINDS.len()];
                Some(Err(Failure { kind, code: *code, message: message.clone() }))
            }
            Self::Nonsense | Self::Nothing => None,
        }
    }
}

struct Model {
    page: Page,
    server: Server,
    /// What wakes the caller of each slot.
    events: Vec<File>,
    /// The number of the last request of each slot.
    served: [u64; SLOTS],
    /// The slot that is looked at first.
    first: usize,
}

pub fn run(steps: &[Step]) {
    let (_caller, handles) = Caller::new().unwrap();
    let page = Page::of(&handles);
    let owned = || handles.borrowed().into_iter().map(|fd| fd.try_clone_to_owned().unwrap());
    let server = Server::join(Handles::from(owned().collect::<Vec<_>>()), true).unwrap();
    let events = owned().skip(2).map(File::from).collect();
    let mut model = Model { page, server, events, served: [0; SLOTS], first: 0 };
    steps.iter().for_each(|step| model.step(step));
    model.page.assert_rest_is_untouched();
}

impl Model {
    fn step(&mut self, step: &Step) {
        let next = self.next();
        match step {
            Step::Store(store) => self.page.store(*store, self.first, self.served[self.first]),
            Step::Take(stores, answer) => self.take(next, stores, answer),
            Step::Look => {
                let began = Instant::now();
                assert_eq!(self.server.look(), next.is_some());
                assert!(began.elapsed() < LONG);
                self.page.assert_changed_only(|_| false);
            }
            Step::Sleep => {
                assert_eq!(self.server.will_sleep(), next.is_none());
                self.page.assert_changed_only(|index| index == ASLEEP);
                assert_eq!(self.page.get(ASLEEP), u64::from(next.is_none()));
            }
            Step::Wake(signalled) => {
                self.server.woke(*signalled).unwrap();
                self.page.assert_changed_only(|index| index == ASLEEP);
                assert_eq!(self.page.get(ASLEEP), 0);
            }
        }
    }

    /// The slot whose request comes next.
    fn next(&self) -> Option<usize> {
        let slots = (0..SLOTS).map(|more| (self.first + more) % SLOTS);
        slots.into_iter().find(|slot| self.page.get(at(*slot, NUMBER)) != self.served[*slot])
    }

    fn take(&mut self, next: Option<usize>, stores: &[Store], answer: &Answer) {
        let taken = self.server.take();
        assert_eq!(taken.is_some(), next.is_some());
        let (Some(taken), Some(slot)) = (taken, next) else {
            return self.page.assert_changed_only(|_| false);
        };
        let number = self.page.get(at(slot, NUMBER));
        (self.served[slot], self.first) = (number, (slot + 1) % SLOTS);
        assert_eq!(taken.access(), self.page.access(slot));
        self.page.assert_changed_only(|index| index == BEGUN);
        assert_eq!(self.page.get(BEGUN), slot as u64 + 1);
        let asked = taken.access();
        stores.iter().for_each(|store| self.page.store(*store, slot, number));
        assert_eq!(taken.access(), asked, "a request is copied out once");
        match (answer, answer.outcome()) {
            (Answer::Nothing, _) => return,
            (_, Some(outcome)) => self.server.answer(&taken, &outcome),
            (_, None) => self.server.answer_nonsense(&taken),
        }
        let own = [ANSWERED, STATUS, RESULT, LENGTH].map(|word| at(slot, word));
        let text = at(slot, TEXT)..at(slot, SLOT);
        self.page.assert_changed_only(|index| {
            index == BEGUN || own.contains(&index) || text.contains(&index)
        });
        assert_eq!((self.page.get(BEGUN), self.page.get(at(slot, ANSWERED))), (0, number));
        assert_eq!(self.page.outcome(slot), answer.outcome().map(shortened));
        let woken: Vec<bool> = self.events.iter_mut().map(is_signalled).collect();
        let waits = self.page.get(at(slot, WAITING)) != 0;
        let wanted: Vec<bool> = (0..SLOTS).map(|one| waits && one == slot).collect();
        assert_eq!(woken, wanted, "whoever waits is woken, and nobody else");
    }
}

/// What there is room for of an error's text.
fn shortened(outcome: Result<u64, Failure>) -> Result<u64, Failure> {
    outcome.map_err(|mut failure| {
        let end = (0..=failure.message.len().min(MAX_TEXT)).rev();
        let end = end.into_iter().find(|end| failure.message.is_char_boundary(*end));
        failure.message.truncate(end.unwrap_or(0));
        failure
    })
}

/// Whether an event was signalled, which is taken.
fn is_signalled(event: &mut File) -> bool {
    event.read(&mut [0; 8]).is_ok()
}
