//! Where a role can be made to do wrong on purpose, for people who test by killing. The product's
//! program has [`NoHooks`]; what does wrong is a program of its own, `faulty-device-proc`.

use cordon_backend::{Backend, BackendError};
use dext_client::Endpoint;
use ipc::Tube;
use ipc::lane::{Server, Taken};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::{Misbehaviour, Point, Wrong};

use crate::backends;

/// The way that a request came, and that its answer goes.
#[derive(Clone, Copy)]
pub enum Route<'r> {
    /// By the tube.
    Tube(&'r Tube),
    /// By a slot of the lane beside the tube.
    Lane(&'r Tube, &'r Server, &'r Taken),
}

impl<'r> Route<'r> {
    /// The tube, whichever way the request came.
    #[must_use]
    pub fn tube(self) -> &'r Tube {
        match self {
            Self::Tube(tube) | Self::Lane(tube, ..) => tube,
        }
    }
}

/// What a role asks before it does anything that may be done wrong.
pub trait Hooks {
    /// The backend at `endpoint`, or something that puts itself before it.
    ///
    /// # Errors
    /// [`BackendError`] when this build cannot talk to it.
    fn backend(&self, endpoint: &Endpoint) -> Result<Box<dyn Backend>, BackendError> {
        backends::open(endpoint)
    }

    /// Arranges for a misbehaviour.
    ///
    /// # Errors
    /// [`Failure`] from whoever does no wrong.
    fn arm(&mut self, misbehaviour: Misbehaviour) -> Result<(), Failure>;

    /// A request that came by `route` is at `point`: the moment to do what was armed. Whether the
    /// request has its answer with that, one that is none, and must not be answered again.
    fn at(&mut self, point: Point, route: Route<'_>) -> bool;
}

/// Sends what is no message, or answers with what is no outcome, where that is what is wrong: for
/// implementations of [`Hooks::at`], whose answer this gives.
pub fn send_nonsense(wrong: &Wrong, point: Point, route: Route<'_>) -> bool {
    // More than any message may say it has, and not as much as one says it has.
    const LIE: [u8; 4] = 64u32.to_le_bytes();
    let bytes = match wrong {
        Wrong::Garbage => vec![0xa5; 48],
        Wrong::Truncated => [&LIE[..], &[0; 16]].concat(),
        Wrong::Hang | Wrong::Closed | Wrong::Selector { .. } => return false,
    };
    match route {
        // After its answer a slot is its caller's.
        Route::Lane(_, server, taken) if point != Point::After => {
            server.answer_nonsense(taken);
            true
        }
        _ => {
            // As everything is sent: the sandbox knows no other way.
            let _ = ipc::rights::send(&route.tube(), &bytes, &[]);
            false
        }
    }
}

/// Does nothing wrong, and refuses to.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn arm(&mut self, _: Misbehaviour) -> Result<(), Failure> {
        let message =
            "This program does nothing wrong on purpose: faulty-device-proc does".to_owned();
        Err(Failure { kind: FailureKind::NotSupported, code: None, message })
    }

    fn at(&mut self, _: Point, _: Route<'_>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_made_for_it_refuses_to_do_wrong() {
        let wrong = Misbehaviour { point: Point::Before, wrong: Wrong::Hang };
        assert_eq!(NoHooks.arm(wrong).unwrap_err().kind, FailureKind::NotSupported);
        let (_ours, theirs) = Tube::pair().unwrap();
        assert!(!NoHooks.at(Point::Before, Route::Tube(&theirs)));
    }
}
