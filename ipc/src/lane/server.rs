//! The serving side of a lane: one thread, in its one wait loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::protocol::{SLOTS, WORDS, serving};
use crate::event::Signaller;
use crate::spin::Spin;
use crate::wire::common::Failure;
use crate::wire::function::Access;
use crate::{Handles, SharedMemory, Window, sys, window};

/// How long a server looks for another request before it sleeps, at most: longer than a client of vfio-user takes
/// from an answer to its next command. An interrupt may wait for as long.
const LONGEST_LOOK: Duration = Duration::from_micros(60);

/// A lane that cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Not what a lane is made of came beside the request.
    #[error("{0} handles came: a lane has {count}", count = SLOTS + 2)]
    Count(usize),
    /// The memory is not fit.
    #[error("The memory of the lane is not fit")]
    Memory(#[from] crate::shm::SharedMemoryError),
    /// It cannot be mapped.
    #[error("The memory of the lane cannot be mapped")]
    Map(#[from] window::WindowError),
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    window: Window,
    /// Readable when a caller wants to be served.
    event: OwnedFd,
    callers: Vec<Signaller>,
    /// The number of the last request of each slot.
    served: [u64; SLOTS],
    /// Where to look first, so that no slot is always served before the others.
    first: usize,
    spin: Spin,
}

/// A request that was taken out of the lane, and is answered once.
#[derive(Debug)]
#[must_use]
pub struct Taken {
    at: usize,
    number: u64,
    access: Option<Access>,
}

impl Taken {
    /// What is asked; `None` when it makes no sense.
    #[must_use]
    pub fn access(&self) -> Option<Access> {
        self.access
    }
}

impl Server {
    /// Joins the lane that `handles` are of. `looks` says whether the machine has processors to look
    /// with.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(handles: Handles, looks: bool) -> Result<Self, JoinError> {
        let mut handles = handles.into_iter();
        let count = handles.len();
        let (Some(memory), Some(event)) = (handles.next(), handles.next()) else {
            return Err(JoinError::Count(count));
        };
        let callers: Vec<_> = handles.map(Signaller::from_trusted).collect();
        if callers.len() != SLOTS {
            return Err(JoinError::Count(count));
        }
        let memory = SharedMemory::from_peer(memory, WORDS as u64 * 8)?;
        let window = memory.map(0, WORDS * 8, window::Access::ReadWrite)?;
        window.words(0, WORDS)?;
        let spin = Spin::new(if looks { LONGEST_LOOK } else { Duration::ZERO });
        Ok(Self { window, event, callers, served: [0; SLOTS], first: 0, spin })
    }

    /// The next request, if there is one.
    pub fn take(&mut self) -> Option<Taken> {
        let words = words(&self.window);
        for at in (self.first..SLOTS).chain(0..self.first) {
            if let Some(number) = serving::request(words, at, self.served[at]) {
                let access = serving::access(words, at);
                self.served[at] = number;
                self.first = (at + 1) % SLOTS;
                return Some(Taken { at, number, access });
            }
        }
        None
    }

    /// Answers a request.
    pub fn answer(&self, taken: &Taken, outcome: &Result<u64, Failure>) {
        let asleep = serving::answer(words(&self.window), taken.at, taken.number, outcome);
        self.wake(taken, asleep);
    }

    /// Answers with what is no outcome, for people who test what becomes of that.
    pub fn answer_nonsense(&self, taken: &Taken) {
        let asleep = serving::answer_nonsense(words(&self.window), taken.at, taken.number);
        self.wake(taken, asleep);
    }

    fn wake(&self, taken: &Taken, asleep: bool) {
        if let (true, Some(caller)) = (asleep, self.callers.get(taken.at)) {
            caller.signal_trusted();
        }
    }

    /// Looks for another request for as long as that is worth it; whether there is one.
    #[must_use]
    pub fn look(&self) -> bool {
        let words = words(&self.window);
        self.spin.look(|| is_asked(words, &self.served))
    }

    /// Says that the server is about to sleep; `false` when there is a request, and it must not.
    #[must_use]
    pub fn will_sleep(&self) -> bool {
        let words = words(&self.window);
        serving::will_sleep(words);
        let sleeps = !is_asked(words, &self.served);
        if !sleeps {
            serving::woke(words);
        }
        sleeps
    }

    /// Says that it does not sleep any more. `signalled`: its event was.
    ///
    /// # Errors
    /// What taking the signal reports.
    pub fn woke(&self, signalled: bool) -> io::Result<()> {
        serving::woke(words(&self.window));
        if signalled {
            sys::clear_event(self.event.as_fd())?;
        }
        Ok(())
    }
}

/// The words, whose range [`Server::join`] has checked.
fn words(window: &Window) -> &[AtomicU64] {
    window.words(0, WORDS).unwrap_or_default()
}

fn is_asked(words: &[AtomicU64], served: &[u64; SLOTS]) -> bool {
    served.iter().enumerate().any(|(at, served)| serving::request(words, at, *served).is_some())
}

impl AsFd for Server {
    /// Readable when a caller wants to be served.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
