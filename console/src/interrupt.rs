//! SIGINT, SIGTERM and SIGHUP: a value to look at, a descriptor to wait for, and a last resort for
//! a program that does not end by itself.
//!
//! A signal that was ignored when the program was started (nohup, a shell's background job) stays
//! ignored; SIGTERM never does.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::{exit, sys, wait};

/// A signal that asks a program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(c_int);

/// The signals that are caught.
const SIGNALS: [(c_int, &str); 3] =
    [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT"), (libc::SIGHUP, "SIGHUP")];

impl Signal {
    /// The exit status of a program that it ended.
    #[must_use]
    pub fn status(self) -> u8 {
        exit::SIGNAL + u8::try_from(self.0).unwrap_or(0)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = SIGNALS.iter().find(|(signal, _)| *signal == self.0);
        f.write_str(known.map_or("a signal", |(_, name)| name))
    }
}

/// The program was asked to end by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Interrupted by {0}")]
pub struct Interrupted(pub Signal);

/// Has the signals wait, from when it is made until it is dropped: for what a program must do before it can catch
/// them, and must not be ended in. Of one thread, and those that it starts meanwhile; programs that it runs are not
/// concerned. On Linux: elsewhere nothing comes before.
#[derive(Debug)]
pub struct Held(());

impl Held {
    /// They wait from here on.
    #[must_use]
    pub fn begin() -> Self {
        #[cfg(target_os = "linux")]
        sys::set_waiting(caught(), true);
        Self(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        sys::set_waiting(caught(), false);
    }
}

#[derive(Debug)]
struct Inner {
    /// The number of the last signal; 0 before the first.
    signal: Arc<AtomicUsize>,
    /// Readable from the first signal on.
    raised: UnixStream,
}

/// Whether the program was asked to end. Clones look at the same signals.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<Inner>);

impl Interrupt {
    /// Catches the signals from here on.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn catch() -> io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in caught() {
            let value = usize::try_from(number).unwrap_or_default();
            signal_hook::flag::register_usize(number, Arc::clone(&signal), value)?;
        }
        // After the value, which is there when the descriptor says so.
        let raised = pipe()?;
        Ok(Self(Arc::new(Inner { signal, raised })))
    }

    /// The signal that asked the program to end.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        match c_int::try_from(self.0.signal.load(Ordering::Acquire)) {
            Ok(0) | Err(_) => None,
            Ok(number) => Some(Signal(number)),
        }
    }

    /// Goes on only while no signal came.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        self.signal().map_or(Ok(()), |signal| Err(Interrupted(signal)))
    }

    /// Has a thread of its own wait for the first signal and then call `act`, which gives the rest
    /// of the program some time and ends it if it is still there.
    ///
    /// # Errors
    /// When no thread or descriptor is left.
    pub fn when_raised(&self, act: impl FnOnce(&Urgency) + Send + 'static) -> io::Result<()> {
        let signals = pipe()?;
        let interrupt = self.clone();
        let run = move || {
            // One that came already has a byte here only if it came after the registration.
            let soon = interrupt.signal().map(|_| Duration::from_millis(10));
            match wait::readable(&signals, soon) {
                Ok(true) => drop(rustix::io::read(&signals, &mut [0; 1])),
                Ok(false) => {}
                Err(_) => return,
            }
            if let Some(signal) = interrupt.signal() {
                act(&Urgency { signal, signals });
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(run).map(drop)
    }
}

impl AsFd for Interrupt {
    /// Readable once a signal came.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.raised.as_fd()
    }
}

/// A signal that has come, and how much time is left.
#[derive(Debug)]
pub struct Urgency {
    signal: Signal,
    signals: UnixStream,
}

impl Urgency {
    /// The signal.
    #[must_use]
    pub fn signal(&self) -> Signal {
        self.signal
    }

    /// Waits for `time`, or until somebody asks again.
    pub fn grace(&self, time: Duration) {
        if matches!(wait::readable(&self.signals, Some(time)), Ok(true)) {
            let _ = rustix::io::read(&self.signals, &mut [0; 1]);
        }
    }
}

/// The numbers of the signals that this program catches.
fn caught() -> impl Iterator<Item = c_int> {
    let numbers = SIGNALS.iter().map(|(number, _)| *number);
    numbers.filter(|number| *number == libc::SIGTERM || !sys::is_ignored(*number))
}

/// Gets a byte for each signal.
fn pipe() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for number in caught() {
        signal_hook::low_level::pipe::register(number, write.try_clone()?)?;
    }
    Ok(read)
}
