//! What must be tried first on a Mac, in order.

use console::say;

use crate::Failure;

/// The questions that reading could not settle (docs/macos.md), and the command for each.
const BRINGUP: [(&str, &str); 6] = [
    (
        "a process that opened, claimed and mapped goes on working once it is confined, and cannot \
         open again",
        "cordon inspect BB:DD.F --attach, then sandbox-probe function --attempt=second-dext-connection",
    ),
    (
        "a memory entry of a mapped BAR can be mapped by the VMM and by its hypervisor",
        "cordon inspect BB:DD.F --attach lists windows that came; cordon serve --windows trapped does without",
    ),
    (
        "the death of a process, or of the dext, while device memory is mapped hurts nobody",
        "cordon torture on dext-sim; then kill -9 of each process under cordon serve",
    ),
    (
        "DMA reaches guest RAM that the connection process mapped from a descriptor",
        "cordon serve --dma companion --companion-socket … with the guest's own driver",
    ),
    ("an io_connect_t that is sent ends its sender", "(nothing here sends one)"),
    (
        "messages with descriptors after confinement, and the profiles' probes, on each macOS",
        "cordon doctor; cordon demo",
    ),
];

/// Prints them.
pub(super) fn print() -> Result<(), Failure> {
    say!("None of this has run on a Mac yet. To be tried in this order (docs/macos.md):")?;
    for (number, (question, command)) in (1..).zip(BRINGUP) {
        say!("{number}. whether {question}\n   {command}")?;
    }
    Ok(())
}
