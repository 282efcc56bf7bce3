//! Which backends there are: the one place where the roles' crate names one.

use cordon_backend::{Backend, BackendError};
use dext_client::{Dext, Endpoint};

/// The backend at `endpoint`.
///
/// # Errors
/// [`BackendError`] when this build cannot talk to it.
pub fn open(endpoint: &Endpoint) -> Result<Box<dyn Backend>, BackendError> {
    Ok(Box::new(Dext::at(endpoint)?))
}
