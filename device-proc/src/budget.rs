//! How much memory a process will be handed after it is confined: the part of its budget of addresses
//! that is not its own (`sandbox_profiles::confine`).
//!
//! Guest memory arrives region by region, and the VMM may plug more in at any time, so it is not
//! counted when it comes but bounded at the start: by `--guest-memory` where the VMM side says it, or by
//! twice the machine's memory. A device reaches guest memory only while it is pinned, so a guest with a
//! device has no more than the machine; twice leaves room for the same memory at two addresses. What the
//! bound is for are page tables, a 512th of it: generous costs little, none at all is what a function
//! process without a companion gets.

use crate::dext::{Client, DextError};
use crate::options::Common;

/// Guest memory of one function.
#[must_use]
pub fn guest_memory(common: &Common) -> u64 {
    common.guest_memory.unwrap_or_else(|| sandbox_profiles::machine_memory().saturating_mul(2))
}

/// What a connection process maps: guest memory for each function, which may belong to different
/// guests, and BARs once they are claimed.
///
/// # Errors
/// [`DextError`] when the dext is gone.
pub fn connection(common: &Common, clients: &mut [Client]) -> Result<u64, DextError> {
    let mut bytes = guest_memory(common).saturating_mul(clients.len() as u64);
    for client in clients {
        for bar in client.bars()?.into_iter().flatten() {
            bytes = bytes.saturating_add(bar.size);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dext::fake::Fake;
    use clap::Parser as _;

    fn common(more: &[&str]) -> Common {
        let line = ["device-proc", "lister", "--dext=iokit"];
        let options = crate::options::Options::parse_from(line.iter().chain(more));
        match options.role {
            crate::options::RoleOptions::Lister { common } => common,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_process_has_room_for_every_functions_guest_and_bars() {
        let (_one, mut first) = Fake::client();
        let (_two, second) = Fake::client();
        let bars: u64 = first.bars().unwrap().iter().flatten().map(|bar| bar.size).sum();
        assert!(bars > 0);
        let mut clients = [first, second];
        let bytes = connection(&common(&["--guest-memory=4096"]), &mut clients).unwrap();
        assert_eq!(bytes, 2 * (4096 + bars));
    }

    #[test]
    fn what_is_not_said_is_twice_the_machines_memory() {
        assert_eq!(guest_memory(&common(&[])), 2 * sandbox_profiles::machine_memory());
        assert_eq!(guest_memory(&common(&["--guest-memory=0"])), 0);
        let most = format!("--guest-memory={}", u64::MAX);
        let (_fake, client) = Fake::client();
        assert_eq!(connection(&common(&[&most]), &mut [client]).unwrap(), u64::MAX);
    }
}
