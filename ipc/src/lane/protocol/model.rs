//! The steps of both sides under loom, which tries their interleavings and the orders that the memory
//! model allows. On Linux only: the steps are the same everywhere.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;

use loom::sync::atomic as model;
use loom::thread;

use super::*;

impl Word for model::AtomicU64 {
    fn acquire(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn release(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    fn load(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn store(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }

    fn full_fence() {
        model::fence(Ordering::SeqCst);
    }
}

/// Words of a lane, and a wake-up for each side: what an event is, without the waiting.
struct Lane {
    words: Vec<model::AtomicU64>,
    server: Wake,
    callers: [Wake; 2],
}

/// Loom finds the deadlock when whoever waits is never woken.
struct Wake {
    signalled: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Wake {
    fn new() -> Self {
        Self { signalled: loom::sync::Mutex::new(false), changed: loom::sync::Condvar::new() }
    }

    fn signal(&self) {
        *self.signalled.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut signalled = self.signalled.lock().unwrap();
        while !*signalled {
            signalled = self.changed.wait(signalled).unwrap();
        }
        *signalled = false;
    }
}

impl Lane {
    fn new() -> Arc<Self> {
        let words = (0..WORDS).map(|_| model::AtomicU64::new(0)).collect();
        Arc::new(Self { words, server: Wake::new(), callers: [Wake::new(), Wake::new()] })
    }

    /// One request of a caller that never spins.
    fn call(&self, at: usize, number: u64) -> Option<Result<u64, Failure>> {
        let access = Access::read(Space::Bar(1), number * 8, 4);
        if calling::publish(&self.words, at, number, &access) {
            self.server.signal();
        }
        loop {
            calling::will_sleep(&self.words, at);
            if calling::is_answered(&self.words, at, number) {
                break;
            }
            self.callers[at].wait();
        }
        calling::woke(&self.words, at);
        calling::outcome(&self.words, at)
    }

    /// Serves `many` requests of the first `slots` slots, and never spins.
    fn serve(&self, slots: usize, many: usize) {
        let mut served = [0; 2];
        let mut left = many;
        while left > 0 {
            let asked = |served: &[u64; 2]| {
                (0..slots).find_map(|at| Some((at, serving::request(&self.words, at, served[at])?)))
            };
            let Some((at, number)) = asked(&served) else {
                serving::will_sleep(&self.words);
                if asked(&served).is_none() {
                    self.server.wait();
                }
                serving::woke(&self.words);
                continue;
            };
            let access = serving::access(&self.words, at).unwrap();
            served[at] = number;
            left -= 1;
            if serving::answer(&self.words, at, number, &Ok(access.offset + 1)) {
                self.callers[at].signal();
            }
        }
    }
}

/// Tries the interleavings with at most `preemptions` switches that nobody asked for.
fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(check);
}

#[test]
fn no_interleaving_loses_a_wake_up_or_an_answer() {
    model(3, || {
        let lane = Lane::new();
        let server = Arc::clone(&lane);
        let serving = thread::spawn(move || server.serve(1, 2));
        for number in 1..=2 {
            assert_eq!(lane.call(0, number).unwrap().unwrap(), number * 8 + 1);
        }
        serving.join().unwrap();
    });
}

#[test]
fn no_interleaving_of_two_callers_loses_a_wake_up_or_an_answer() {
    model(2, || {
        let lane = Lane::new();
        let (server, other) = (Arc::clone(&lane), Arc::clone(&lane));
        let serving = thread::spawn(move || server.serve(2, 2));
        let calling = thread::spawn(move || other.call(1, 1).unwrap().unwrap());
        assert_eq!(lane.call(0, 1).unwrap().unwrap(), 9);
        assert_eq!(calling.join().unwrap(), 9);
        serving.join().unwrap();
    });
}

/// The model would notice: with the look after the promise to sleep left out, it deadlocks.
#[test]
#[should_panic(expected = "deadlock")]
fn a_server_that_does_not_look_again_is_found_out() {
    model(3, || {
        let lane = Lane::new();
        let server = Arc::clone(&lane);
        let serving = thread::spawn(move || {
            if serving::request(&server.words, 0, 0).is_none() {
                serving::will_sleep(&server.words);
                server.server.wait();
            }
        });
        if calling::publish(&lane.words, 0, 1, &Access::read(Space::Config, 0, 4)) {
            lane.server.signal();
        }
        serving.join().unwrap();
    });
}
