//! How long something takes on a machine that is busy with other things, or not there at all for
//! seconds, as virtual machines are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(5);
/// A tick that takes longer was not a tick of this machine's.
const LATE: Duration = Duration::from_millis(20);

/// Measures time in which this process was let run when it wanted to: what is measured was let run
/// too, or had nothing to do.
pub struct Stopwatch {
    began: Instant,
    over: Arc<AtomicBool>,
    ticks: JoinHandle<Duration>,
}

impl Stopwatch {
    /// Begins.
    #[must_use]
    pub fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let ticks = std::thread::spawn(move || {
            let (mut lost, mut last) = (Duration::ZERO, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                let now = Instant::now();
                let taken = now - last;
                last = now;
                lost += if taken > LATE { taken - TICK } else { Duration::ZERO };
            }
            lost
        });
        Self { began: Instant::now(), over, ticks }
    }

    /// Ends; the time that counts.
    ///
    /// # Panics
    /// Never: the thread that counts does not.
    #[must_use]
    pub fn stop(self) -> Duration {
        let all = self.began.elapsed();
        self.over.store(true, Ordering::Relaxed);
        all.saturating_sub(self.ticks.join().unwrap())
    }
}
