//! The fast lane: hot small requests of several threads in shared memory, beside the tube.
//!
//! The VMM side makes a lane for each function process: one page of shared memory with [`SLOTS`] slots,
//! an event that wakes whoever serves, and one for each slot that wakes its caller. It hands them over by
//! the tube. A caller takes a slot, writes one [`Access`](crate::wire::function::Access), and
//! publishes it with the number of the request; the server writes the outcome and publishes it with the
//! same number. Each side looks for a bounded time before it sleeps ([`spin`](crate::spin)), and only a side that says
//! that it sleeps is woken, so that a hot access needs no system call.
//!
//! ```text
//! caller                                           server
//! request words, number            ──────────▶     number is new: copy the request once
//! asleep? then signal its event                    carry it out
//! number? look, then sleep         ◀──────────     outcome words, number
//!                                                  waiting? then signal the slot's event
//! ```
//!
//! Neither side forgets a wake-up: each first says what it is about to do (publish, or sleep), then a
//! full fence, then looks at what the other said. `protocol` has these steps without any system call, so
//! that loom can try their interleavings.
//!
//! # What a peer can do
//! Everything in the page can be rewritten at any moment. So which slots are taken, the number that is
//! waited for and the number that was served last are private to their side; a request or an outcome is
//! copied out once and then checked; what makes no sense is an error of that request
//! ([`LaneError::Nonsense`]), which condemns the process. A peer that wakes too often costs system
//! calls, one that never wakes is met by the deadline, as on the tube. The caller's own death flag is
//! looked at while it spins, and the event of the death while it sleeps.

mod caller;
mod protocol;
mod server;

pub use caller::{Caller, LaneError, LaneHandles, MadeError, Wait};
pub use protocol::{MAX_TEXT, SLOTS};
pub use server::{JoinError, Server, Taken};

/// Which word is where, counted in words, for people who test what becomes of a peer that lies.
#[doc(hidden)]
pub mod layout {
    pub use super::protocol::{
        ANSWERED, ASLEEP, BEGUN, HEADER, LENGTH, NUMBER, OFFSET, RESULT, SLOT, STATUS, TEXT, VALUE,
        WAITING, WHAT,
    };
}

/// Bytes of the shared memory: a page on every system that this runs on.
pub const BYTES: u64 = 16 * 1024;

const _: () = assert!(protocol::WORDS * 8 <= 16 * 1024);
