//! Whether a server has a client, and how the server of the function that it belongs to has that
//! client leave: what a companion does, it does in the memory of the function's client.

use std::io;
use std::sync::Arc;

use ipc::Deadline;
use ipc::event::{Event, Signaller};
use parking_lot::{Condvar, Mutex};

/// Who has a seat.
#[derive(Default)]
struct SeatState {
    taken: bool,
    /// How many have had it.
    number: u64,
}

/// The one client that a server has.
pub(super) struct Seat {
    state: Mutex<SeatState>,
    changed: Condvar,
    /// Signalled when whoever has the seat is to leave.
    leave: Event,
    tell: Signaller,
}

impl Seat {
    /// Nobody has it.
    pub(super) fn new() -> io::Result<Self> {
        let leave = Event::new()?;
        let tell = leave.signaller()?;
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), leave, tell })
    }

    /// A client has it, until the value is dropped and nothing of the client is left.
    pub(super) fn take(&self) -> Taken<'_> {
        let mut state = self.state.lock();
        // What the one before was told is not for this one.
        let _ = self.leave.clear();
        *state = SeatState { taken: true, number: state.number + 1 };
        Taken(self)
    }

    /// Readable when the client is to leave.
    pub(super) fn leave(&self) -> &Event {
        &self.leave
    }

    /// Has the client leave that has it now; whether it has before the deadline.
    pub(super) fn vacate(&self, deadline: Deadline) -> bool {
        let mut state = self.state.lock();
        let number = state.number;
        if state.taken {
            self.tell.signal();
        }
        while state.taken && state.number == number {
            if self.changed.wait_until(&mut state, deadline.instant()).timed_out() {
                return false;
            }
        }
        true
    }
}

/// See [`Seat::take`].
pub(super) struct Taken<'s>(&'s Seat);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.state.lock().taken = false;
        self.0.changed.notify_all();
    }
}

/// The seats of what is served beside a function.
#[derive(Clone, Default)]
pub(super) struct Beside(Arc<Mutex<Vec<Arc<Seat>>>>);

impl Beside {
    /// One more. Those of servers that are gone are forgotten.
    pub(super) fn add(&self, seat: &Arc<Seat>) {
        let mut seats = self.0.lock();
        seats.retain(|seat| Arc::strong_count(seat) > 1);
        seats.push(Arc::clone(seat));
    }

    /// Has the clients of all leave; whether they have before the deadline.
    pub(super) fn vacate(&self, deadline: Deadline) -> bool {
        let seats = self.0.lock().clone();
        seats.iter().all(|seat| seat.vacate(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn whoever_has_the_seat_is_told_to_leave_and_waited_for() {
        let seat = Arc::new(Seat::new().unwrap());
        let beside = Beside::default();
        beside.add(&seat);
        assert!(beside.vacate(Deadline::now()));
        let taken = seat.take();
        assert!(!seat.leave().clear().unwrap(), "nobody was told to leave yet");
        assert!(!beside.vacate(Deadline::now()));
        assert!(seat.leave().clear().unwrap());
        std::thread::scope(|scope| {
            let gone = scope.spawn(|| beside.vacate(Deadline::after(Duration::from_secs(10))));
            assert!(seat.leave().wait(Deadline::after(Duration::from_secs(10))).unwrap());
            drop(taken);
            assert!(gone.join().unwrap());
        });
    }
}
