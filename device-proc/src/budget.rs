//! How much memory a process will be handed after it is confined: the part of its budget of addresses
//! that is not its own (`sandbox_profiles::confine`).
//!
//! Guest memory arrives region by region, and the VMM may plug more in at any time, so it is not
//! counted when it comes but bounded at the start: by `--guest-memory` where the VMM side says it, or by
//! twice the machine's memory. A device reaches guest memory only while it is pinned, so a guest with a
//! device has no more than the machine; twice leaves room for the same memory at two addresses. What the
//! bound is for are page tables, a 512th of it: generous costs little, none at all is what a function
//! process without a companion gets.

use cordon_backend::BackendError;

use crate::connection::claimed::ClaimedFunction;
use crate::start::Confinement;

impl Confinement {
    /// Guest memory of one function, in bytes.
    #[must_use]
    pub fn guest_memory(self) -> u64 {
        let said = match self {
            Self::Process { guest_memory, .. } => guest_memory,
            Self::Thread(_) => None,
        };
        said.unwrap_or_else(|| sandbox_profiles::machine_memory().saturating_mul(2))
    }
}

/// What a connection process maps: guest memory for each function, which may belong to different
/// guests, and BARs once they are claimed.
///
/// # Errors
/// [`BackendError`] when the backend is gone.
pub(crate) fn connection(
    confinement: Confinement,
    functions: &mut [ClaimedFunction],
) -> Result<u64, BackendError> {
    let mut bytes = confinement.guest_memory().saturating_mul(functions.len() as u64);
    for function in functions {
        bytes = bytes.saturating_add(function.bar_bytes()?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_profiles::Network;

    fn confinement(guest_memory: Option<u64>) -> Confinement {
        let (mode, network) = (sandbox_profiles::Mode::Strict, Network::Shared);
        Confinement::Process { mode, guest_memory, network }
    }

    #[test]
    fn what_is_not_said_is_twice_the_machines_memory() {
        let twice = 2 * sandbox_profiles::machine_memory();
        assert_eq!(confinement(None).guest_memory(), twice);
        assert_eq!(confinement(Some(0)).guest_memory(), 0);
        assert_eq!(connection(confinement(Some(u64::MAX)), &mut []).unwrap(), 0);
    }
}
