//! Both sides of a lane over real shared memory and events, in threads; and a server that lies.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cordon_ipc::lane::{Caller, LaneError, LaneHandles, SLOTS, Server, Wait};
use cordon_ipc::poll::{self, Source};
use cordon_ipc::wire::common::{Failure, FailureKind};
use cordon_ipc::wire::function::{Access, Space};
use cordon_ipc::{Deadline, Event, Handles, SharedMemory, window};

fn join(handles: &LaneHandles, looks: bool) -> Server {
    let owned = handles.borrowed().into_iter().map(|fd| fd.try_clone_to_owned().unwrap());
    Server::join(Handles::from(owned.collect::<Vec<_>>()), looks).unwrap()
}

/// A caller's end, with what tells it of a death.
struct Line {
    caller: Caller,
    dead: AtomicBool,
    died: Event,
}

impl Line {
    fn new() -> (Arc<Self>, LaneHandles) {
        let (caller, handles) = Caller::new().unwrap();
        let line = Self { caller, dead: AtomicBool::new(false), died: Event::new().unwrap() };
        (Arc::new(line), handles)
    }

    fn call(&self, offset: u64, time: Duration) -> Result<Result<u64, Failure>, LaneError> {
        let access = Access::read(Space::Bar(0), offset, 8);
        let is_dead = || self.dead.load(Ordering::Acquire);
        self.caller.call(
            &access,
            || {},
            is_dead,
            || Wait {
                died: self.died.as_fd(),
                until: Deadline::after(time),
                overdue: Instant::now() + time,
            },
        )
    }

    fn die(&self) {
        self.dead.store(true, Ordering::Release);
        self.died.signaller().unwrap().signal();
    }
}

const LONG: Duration = Duration::from_secs(20);

/// Serves until `done`: the loop of a function process, with nothing but a lane in it.
fn serve(mut server: Server, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        while let Some(taken) = server.take() {
            let access = taken.access().unwrap();
            let outcome = match access.offset % 16 {
                15 => {
                    let message = format!("no {}", access.offset);
                    Err(Failure { kind: FailureKind::Io, code: Some(7), message })
                }
                _ => Ok(access.offset * 3),
            };
            server.answer(&taken, &outcome);
        }
        if server.look() || !server.will_sleep() {
            continue;
        }
        let soon = Deadline::after(Duration::from_millis(20));
        let ready = poll::wait(&[Source::readable(&server, ())], Some(soon)).unwrap();
        server.woke(!ready.is_empty()).unwrap();
    }
}

#[test]
fn many_threads_get_their_own_answers_looking_or_not() {
    for looks in [true, false] {
        let (line, handles) = Line::new();
        let server = join(&handles, looks);
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let serving = std::thread::spawn(move || serve(server, &stop));
        // More threads than slots: those that find none taken go another way.
        let full: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..SLOTS as u64 + 3)
                .map(|thread| {
                    let line = &line;
                    scope.spawn(move || {
                        let mut full = 0;
                        for number in 0..2_000 {
                            let offset = thread * 100_000 + number;
                            match line.call(offset, LONG) {
                                Ok(Ok(value)) => assert_eq!(value, offset * 3),
                                Ok(Err(failure)) => {
                                    assert_eq!(offset % 16, 15);
                                    assert_eq!(failure.message, format!("no {offset}"));
                                    assert_eq!(failure.code, Some(7));
                                }
                                Err(LaneError::Full) => full += 1,
                                Err(error) => panic!("{error:?}"),
                            }
                            if number % 500 == 0 {
                                // Long enough for the server to sleep.
                                std::thread::sleep(Duration::from_millis(2));
                            }
                        }
                        full
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        println!("{full} of {} calls found no slot", 2_000 * (SLOTS + 3));
        done.store(true, Ordering::Release);
        serving.join().unwrap();
    }
}

#[test]
fn a_caller_that_gives_up_leaves_its_slot_until_the_answer_comes() {
    let (line, handles) = Line::new();
    let mut server = join(&handles, true);
    let short = Duration::from_millis(5);
    for offset in 0..SLOTS as u64 {
        assert!(matches!(line.call(offset, short), Err(LaneError::TimedOut { .. })));
    }
    assert!(matches!(line.call(9, short), Err(LaneError::Full)));
    std::thread::sleep(short);
    assert!(line.caller.is_overdue());
    // A late answer is nobody's: whoever has the slot next gets its own.
    let first = server.take().unwrap();
    server.answer(&first, &Ok(1));
    let line = &line;
    std::thread::scope(|scope| {
        let call = scope.spawn(move || line.call(100, LONG));
        let taken = loop {
            match server.take() {
                Some(taken) if taken.access().unwrap().offset == 100 => break taken,
                Some(late) => server.answer(&late, &Ok(2)),
                None => std::thread::yield_now(),
            }
        };
        server.answer(&taken, &Ok(3));
        assert_eq!(call.join().unwrap().unwrap().unwrap(), 3);
    });
    assert!(!line.caller.is_overdue());
}

#[test]
fn a_death_ends_a_call_at_once() {
    let (line, _handles) = Line::new();
    let dying = Arc::clone(&line);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        dying.die();
    });
    let began = Instant::now();
    assert!(matches!(line.call(0, LONG), Err(LaneError::Dead { .. })));
    assert!(began.elapsed() < LONG / 2);
    thread.join().unwrap();
    assert!(matches!(line.call(0, LONG), Err(LaneError::Dead { .. })));
}

/// A server that wakes its caller all the time and never answers.
#[test]
fn a_caller_that_is_only_woken_gives_up_at_its_deadline() {
    let (line, handles) = Line::new();
    let wakes = handles.borrowed()[2].try_clone_to_owned().unwrap();
    let wakes = cordon_ipc::event::Signaller::from_trusted(wakes);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a caller that never gives up fails and does not hang.
            let end = Instant::now() + LONG;
            while !done.load(Ordering::Acquire) && Instant::now() < end {
                wakes.signal();
            }
        });
        let began = Instant::now();
        let outcome = line.call(0, Duration::from_millis(20));
        done.store(true, Ordering::Release);
        assert!(matches!(outcome, Err(LaneError::TimedOut { .. })), "{outcome:?}");
        assert!(began.elapsed() < LONG / 2);
    });
}

#[test]
fn what_is_no_lane_is_not_joined() {
    let (_, handles) = Line::new();
    let owned = |many: usize| {
        let some = handles.borrowed();
        let some = some.iter().take(many).map(|fd| fd.try_clone_to_owned().unwrap());
        Handles::from(some.collect::<Vec<_>>())
    };
    for many in 0..SLOTS + 2 {
        assert!(Server::join(owned(many), true).is_err(), "{many}");
    }
    let mut small = vec![SharedMemory::create("small", 4096).unwrap().as_fd().try_clone_to_owned()];
    small.extend(owned(SLOTS + 2).skip(1).map(Ok));
    let small: Vec<_> = small.into_iter().map(Result::unwrap).collect();
    assert!(Server::join(Handles::from(small), true).is_err());
}

/// A server that rewrites every word of the lane at every moment: each call ends by its deadline with
/// something that was checked, and nothing of the caller's is lost.
#[test]
fn a_server_that_rewrites_everything_gains_nothing() {
    let short = Duration::from_millis(1);
    let mut seen = [0; 4];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..40 {
        let (line, handles) = Line::new();
        let memory = handles.borrowed()[0].try_clone_to_owned().unwrap();
        let memory = SharedMemory::measured(memory).unwrap();
        let window = memory.map_all(window::Access::ReadWrite).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let words = memory.size() / 8;
                while !done.load(Ordering::Acquire) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Mostly numbers that are likely to be the one that is waited for.
                    let value = if state.is_multiple_of(8) { state } else { state >> 61 };
                    window.store_u64((state >> 8) % words * 8, value).unwrap();
                }
            });
            for number in 0..20 {
                let began = Instant::now();
                let kind = match line.call(number, short) {
                    Ok(_) => 0,
                    Err(LaneError::Nonsense) => 1,
                    Err(LaneError::TimedOut { .. }) => 2,
                    Err(LaneError::Full) => 3,
                    Err(error) => panic!("{error:?}"),
                };
                seen[kind] += 1;
                assert!(began.elapsed() < LONG);
                line.caller.is_overdue();
            }
            done.store(true, Ordering::Release);
        });
    }
    println!("answered {}, nonsense {}, timed out {}, full {}", seen[0], seen[1], seen[2], seen[3]);
    assert!(seen[0] + seen[1] > 0, "the numbers are hit");
}
