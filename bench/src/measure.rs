//! Samples, and how two things are measured in one run: in turns, so that whatever the machine does to one it
//! does to the other.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::rows::Failure;

/// Calls of one turn, at most.
const TURN: u32 = 100_000;

/// How long things took, in nanoseconds, or how much they came to in the unit of their row.
#[derive(Clone)]
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    /// None yet.
    pub(crate) fn new() -> Self {
        // Up to a minute, three digits; the bounds are fit, so this does not fail.
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self(histogram.unwrap_or_else(|_| Histogram::new(3).unwrap_or_else(|_| unreachable!())))
    }

    /// Adds one; at least 1.
    pub(crate) fn add(&mut self, value: u64) {
        self.0.saturating_record(value.max(1));
    }

    /// The value that `part` of the samples, 0 to 1, do not exceed.
    pub(crate) fn quantile(&self, part: f64) -> u64 {
        self.0.value_at_quantile(part)
    }

    /// Half of them.
    pub(crate) fn median(&self) -> u64 {
        self.quantile(0.5)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One value that is all there is to say.
    pub(crate) fn of(value: u64) -> Self {
        let mut samples = Self::new();
        samples.add(value);
        samples
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

/// A time as a number.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Subject and baseline, in that order.
pub(crate) type Pair = (Samples, Samples);

/// What is timed.
pub(crate) type Call<'c> = &'c mut dyn FnMut() -> Result<(), Failure>;
/// What times itself, in nanoseconds.
pub(crate) type Timed<'c> = &'c mut dyn FnMut() -> Result<u64, Failure>;
/// What several threads call at once, each with its number.
pub(crate) type Shared<'c> = &'c (dyn Fn(usize) -> Result<(), Failure> + Sync);

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

    /// What a call takes.
    pub(crate) fn once(&self, call: Call<'_>) -> Result<u64, Failure> {
        let before = Instant::now();
        call()?;
        Ok(nanoseconds(before.elapsed()).saturating_sub(self.clock))
    }

    /// What one of many calls in a row takes, for those that are shorter than a look at the clock.
    pub(crate) fn one_of(&self, many: u32, call: Call<'_>) -> Result<u64, Failure> {
        let mut all = || (0..many).try_for_each(|_| call());
        Ok(self.once(&mut all)? / u64::from(many.max(1)))
    }

    /// Two things in turns, each call by itself.
    pub(crate) fn pair(&self, subject: Call<'_>, baseline: Call<'_>) -> Result<Pair, Failure> {
        self.pair_of(&mut || self.once(subject), &mut || self.once(baseline))
    }

    /// Two things in turns that say themselves what each call took.
    pub(crate) fn pair_of(&self, subject: Timed<'_>, baseline: Timed<'_>) -> Result<Pair, Failure> {
        self.rounds(|samples| {
            self.turn(subject, &mut samples.0)?;
            self.turn(baseline, &mut samples.1)
        })
    }

    /// Rounds of something that takes long: at least one, and more until `times` the time of a pair is
    /// over.
    pub(crate) fn repeat(&self, times: u32, round: Call<'_>) -> Result<(), Failure> {
        let end = Instant::now() + self.time * times;
        loop {
            round()?;
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// Rounds that each measure subject and baseline.
    fn rounds(
        &self,
        mut round: impl FnMut(&mut Pair) -> Result<(), Failure>,
    ) -> Result<Pair, Failure> {
        let mut samples = (Samples::new(), Samples::new());
        self.repeat(1, &mut || round(&mut samples))?;
        Ok(samples)
    }

    /// One turn of something that says itself what each call took: an eighth of the time of a pair.
    pub(crate) fn turn(&self, call: Timed<'_>, samples: &mut Samples) -> Result<(), Failure> {
        // What comes first finds caches and processes cold, and does not count.
        let began = Instant::now();
        let (counted, end) = (began + self.time / 64, began + self.time / 8);
        for _ in 0..TURN {
            let before = Instant::now();
            let taken = call()?;
            if before > counted {
                samples.add(taken);
            }
            if before > end {
                break;
            }
        }
        Ok(())
    }

    /// Two things in turns, both asleep before each call.
    pub(crate) fn cold_pair(&self, subject: Call<'_>, baseline: Call<'_>) -> Result<Pair, Failure> {
        const ASLEEP: Duration = Duration::from_millis(2);
        self.rounds(|samples| {
            std::thread::sleep(ASLEEP);
            samples.0.add(self.once(subject)?);
            std::thread::sleep(ASLEEP);
            samples.1.add(self.once(baseline)?);
            Ok(())
        })
    }

    /// What a call costs when `threads` make it at once, each with its number: the time of one turn over
    /// its calls, in turns with one thread alone that calls `alone`.
    pub(crate) fn at_once(
        &self,
        threads: usize,
        call: Shared<'_>,
        alone: Shared<'_>,
    ) -> Result<Pair, Failure> {
        self.rounds(|samples| {
            samples.0.add(together(threads, call)?);
            samples.1.add(together(1, alone)?);
            Ok(())
        })
    }
}

/// Nanoseconds of a call when so many threads make it for a while.
fn together(threads: usize, call: Shared<'_>) -> Result<u64, Failure> {
    const WHILE: Duration = Duration::from_millis(20);
    let before = Instant::now();
    let calls = std::thread::scope(|scope| {
        let calls = move |thread| -> Result<u64, Failure> {
            let mut calls = 0;
            while before.elapsed() < WHILE {
                for _ in 0..16 {
                    call(thread)?;
                }
                calls += 16;
            }
            Ok(calls)
        };
        let threads: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || calls(thread))).collect();
        threads.into_iter().try_fold(0, |sum, thread| {
            Ok::<_, Failure>(sum + thread.join().map_err(|_| "a thread panicked")??)
        })
    })?;
    Ok(nanoseconds(before.elapsed()) / calls.max(1))
}
