//! What the system says of how a process is confined: `device-proc doctor --ask` asks it of device
//! processes; of a `cordon serve` there is nothing to ask.

use crate::Failure;
use crate::inspect::process::Facts;

/// Says that there is nothing to ask.
pub(crate) fn facts(pid: u32) -> Result<Facts, Failure> {
    Err(format!(
        "macOS does not say what confines process {pid}; a cordon serve is not confined there"
    )
    .into())
}
