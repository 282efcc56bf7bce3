//! What an attack is measured by: the neighbour's time and errors, and what our side holds.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cordon_tests::{eventually, verdict};

use crate::neighbour::Neighbour;

/// A neighbour's 99th percentile under attack: at most this, or [`TIMES`] of what it is in quiet. Of a machine
/// of two processors on which other things run.
const LONGEST: Duration = Duration::from_millis(50);
const TIMES: u32 = 10;
/// Operations of the neighbour's that are waited for, so that there is a percentile.
const OPERATIONS: usize = 200;

/// What our side may hold more during an attack than before it, and what may be left afterwards: what an
/// allocator keeps, and nothing else.
const MOST: Usage = Usage { descriptors: 400, threads: 40, private_kib: 64 << 10 };
const LEFT: Usage = Usage { descriptors: 0, threads: 0, private_kib: 12 << 10 };

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    /// Private memory that is there, in KiB.
    pub(crate) private_kib: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        Self { descriptors, threads: number("Threads:"), private_kib: number("RssAnon:") }
    }

    fn more_than(self, before: Self) -> Self {
        Self {
            descriptors: self.descriptors.saturating_sub(before.descriptors),
            threads: self.threads.saturating_sub(before.threads),
            private_kib: self.private_kib.saturating_sub(before.private_kib),
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            private_kib: self.private_kib.max(other.private_kib),
        }
    }

    fn is_within(self, budget: Self) -> bool {
        self.descriptors <= budget.descriptors
            && self.threads <= budget.threads
            && self.private_kib <= budget.private_kib
    }
}

/// Looks at a process all the time.
struct Meter {
    over: Arc<AtomicBool>,
    peak: Arc<Mutex<Usage>>,
    thread: std::thread::JoinHandle<()>,
}

impl Meter {
    fn start(pid: u32) -> Self {
        let (over, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let (stop, into) = (Arc::clone(&over), Arc::clone(&peak));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let now = Usage::of(pid);
                let mut peak = into.lock().unwrap();
                *peak = now.most(*peak);
                drop(peak);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { over, peak, thread }
    }

    fn stop(self) -> Usage {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        *self.peak.lock().unwrap()
    }
}

/// Where attacks are made: whose neighbour works meanwhile, and which process is ours.
pub(crate) struct Stage<'s> {
    pub(crate) neighbour: &'s Neighbour,
    pub(crate) ours: u32,
    /// The longest 99th percentile without an attack.
    quiet: Cell<Duration>,
}

/// The 99th percentile.
fn percentile(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() * 99 / 100).copied().unwrap_or_default()
}

impl<'s> Stage<'s> {
    /// Measures the neighbour while nobody attacks.
    pub(crate) fn new(neighbour: &'s Neighbour, ours: u32) -> Self {
        let stage = Self { neighbour, ours, quiet: Cell::default() };
        stage.measure();
        stage
    }

    fn measure(&self) {
        self.neighbour.take();
        self.neighbour.wait_for(2 * OPERATIONS);
        let (samples, errors) = self.neighbour.take();
        assert_eq!(errors, Vec::<String>::new());
        self.quiet.set(self.quiet.get().max(percentile(samples)));
    }

    fn bound(&self) -> Duration {
        LONGEST.max(TIMES * self.quiet.get())
    }
}

/// All attacks so far.
#[derive(Default)]
pub(crate) struct Ledger {
    tried: usize,
    failed: Vec<String>,
    errors: usize,
    worst: Duration,
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

impl Ledger {
    /// Makes an attack, which says what came of it, or in which way it was not held.
    pub(crate) fn attack(
        &mut self,
        stage: &Stage<'_>,
        name: &str,
        attack: impl FnOnce() -> Result<String, String>,
    ) {
        let before = Usage::of(stage.ours);
        let began = Instant::now();
        stage.neighbour.take();
        let meter = Meter::start(stage.ours);
        let outcome = catch_unwind(AssertUnwindSafe(attack))
            .unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_text(&*panic))));
        stage.neighbour.wait_for(OPERATIONS);
        let (samples, errors) = stage.neighbour.take();
        let (operations, p99) = (samples.len(), percentile(samples));
        let most = meter.stop().more_than(before);
        let mut left = Usage::default();
        let returned = eventually(|| {
            left = Usage::of(stage.ours).more_than(before);
            left.is_within(LEFT)
        });
        let mut wrong: Vec<String> = outcome.as_ref().err().cloned().into_iter().collect();
        if !errors.is_empty() {
            wrong.push(format!("errors of the neighbour: {}", errors.join("; ")));
        }
        if p99 > stage.bound() {
            // The machine may be busier with other things than it was: what counts is quiet on either side.
            stage.measure();
        }
        if p99 > stage.bound() {
            let (bound, quiet) = (stage.bound(), stage.quiet.get());
            wrong.push(format!("p99 {p99:?} is over {bound:?}, in quiet it is {quiet:?}"));
        }
        if operations < OPERATIONS {
            wrong.push(format!("{operations} operations of the neighbour, which stands still"));
        }
        if !most.is_within(MOST) {
            wrong.push(format!("meanwhile {most:?} more, over {MOST:?}"));
        }
        if !returned {
            wrong.push(format!("afterwards {left:?} more, over {LEFT:?}"));
        }
        self.tried += 1;
        self.errors += errors.len();
        self.worst = self.worst.max(p99);
        let word = if wrong.is_empty() { "held" } else { "NOT HELD" };
        let what = outcome.unwrap_or_default();
        verdict(&format!(
            "attack: {name} ... {word} ({what}; neighbour p99 {:.1} ms of {operations}, {} errors; \
             +{} fds, +{} KiB, +{} threads, then +{}, +{}, +{}; {:.1} s){}",
            p99.as_secs_f64() * 1e3,
            errors.len(),
            most.descriptors,
            most.private_kib,
            most.threads,
            left.descriptors,
            left.private_kib,
            left.threads,
            began.elapsed().as_secs_f64(),
            wrong.iter().map(|why| format!("\n    {why}")).collect::<String>(),
        ));
        if !wrong.is_empty() {
            self.failed.push(format!("{name}: {}", wrong.join("; ")));
        }
    }

    /// One line over all of them; fails if one was not held.
    pub(crate) fn close(self) {
        let held = self.tried - self.failed.len();
        verdict(&format!(
            "attacks: {} tried, {held} held; neighbour p99 {:.1} ms, {} errors",
            self.tried,
            self.worst.as_secs_f64() * 1e3,
            self.errors
        ));
        assert!(self.failed.is_empty(), "{:#?}", self.failed);
    }
}
