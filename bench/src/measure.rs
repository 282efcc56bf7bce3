//! Samples, and how two things are measured in one run: in turns, so that whatever the machine does to one it
//! does to the other.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Calls of one turn, at most.
const TURN: u32 = 100_000;

/// How long things took, in nanoseconds.
#[derive(Clone)]
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    /// None yet.
    pub(crate) fn new() -> Self {
        // Up to a minute, three digits; the bounds are fit, so this does not fail.
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self(histogram.unwrap_or_else(|_| Histogram::new(3).unwrap_or_else(|_| unreachable!())))
    }

    /// Adds one.
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds.max(1));
    }

    /// The value that `part` of the samples, 0 to 1, do not exceed.
    pub(crate) fn quantile(&self, part: f64) -> u64 {
        self.0.value_at_quantile(part)
    }

    /// Half of them.
    pub(crate) fn median(&self) -> u64 {
        self.quantile(0.5)
    }
}

/// How long looking at the clock takes: what each sample has too much.
pub(crate) fn clock() -> u64 {
    let mut samples = Samples::new();
    for _ in 0..10_000 {
        samples.add(nanoseconds(Instant::now().elapsed()));
    }
    samples.median()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Measures.
pub(crate) struct Meter {
    /// For how long each pair is measured.
    pub(crate) time: Duration,
    clock: u64,
}

impl Meter {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, clock: clock() }
    }

    /// One call.
    pub(crate) fn once(&self, call: &mut dyn FnMut()) -> u64 {
        let before = Instant::now();
        call();
        nanoseconds(before.elapsed()).saturating_sub(self.clock)
    }

    /// Two things in turns, each call by itself.
    pub(crate) fn pair(
        &self,
        subject: &mut dyn FnMut(),
        baseline: &mut dyn FnMut(),
    ) -> (Samples, Samples) {
        let end = Instant::now() + self.time;
        let mut samples = (Samples::new(), Samples::new());
        while Instant::now() < end {
            self.turn(subject, &mut samples.0);
            self.turn(baseline, &mut samples.1);
        }
        samples
    }

    fn turn(&self, call: &mut dyn FnMut(), samples: &mut Samples) {
        // What comes first finds caches and processes cold, and does not count.
        let began = Instant::now();
        let (counted, end) = (began + self.time / 64, began + self.time / 8);
        for _ in 0..TURN {
            let before = Instant::now();
            let taken = self.once(call);
            if before > counted {
                samples.add(taken);
            }
            if before > end {
                break;
            }
        }
    }

    /// Two things in turns, both asleep before each call.
    pub(crate) fn cold_pair(
        &self,
        subject: &mut dyn FnMut(),
        baseline: &mut dyn FnMut(),
    ) -> (Samples, Samples) {
        const ASLEEP: Duration = Duration::from_millis(2);
        let end = Instant::now() + self.time;
        let mut samples = (Samples::new(), Samples::new());
        while Instant::now() < end {
            std::thread::sleep(ASLEEP);
            samples.0.add(self.once(subject));
            std::thread::sleep(ASLEEP);
            samples.1.add(self.once(baseline));
        }
        samples
    }

    /// What a call costs when `threads` make it at once: the time of one turn over its calls, in turns with
    /// one thread alone.
    pub(crate) fn at_once(
        &self,
        threads: usize,
        call: &(dyn Fn(usize) + Sync),
    ) -> (Samples, Samples) {
        let end = Instant::now() + self.time;
        let mut samples = (Samples::new(), Samples::new());
        while Instant::now() < end {
            samples.0.add(together(threads, call));
            samples.1.add(together(1, call));
        }
        samples
    }
}

/// Nanoseconds of a call when so many threads make it for a while.
fn together(threads: usize, call: &(dyn Fn(usize) + Sync)) -> u64 {
    const WHILE: Duration = Duration::from_millis(20);
    let before = Instant::now();
    let calls: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut calls = 0;
                    while before.elapsed() < WHILE {
                        (0..16).for_each(|_| call(thread));
                        calls += 16;
                    }
                    calls
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
    });
    nanoseconds(before.elapsed()) / calls.max(1)
}
