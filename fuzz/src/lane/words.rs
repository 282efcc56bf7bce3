//! The shared memory as the peer has it: what it writes, and what the other side changed.

use std::cell::RefCell;

use arbitrary::Arbitrary;
use cordon_ipc::lane::layout::{
    ANSWERED, ASLEEP, BEGUN, HEADER, LENGTH, NUMBER, OFFSET, RESULT, SLOT, STATUS, TEXT, VALUE,
    WAITING, WHAT,
};
use cordon_ipc::lane::{BYTES, LaneHandles, SLOTS};
use cordon_ipc::wire::common::{Failure, FailureKind};
use cordon_ipc::wire::function::{Access, Space};
use cordon_ipc::{SharedMemory, Window, window};

/// A slot as an input names it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Slot {
    /// The one that is in use.
    Current,
    /// Any.
    Number(u8),
}

/// A word as an input names it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Word {
    Asleep,
    Begun,
    Number(Slot),
    What(Slot),
    Offset(Slot),
    Value(Slot),
    Waiting(Slot),
    Answered(Slot),
    Status(Slot),
    Result(Slot),
    Length(Slot),
    Text(Slot, u8),
    Any(u16),
}

/// What is written.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Value {
    /// Around the number of the current request.
    Near(i8),
    Small(u8),
    Access {
        space: u8,
        bar: u8,
        width: u8,
        write: u8,
    },
    Failure {
        kind: u8,
        has_code: u8,
        code: u32,
    },
    Raw(u64),
}

/// One store of the peer's. The first ones are what a peer does that knows the protocol, or nearly so; an
/// input would hardly find them by itself.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Store {
    /// Answers the current request.
    Answer,
    /// Answers another one in its slot.
    AnswerAnother(i8),
    /// Asks for the next request in a slot.
    Ask(u8),
    /// Anything.
    Word(Word, Value),
}

/// The index of a word of a slot.
pub const fn at(slot: usize, word: usize) -> usize {
    HEADER + slot * SLOT + word
}

impl Word {
    fn index(self, current: usize, page: &Page) -> usize {
        let slot = |slot: Slot, word| {
            let number = match slot {
                Slot::Current => current,
                Slot::Number(number) => usize::from(number) % SLOTS,
            };
            at(number, word)
        };
        match self {
            Self::Asleep => ASLEEP,
            Self::Begun => BEGUN,
            Self::Number(of) => slot(of, NUMBER),
            Self::What(of) => slot(of, WHAT),
            Self::Offset(of) => slot(of, OFFSET),
            Self::Value(of) => slot(of, VALUE),
            Self::Waiting(of) => slot(of, WAITING),
            Self::Answered(of) => slot(of, ANSWERED),
            Self::Status(of) => slot(of, STATUS),
            Self::Result(of) => slot(of, RESULT),
            Self::Length(of) => slot(of, LENGTH),
            Self::Text(of, number) => slot(of, TEXT + usize::from(number) % (SLOT - TEXT)),
            Self::Any(number) => usize::from(number) % page.count,
        }
    }
}

impl Value {
    fn word(self, number: u64) -> u64 {
        match self {
            Self::Near(more) => number.wrapping_add_signed(more.into()),
            Self::Small(value) => value.into(),
            Self::Access { space, bar, width, write } => {
                u64::from_le_bytes([space, bar, width, write, 0, 0, 0, 0])
            }
            Self::Failure { kind, has_code, code } => {
                let code = code.to_le_bytes();
                u64::from_le_bytes([kind, has_code, 0, 0, code[0], code[1], code[2], code[3]])
            }
            Self::Raw(value) => value,
        }
    }
}

/// The words of a lane; behind them the page has others, which nobody uses.
const WORDS: usize = at(SLOTS, 0);

/// The memory of a lane, and what is known to be in its words.
pub struct Page {
    window: Window,
    count: usize,
    known: RefCell<Vec<u64>>,
    /// What the peer has written behind them.
    behind: RefCell<Vec<u64>>,
}

impl Page {
    /// The memory that is handed to a server.
    pub fn of(handles: &LaneHandles) -> Self {
        let memory = handles.borrowed()[0].try_clone_to_owned().unwrap();
        let memory = SharedMemory::from_peer(memory, BYTES).unwrap();
        let window = memory.map_all(window::Access::ReadWrite).unwrap();
        let count = window.length() / 8;
        let behind = RefCell::new(vec![0; count - WORDS]);
        let page = Self { window, count, known: RefCell::default(), behind };
        page.known.replace(page.words(0, WORDS));
        page
    }

    fn words(&self, first: usize, count: usize) -> Vec<u64> {
        let mut bytes = vec![0; 8 * count];
        self.window.copy_out(8 * first as u64, &mut bytes).unwrap();
        bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    pub fn get(&self, index: usize) -> u64 {
        self.window.load_u64(8 * index as u64).unwrap()
    }

    pub fn set(&self, index: usize, value: u64) {
        self.window.store_u64(8 * index as u64, value).unwrap();
        match index.checked_sub(WORDS) {
            Some(index) => self.behind.borrow_mut()[index] = value,
            None => self.known.borrow_mut()[index] = value,
        }
    }

    /// Carries out a store, with the slot that is in use and its number.
    pub fn store(&self, store: Store, current: usize, number: u64) {
        let (index, value) = match store {
            Store::Answer => (at(current, ANSWERED), number),
            Store::AnswerAnother(more) => {
                (at(current, ANSWERED), number.wrapping_add_signed(more.into()))
            }
            Store::Ask(slot) => {
                let index = at(usize::from(slot) % SLOTS, NUMBER);
                (index, self.get(index).wrapping_add(1))
            }
            Store::Word(word, value) => (word.index(current, self), value.word(number)),
        };
        self.set(index, value);
    }

    /// The other side has written these words since the last look, and no others.
    pub fn assert_changed_only(&self, own: impl Fn(usize) -> bool) {
        let mut known = self.known.borrow_mut();
        let now = self.words(0, WORDS);
        // Almost always nothing has changed, and that is found soonest like this.
        if now == *known {
            return;
        }
        for (index, (now, known)) in now.iter().zip(known.iter()).enumerate() {
            assert!(now == known || own(index), "word {index} became {now:#x}");
        }
        *known = now;
    }

    /// The other side has written nothing behind the words of the lane.
    pub fn assert_rest_is_untouched(&self) {
        assert!(self.words(WORDS, self.count - WORDS) == *self.behind.borrow());
    }

    /// What the words of a slot ask for; `None` when that is nothing.
    pub fn access(&self, slot: usize) -> Option<Access> {
        let [space, bar, width, write, 0, 0, 0, 0] = self.get(at(slot, WHAT)).to_le_bytes() else {
            return None;
        };
        let space = [Space::Config, Space::Bar(bar)].get(usize::from(space)).copied()?;
        let write = [false, true].get(usize::from(write)).copied()?;
        let (offset, value) = (self.get(at(slot, OFFSET)), self.get(at(slot, VALUE)));
        Some(Access { space, offset, width, write, value })
    }

    /// What the words of a slot answer; `None` when that is nothing.
    pub fn outcome(&self, slot: usize) -> Option<Result<u64, Failure>> {
        let [kind, has_code, low @ ..] = self.get(at(slot, STATUS)).to_le_bytes();
        if (kind, has_code, low) == (0, 0, [0; 6]) {
            return Some(Ok(self.get(at(slot, RESULT))));
        }
        let [0, 0, code @ ..] = low else { return None };
        let code = u32::from_le_bytes(code);
        let code = match has_code {
            0 if code == 0 => None,
            1 => Some(code),
            _ => return None,
        };
        let kind = *KINDS.get(usize::from(kind).checked_sub(1)?)?;
        let length = usize::try_from(self.get(at(slot, LENGTH))).ok()?;
        let mut text = Vec::new();
        for word in TEXT..SLOT {
            text.extend(self.get(at(slot, word)).to_le_bytes());
        }
        let message = std::str::from_utf8(text.get(..length)?).ok()?.to_owned();
        Some(Err(Failure { kind, code, message }))
    }
}

/// Kinds of failures, in the order of their numbers, which begin with 1.
pub const KINDS: [FailureKind; 7] = [
    FailureKind::InvalidArgument,
    FailureKind::Io,
    FailureKind::NoDevice,
    FailureKind::NotSupported,
    FailureKind::Busy,
    FailureKind::NoSpace,
    FailureKind::Lost,
];
