//! Resets of a function by a kind that its device survives (P8), in both roles.

use cordon_backend::{BackendError, ErrorKind, ResetKind};
use cordon_pci::reset;
use ipc::wire::common::Identity;

/// Resets by the narrowest kind that the backend has and the device survives.
///
/// # Errors
/// [`BackendError`]: [`ErrorKind::Unsupported`] when there is none, and nothing was tried then.
pub(crate) fn reset<F: cordon_backend::Reset + ?Sized>(
    function: &mut F,
    identity: &Identity,
) -> Result<(), BackendError> {
    let refused = |why: String| {
        let subject = format!("Function {}", identity.address);
        BackendError::new(ErrorKind::Unsupported, subject, "Reset", why)
    };
    let offered: Vec<reset::ResetKind> =
        function.reset_kinds().iter().map(|kind| of(*kind)).collect();
    match reset::choose(identity.vendor, identity.device, &offered) {
        Ok(Some(reset::ResetKind::Function)) => function.reset(ResetKind::Function),
        Ok(Some(reset::ResetKind::Bus)) => function.reset(ResetKind::Bus),
        Ok(None) => Err(refused("the backend has no reset for it".to_owned())),
        Err(error) => Err(refused(error.to_string())),
    }
}

fn of(kind: ResetKind) -> reset::ResetKind {
    match kind {
        ResetKind::Function => reset::ResetKind::Function,
        ResetKind::Bus => reset::ResetKind::Bus,
    }
}
