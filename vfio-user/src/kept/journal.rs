//! What a server knows of a client, in memory that outlives it: a record of the session, the last answer, and a word
//! that says which of both count. It is written by plain stores, which are there whenever this process is killed.
//!
//! ```text
//! 0       magic 8 │ version 8 │ word 8
//! 4096    the answer
//! 24 KiB  two slots of 128 KiB: length 8 │ record
//! word: phase 8 │ slot 8 │ looked at beyond the message 16 │ length of the answer 32
//! ```
//!
//! What is new of the session is written into the slot that does not count, and counts from the store of the word on
//! that says that a command is executed. So a command and what it changed are there together or not at all.
//!
//! It is an instance of this library that wrote it. All the same nothing in it is believed that could hurt.

use ipc::window::Access;
use ipc::{SharedMemory, Window};

use super::KeptError;
use super::record::Record;
use crate::limits::{MAX_KEPT_MESSAGE, MAX_SESSION};

const MAGIC: u64 = u64::from_le_bytes(*b"cordvfus");
/// Of the layout of the memory and of the record.
const VERSION: u64 = 2;
/// Where the version is, the word and the answer.
const AT_VERSION: u64 = 8;
const AT_WORD: u64 = 16;
const AT_ANSWER: u64 = 4096;
const AT_SLOTS: u64 = 24 << 10;
/// From one slot to the next.
const SLOT: u64 = MAX_SESSION as u64;
const SIZE: u64 = AT_SLOTS + 2 * SLOT;

const _: () = assert!(AT_ANSWER + MAX_KEPT_MESSAGE as u64 <= AT_SLOTS);

/// How far a client's next message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is to be executed.
    Open,
    /// It is executed, and this is its answer's length, 0 where it has none; so many bytes of what follows it were
    /// looked at.
    Executed { rest: usize, length: usize },
    /// All of the answer was put into the pipe, and may have been sent.
    Staged { rest: usize, length: usize },
    /// It is being received or answered in a way that nobody can go on with, or the client is being sent away.
    Torn,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Journal {
    memory: SharedMemory,
    window: Window,
    slot: u8,
    /// The other slot is written, and counts with the next word.
    is_written: bool,
    /// The client is torn now; and for good, since it is not kept any more.
    is_torn: bool,
    is_given_up: bool,
}

impl Journal {
    /// An empty one.
    pub(crate) fn new() -> Result<Self, KeptError> {
        let memory = SharedMemory::create("cordon-session", SIZE).map_err(KeptError::Memory)?;
        let journal = Self::mapped(memory, 0)?;
        let put = |at, value| journal.window.store_u64(at, value);
        put(AT_VERSION, VERSION).and_then(|()| put(0, MAGIC)).map_err(KeptError::Map)?;
        Ok(journal)
    }

    fn mapped(memory: SharedMemory, slot: u8) -> Result<Self, KeptError> {
        let window = memory.map_all(Access::ReadWrite).map_err(KeptError::Map)?;
        let (is_written, is_torn, is_given_up) = (false, false, false);
        Ok(Self { memory, window, slot, is_written, is_torn, is_given_up })
    }

    /// What an instance before this one left, how far it was, and its record.
    pub(crate) fn left(memory: SharedMemory) -> Result<(Self, Phase, Record), KeptError> {
        if memory.size() != SIZE {
            return Err(KeptError::NoSession);
        }
        let mut journal = Self::mapped(memory, 0)?;
        let get = |journal: &Self, at| journal.window.load_u64(at).map_err(KeptError::Map);
        if get(&journal, 0)? != MAGIC {
            return Err(KeptError::NoSession);
        }
        match get(&journal, AT_VERSION)? {
            VERSION => {}
            other => return Err(KeptError::Version(other)),
        }
        let [phase, slot, first, second, length @ ..] = get(&journal, AT_WORD)?.to_le_bytes();
        let rest = usize::from(u16::from_le_bytes([first, second]));
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let phase = match phase {
            0 => Phase::Open,
            1 if length <= MAX_KEPT_MESSAGE => Phase::Executed { rest, length },
            2 => Phase::Torn,
            3 if length <= MAX_KEPT_MESSAGE => Phase::Staged { rest, length },
            _ => return Err(KeptError::NoSession),
        };
        if slot > 1 {
            return Err(KeptError::NoSession);
        }
        journal.slot = slot;
        let at = AT_SLOTS + SLOT * u64::from(slot);
        let length = usize::try_from(get(&journal, at)?).unwrap_or(usize::MAX);
        if length > MAX_SESSION - 8 {
            return Err(KeptError::NoSession);
        }
        let mut bytes = vec![0; length];
        journal.window.copy_out(at + 8, &mut bytes).map_err(KeptError::Map)?;
        let record: Record = ipc::codec::decode(&bytes).map_err(KeptError::Record)?;
        record.check()?;
        Ok((journal, phase, record))
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// Writes what is known of the client from the next word on.
    pub(crate) fn write(&mut self, record: &Record) -> Result<(), KeptError> {
        let bytes = ipc::codec::encode(record, MAX_SESSION - 8).map_err(KeptError::Record)?;
        let at = AT_SLOTS + SLOT * u64::from(self.slot ^ 1);
        let length = bytes.len() as u64;
        let written = self.window.store_u64(at, length);
        written.and_then(|()| self.window.copy_in(at + 8, &bytes)).map_err(KeptError::Map)?;
        self.is_written = true;
        super::step("record written");
        Ok(())
    }

    /// Writes the next answer, at most [`MAX_KEPT_MESSAGE`] bytes.
    pub(crate) fn write_answer(&self, answer: &[u8]) -> Result<(), KeptError> {
        self.window.copy_in(AT_ANSWER, answer).map_err(KeptError::Map)
    }

    /// The last answer, which has so many bytes.
    pub(crate) fn answer(&self, length: usize) -> Result<Vec<u8>, KeptError> {
        let mut answer = vec![0; length.min(MAX_KEPT_MESSAGE)];
        self.window.copy_out(AT_ANSWER, &mut answer).map_err(KeptError::Map)?;
        Ok(answer)
    }

    /// Whoever finds this sends the client away, whatever is set from here on.
    pub(crate) fn give_up(&mut self) {
        self.is_given_up = true;
        self.set(Phase::Torn);
    }

    /// What was written counts, and the client is as far as it was: a message is to be executed, or torn.
    pub(crate) fn commit(&mut self) {
        self.set(if self.is_torn { Phase::Torn } else { Phase::Open });
    }

    /// From here on this is how far it has come, and what was written counts.
    pub(crate) fn set(&mut self, phase: Phase) {
        let phase = if self.is_given_up { Phase::Torn } else { phase };
        self.is_torn = phase == Phase::Torn;
        if std::mem::take(&mut self.is_written) {
            self.slot ^= 1;
        }
        let (phase, rest, length) = match phase {
            Phase::Open => (0, 0, 0),
            Phase::Executed { rest, length } => (1, rest, length),
            Phase::Torn => (2, 0, 0),
            Phase::Staged { rest, length } => (3, rest, length),
        };
        let [first, second] = u16::try_from(rest).unwrap_or(u16::MAX).to_le_bytes();
        let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        let word = u64::from_le_bytes([phase, self.slot, first, second, a, b, c, d]);
        // The offset is inside and aligned.
        let _ = self.window.store_u64(AT_WORD, word);
        super::step("word stored");
    }
}
