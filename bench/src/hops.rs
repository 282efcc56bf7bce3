//! An interrupt without Cordon: the same wake-ups by the same primitives, and nothing between them.
//!
//! ```text
//! dext (a thread of it polls the device) ──event──▶ function process ──event──▶ VMM
//! raiser (a thread that polls a number)  ──event──▶ forwarder        ──event──▶ waiter
//! ```
//!
//! Each side is a process of its own except for the raiser, which is awake when it raises.

use std::io;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::poll::wait_readable;
use ipc::{Deadline, Event};
use rustix::time::{ClockId, clock_gettime};

/// The option that makes a forwarder of this program.
pub(crate) const FORWARD: &str = "--forward";

/// How long the raiser looks for the next number without a pause, and the pause: as the simulated devices do.
const AWAKE: Duration = Duration::from_micros(100);
const PAUSE: Duration = Duration::from_micros(50);

/// Nanoseconds of the clock that all processes share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Waits until `event` is readable; the time then. The event is cleared.
pub(crate) fn wait(event: &Event) -> io::Result<u64> {
    let came = wait_readable(event, Deadline::after(Duration::from_secs(5)))?;
    let now = now();
    event.clear()?;
    if came { Ok(now) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// See the module.
pub(crate) struct Hops {
    forwarder: Child,
    raiser: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    number: u64,
    end: Event,
}

#[derive(Default)]
struct Shared {
    number: AtomicU64,
    /// When it was raised last.
    raised: AtomicU64,
    ended: AtomicBool,
}

impl Hops {
    /// Starts the forwarder and the raiser.
    ///
    /// # Errors
    /// What starting a process, a thread or an event reports.
    pub(crate) fn start() -> io::Result<Self> {
        let (begin, end) = (Event::new()?, Event::new()?);
        let forwarder = Command::new(std::env::current_exe()?)
            .arg(FORWARD)
            .stdin(Stdio::from(begin.as_fd().try_clone_to_owned()?))
            .stdout(Stdio::from(end.signaller()?.as_fd().try_clone_to_owned()?))
            .spawn()?;
        let (shared, raises) = (Arc::new(Shared::default()), begin.signaller()?);
        let theirs = Arc::clone(&shared);
        let raiser = std::thread::spawn(move || raise(&theirs, &raises));
        Ok(Self { forwarder, raiser: Some(raiser), shared, number: 0, end })
    }

    /// One interrupt, from its being raised to its being readable here.
    ///
    /// # Errors
    /// When it does not come.
    pub(crate) fn once(&mut self) -> io::Result<u64> {
        self.number += 1;
        self.shared.number.store(self.number, Ordering::Release);
        let seen = wait(&self.end)?;
        Ok(seen.saturating_sub(self.shared.raised.load(Ordering::Acquire)))
    }
}

fn raise(shared: &Shared, event: &Signaller) {
    let (mut seen, mut last) = (0, Instant::now());
    while !shared.ended.load(Ordering::Relaxed) {
        let number = shared.number.load(Ordering::Acquire);
        if number != seen {
            (seen, last) = (number, Instant::now());
            shared.raised.store(now(), Ordering::Release);
            event.signal();
        } else if last.elapsed() < AWAKE {
            std::thread::yield_now();
        } else {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Hops {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.raiser.take().map(JoinHandle::join);
        let _ = self.forwarder.kill();
        let _ = self.forwarder.wait();
    }
}

/// What the forwarder does until it is killed or its parent is gone: waits for its standard input, an event,
/// and signals its standard output, another.
///
/// # Errors
/// What waiting, reading or writing reports.
pub(crate) fn forward() -> io::Result<()> {
    let parent = rustix::process::getppid();
    let (input, output) = (io::stdin(), io::stdout());
    let mut count = [0; 8];
    loop {
        if wait_readable(&input, Deadline::after(Duration::from_secs(1)))? {
            rustix::io::read(&input, &mut count)?;
            rustix::io::write(&output, &1u64.to_ne_bytes())?;
        } else if rustix::process::getppid() != parent {
            return Ok(());
        }
    }
}
