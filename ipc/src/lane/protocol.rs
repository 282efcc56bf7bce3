//! The steps of the lane, over words of shared memory and without any system call.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::wire::common::{Failure, FailureKind};
use crate::wire::function::{Access, Space};

/// Slots of a lane: threads that have a request in it at once. One more goes by the tube.
pub const SLOTS: usize = 8;

/// Bytes of text that an error can have here; the rest of a longer one is left out.
pub const MAX_TEXT: usize = 8 * (SLOT - TEXT);

/// Words of the whole lane. Two cache lines apart what the two sides write, since processors fetch lines
/// in pairs.
pub(super) const WORDS: usize = HEADER + SLOTS * SLOT;
/// Words before the first slot.
pub const HEADER: usize = 16;
/// Words of a slot.
pub const SLOT: usize = 64;

/// The server's: not 0 while it sleeps or is about to.
pub const ASLEEP: usize = 0;
/// The server's, in a line that nobody else reads while all is well: one more than the slot whose
/// request it carries out, 0 for none.
pub const BEGUN: usize = 8;

// Of a slot, the caller's: the number last, since it publishes the others.
/// The number of the request.
pub const NUMBER: usize = 0;
/// Space, BAR, width and direction; see `pack`.
pub const WHAT: usize = 1;
/// Where.
pub const OFFSET: usize = 2;
/// What is written.
pub const VALUE: usize = 3;
/// Not 0 while the caller sleeps or is about to.
pub const WAITING: usize = 4;
// The server's.
/// The number of the request that was answered, written last.
pub const ANSWERED: usize = 16;
/// 0, or a failure; see `pack_failure`.
pub const STATUS: usize = 17;
/// The value that was read.
pub const RESULT: usize = 18;
/// Bytes of a failure's text.
pub const LENGTH: usize = 19;
/// The first word of that text.
pub const TEXT: usize = 24;

/// A word that another process changes.
pub(super) trait Word {
    /// Sees what was stored before the value it returns.
    fn acquire(&self) -> u64;
    /// Publishes everything stored before it.
    fn release(&self, value: u64);
    /// In no order.
    fn load(&self) -> u64;
    /// In no order.
    fn store(&self, value: u64);
    /// Nothing after it happens before anything before it.
    fn full_fence();
}

impl Word for AtomicU64 {
    fn acquire(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn release(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    fn load(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn store(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }

    fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

/// The words of one slot.
fn slot<W>(words: &[W], number: usize) -> &[W] {
    &words[HEADER + number * SLOT..][..SLOT]
}

/// The caller's steps.
pub(super) mod calling {
    use super::*;

    /// Publishes `access` as request `number`; whether the server must be woken.
    pub(in super::super) fn publish<W: Word>(
        words: &[W],
        at: usize,
        number: u64,
        access: &Access,
    ) -> bool {
        let slot = slot(words, at);
        slot[WHAT].store(pack(access));
        slot[OFFSET].store(access.offset);
        slot[VALUE].store(access.value);
        slot[NUMBER].release(number);
        W::full_fence();
        words[ASLEEP].load() != 0
    }

    /// Whether request `number` has been answered.
    pub(in super::super) fn is_answered<W: Word>(words: &[W], at: usize, number: u64) -> bool {
        slot(words, at)[ANSWERED].acquire() == number
    }

    /// Says that the caller is about to sleep; it must look once more after that.
    pub(in super::super) fn will_sleep<W: Word>(words: &[W], at: usize) {
        slot(words, at)[WAITING].store(1);
        W::full_fence();
    }

    /// Says that it does not sleep any more.
    pub(in super::super) fn woke<W: Word>(words: &[W], at: usize) {
        slot(words, at)[WAITING].store(0);
    }

    /// Whether the server may have been at the request of this slot when it ended: it does not say that it
    /// was at another.
    pub(in super::super) fn may_be_begun<W: Word>(words: &[W], at: usize) -> bool {
        let begun = words[BEGUN].load();
        let others = (1..=SLOTS as u64).contains(&begun);
        !others || begun == at as u64 + 1
    }

    /// Copies the outcome out; `None` for what is none.
    pub(in super::super) fn outcome<W: Word>(
        words: &[W],
        at: usize,
    ) -> Option<Result<u64, Failure>> {
        let slot = slot(words, at);
        let status = slot[STATUS].load();
        if status == 0 {
            return Some(Ok(slot[RESULT].load()));
        }
        let (kind, code) = unpack_failure(status)?;
        let length = usize::try_from(slot[LENGTH].load()).ok().filter(|many| *many <= MAX_TEXT)?;
        let mut text = Vec::with_capacity(MAX_TEXT);
        text.extend(slot[TEXT..].iter().flat_map(|word| word.load().to_le_bytes()));
        text.truncate(length);
        let message = String::from_utf8(text).ok()?;
        Some(Err(Failure { kind, code, message }))
    }
}

/// The server's steps.
pub(super) mod serving {
    use super::*;

    /// The number of the request in a slot, where it is not `served`, the one before.
    pub(in super::super) fn request<W: Word>(words: &[W], at: usize, served: u64) -> Option<u64> {
        Some(slot(words, at)[NUMBER].acquire()).filter(|number| *number != served)
    }

    /// Copies the request out, which is carried out from here on; `None` for what is none.
    pub(in super::super) fn access<W: Word>(words: &[W], at: usize) -> Option<Access> {
        words[BEGUN].store(at as u64 + 1);
        let slot = slot(words, at);
        unpack(slot[WHAT].load(), slot[OFFSET].load(), slot[VALUE].load())
    }

    /// Publishes the outcome of request `number`; whether its caller must be woken.
    pub(in super::super) fn answer<W: Word>(
        words: &[W],
        at: usize,
        number: u64,
        outcome: &Result<u64, Failure>,
    ) -> bool {
        let slot = slot(words, at);
        match outcome {
            Ok(value) => {
                slot[RESULT].store(*value);
                slot[STATUS].store(0);
            }
            Err(failure) => {
                let text = shortened(&failure.message);
                for (word, bytes) in slot[TEXT..].iter().zip(text.chunks(8)) {
                    let mut whole = [0; 8];
                    whole[..bytes.len()].copy_from_slice(bytes);
                    word.store(u64::from_le_bytes(whole));
                }
                slot[LENGTH].store(text.len() as u64);
                slot[STATUS].store(pack_failure(failure));
            }
        }
        publish(words, at, number)
    }

    /// Publishes an outcome that is none, for people who test what becomes of one.
    pub(in super::super) fn answer_nonsense<W: Word>(words: &[W], at: usize, number: u64) -> bool {
        slot(words, at)[STATUS].store(u64::MAX);
        publish(words, at, number)
    }

    fn publish<W: Word>(words: &[W], at: usize, number: u64) -> bool {
        words[BEGUN].store(0);
        let slot = slot(words, at);
        slot[ANSWERED].release(number);
        W::full_fence();
        slot[WAITING].load() != 0
    }

    /// Says that the server is about to sleep; it must look at every slot once more after that.
    pub(in super::super) fn will_sleep<W: Word>(words: &[W]) {
        words[ASLEEP].store(1);
        W::full_fence();
    }

    /// Says that it does not sleep any more.
    pub(in super::super) fn woke<W: Word>(words: &[W]) {
        words[ASLEEP].store(0);
    }
}

fn shortened(text: &str) -> &[u8] {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|end| text.is_char_boundary(*end));
    &text.as_bytes()[..end.unwrap_or(0)]
}

/// Space, BAR, width and direction in a byte each.
fn pack(access: &Access) -> u64 {
    let (space, bar) = match access.space {
        Space::Config => (0, 0),
        Space::Bar(bar) => (1, bar),
    };
    u64::from_le_bytes([space, bar, access.width, access.write.into(), 0, 0, 0, 0])
}

fn unpack(what: u64, offset: u64, value: u64) -> Option<Access> {
    let [space, bar, width, write, 0, 0, 0, 0] = what.to_le_bytes() else { return None };
    let space = match space {
        0 => Space::Config,
        1 => Space::Bar(bar),
        _ => return None,
    };
    let write = match write {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Access { space, offset, width, write, value })
}

/// Kind, whether there is a code, and the code.
fn pack_failure(failure: &Failure) -> u64 {
    let kind = match failure.kind {
        FailureKind::InvalidArgument => 1,
        FailureKind::Io => 2,
        FailureKind::NoDevice => 3,
        FailureKind::NotSupported => 4,
        FailureKind::Busy => 5,
        FailureKind::NoSpace => 6,
        FailureKind::Lost => 7,
    };
    kind | failure.code.map_or(0, |code| 1 << 8 | u64::from(code) << 32)
}

fn unpack_failure(status: u64) -> Option<(FailureKind, Option<u32>)> {
    let [kind, has_code, 0, 0, code @ ..] = status.to_le_bytes() else { return None };
    let kind = match kind {
        1 => FailureKind::InvalidArgument,
        2 => FailureKind::Io,
        3 => FailureKind::NoDevice,
        4 => FailureKind::NotSupported,
        5 => FailureKind::Busy,
        6 => FailureKind::NoSpace,
        7 => FailureKind::Lost,
        _ => return None,
    };
    let code = u32::from_le_bytes(code);
    match has_code {
        0 if code == 0 => Some((kind, None)),
        1 => Some((kind, Some(code))),
        _ => None,
    }
}

#[cfg(all(test, target_os = "linux"))]
mod model;
#[cfg(test)]
mod tests;
