//! Where a role can be made to do wrong on purpose, for people who test by killing. The product's
//! program has [`NoHooks`]; what does wrong is a program of its own, `faulty-device-proc`.

use cordon_backend::{Backend, BackendError};
use dext_client::Endpoint;
use ipc::Tube;
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::faults::{Misbehaviour, Point, Wrong};

use crate::backends;

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

    /// A request is at `point`, and its answer goes to `tube`: the moment to do what was armed.
    fn at(&mut self, point: Point, tube: &Tube);
}

/// Sends what is no message, where that is what is wrong: for implementations of [`Hooks::at`].
pub fn send_nonsense(wrong: &Wrong, tube: &Tube) {
    // More than any message may say it has, and not as much as one says it has.
    const LIE: [u8; 4] = 64u32.to_le_bytes();
    let bytes = match wrong {
        Wrong::Garbage => vec![0xa5; 48],
        Wrong::Truncated => [&LIE[..], &[0; 16]].concat(),
        Wrong::Hang | Wrong::Closed | Wrong::Selector { .. } => return,
    };
    let _ = rustix::net::send(tube, &bytes, rustix::net::SendFlags::empty());
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

    fn at(&mut self, _: Point, _: &Tube) {}
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_program_that_is_not_made_for_it_refuses_to_do_wrong() {
        let wrong = Misbehaviour { point: Point::Before, wrong: Wrong::Hang };
        assert_eq!(NoHooks.arm(wrong).unwrap_err().kind, FailureKind::NotSupported);
        let (_ours, theirs) = Tube::pair().unwrap();
        NoHooks.at(Point::Before, &theirs);
    }
}
