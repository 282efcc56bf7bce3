//! Children of crosvm's whose end went unnoticed.
//!
//! Nothing here needs crosvm: Cordon's own tests compile this file too.

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// The first of these children that has ended and waits to be reaped. It is not reaped. One that is no child, or
/// no child any more, has not ended.
pub(crate) fn first_ended(mut children: impl Iterator<Item = u32>) -> Option<u32> {
    children.find(|pid| {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        pid.is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), look), Ok(Some(_))))
    })
}
