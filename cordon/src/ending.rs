//! The end of a command that a signal interrupts: it ends by itself, in order, and if it does not in
//! time its child processes are killed and its folders removed.

use std::time::{Duration, Instant};

use console::Interrupt;

use crate::{Failure, scratch, sys};

/// How long children are killed again, since others may be started meanwhile.
const KILLING: Duration = Duration::from_millis(200);

/// Catches signals; a command that is still there `grace` after one, or when another one comes, is
/// ended.
pub(crate) fn within(grace: Duration) -> Result<Interrupt, Failure> {
    let interrupt = Interrupt::catch()?;
    interrupt.when_raised(move |urgency| {
        urgency.grace(grace);
        kill_children();
        scratch::remove_all();
        std::process::exit(urgency.signal().status().into());
    })?;
    Ok(interrupt)
}

/// Kills every child, and those that are started in their place.
fn kill_children() {
    let end = Instant::now() + KILLING;
    while Instant::now() < end && sys::children().is_ok_and(|children| !children.is_empty()) {
        sys::kill_children();
        std::thread::sleep(Duration::from_millis(10));
    }
}
