//! Threads of this program. Each may have to signal what a client brought, and none waits in that.

use std::io;

use crate::sys;

/// Starts a thread.
///
/// # Errors
/// When the system has no more.
pub(crate) fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let run = move || {
        if let Err(error) = sys::bound_signals() {
            tracing::warn!("a client's event that is full can hold a thread up: {error}");
        }
        run();
    };
    std::thread::Builder::new().name(name).spawn(run).map(drop)
}
