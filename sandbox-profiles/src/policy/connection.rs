//! What a connection process may do beyond a function process.

use super::Syscall;

/// Added to [`super::FUNCTION`].
pub const CONNECTION: &[Syscall] = &[Syscall {
    name: "sendmsg",
    number: libc::SYS_sendmsg,
    conditions: &[],
    needed_by: "tube: BAR windows to the VMM; simulated dext: the memory behind a registration",
}];
