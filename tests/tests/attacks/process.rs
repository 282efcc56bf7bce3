//! Function and connection processes that are taken over: the program `attacker`, confined as `device-proc`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cordon_tests::{RAM, RAM_BASE, SetAtEnd, address, eventually, is_running};
use cordon_vmm::companion::CompanionConfig;
use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{DmaMode, Function, InterruptIndex, PassthroughDevice as _, Recovery};
use ipc::{Event, SharedMemory};

use crate::group::within;
use crate::ledger::{Ledger, Stage};
use crate::neighbour::Neighbour;
use crate::{ATTACKER, Attackers, Guest, OTHER, SIBLING, is_confined, simulator};

/// What must come of an attack.
#[derive(Clone, Copy)]
enum Expect {
    /// The process ends, or does not start, and what is told of it contains this.
    Ends(&'static str),
    /// It goes on: it does nothing that is forbidden.
    Serves,
    /// Whatever it is, it is over in time.
    Any,
}

use Expect::{Any, Ends, Serves};

/// Of a function process. Its sibling's connection process is the real one.
const OF_A_FUNCTION: &[(&str, Expect)] = &[
    ("serves", Serves),
    ("exits-before-its-greeting", Ends("status 57")),
    ("exits-after-its-greeting", Ends("status 57")),
    ("exits-once-confined", Ends("status 57")),
    ("exits-once-ready", Ends("status 57")),
    ("exits-at-its-first-request", Ends("status 57")),
    ("exits-before-its-first-answer", Ends("status 57")),
    ("exits-after-its-first-answer", Ends("status 57")),
    ("is-silent-once-confined", Ends("become ready")),
    ("is-silent-once-ready", Ends("answer")),
    ("greets-twice", Ends("protocol")),
    ("greets-as-the-other-role", Ends("Connection")),
    ("sends-half-a-header", Ends("header")),
    ("sends-a-length-beyond-all-limits", Ends("length")),
    ("sends-a-length-that-is-not-so", Ends("length")),
    ("sends-a-length-of-nothing", Ends("length")),
    ("sends-an-oversized-frame", Ends("truncated")),
    ("announces-descriptors-that-do-not-come", Ends("descriptors")),
    ("announces-65535-descriptors", Ends("descriptors")),
    ("sets-reserved-bytes", Ends("reserved")),
    ("answers-with-an-unknown-type", Ends("protocol")),
    ("answers-with-nothing", Ends("protocol")),
    ("answers-before-it-is-asked", Ends("protocol")),
    ("answers-what-was-answered-long-ago", Ends("protocol")),
    ("answers-twice", Ends("protocol")),
    ("answers-another-number", Ends("protocol")),
    ("answers-late", Ends("answer")),
    ("answers-with-more-than-was-asked-for", Ends("protocol")),
    ("floods-replies", Ends("protocol")),
    ("floods-replies-as-long-as-may-be", Ends("protocol")),
    ("floods-standard-error-while-it-serves", Serves),
    ("signals-every-event-without-end", Serves),
    ("rewrites-the-lane", Ends("")),
    ("wakes-the-callers-of-the-lane-without-an-answer", Ends("answer")),
    ("says-that-it-has-what-no-device-has", Any),
    ("takes-all-memory", Serves),
    ("takes-all-page-tables", Serves),
    ("takes-descriptors", Ends("forbidden system call")),
    ("makes-threads", Ends("forbidden system call")),
    ("spins-while-it-serves", Serves),
    ("spins-for-ever", Ends("answer")),
];

/// Of a connection process. The neighbour is of another device.
const OF_A_CONNECTION: &[(&str, Expect)] = &[
    ("exits-after-its-greeting", Ends("status 57")),
    ("exits-once-confined", Ends("status 57")),
    ("exits-once-ready", Ends("status 57")),
    ("exits-before-its-first-answer", Ends("status 57")),
    ("exits-after-its-first-answer", Ends("status 57")),
    ("is-silent-once-confined", Ends("become ready")),
    ("is-silent-at-its-first-request", Ends("answer")),
    ("sends-a-length-that-is-not-so", Ends("length")),
    ("sends-an-oversized-frame", Ends("truncated")),
    ("announces-65535-descriptors", Ends("descriptors")),
    ("answers-with-an-unknown-type", Ends("protocol")),
    ("answers-before-it-is-asked", Ends("protocol")),
    ("floods-replies-as-long-as-may-be", Ends("protocol")),
    ("floods-standard-error", Serves),
    ("takes-all-memory", Any),
    ("takes-descriptors", Ends("forbidden system call")),
    ("makes-threads", Ends("forbidden system call")),
    ("spins-for-ever", Ends("answer")),
    ("hands-a-socket-for-memory", Ends("")),
    ("hands-one-socket-for-memory", Ends("")),
    ("hands-a-directory-for-memory", Ends("")),
    ("hands-a-pipe-for-memory", Ends("")),
    ("hands-an-epoll-for-memory", Ends("")),
    ("hands-an-event-for-memory", Ends("")),
    ("hands-a-device-for-memory", Ends("")),
    ("hands-memory-that-is-too-small", Ends("")),
    ("hands-memory-of-no-bytes", Ends("")),
    ("hands-memory-that-is-not-sealed", Ends("")),
    ("hands-memory-that-cannot-be-written", Any),
    ("hands-no-memory", Ends("")),
    ("hands-descriptors-with-every-answer", Any),
    ("says-windows-past-their-memory", Ends("")),
    ("says-windows-past-their-bar", Ends("")),
    ("says-windows-that-wrap", Ends("")),
    ("says-windows-that-are-not-aligned", Ends("")),
    ("says-windows-that-overlap", Ends("")),
    ("says-a-window-without-end", Ends("")),
    ("says-windows-of-bars-that-are-not-there", Ends("")),
    ("says-bars-that-are-not-the-devices", Ends("BAR 0 as")),
    ("says-addresses-that-cannot-be", Any),
];

/// Of function processes that are replaced, and attack again.
const AGAIN_AND_AGAIN: &[&str] =
    &["exits-after-its-first-answer", "floods-replies", "takes-descriptors", "rewrites-the-lane"];

/// How long a process that serves is used.
const TIME: Duration = Duration::from_millis(500);
/// How long one that must end may take: its deadline for a call, and that of being asked for a sign of life.
const LONGEST: Duration = Duration::from_secs(6);
/// How long any call may take: the 4.5 s of a caller, and a busy machine.
const CALL: Duration = Duration::from_secs(6);
/// How long detaching may take.
const DETACH: Duration = Duration::from_secs(3);

pub(crate) fn attacks(ledger: &mut Ledger) {
    let (simulator, ours) = (simulator(), std::process::id());
    let guest = Guest::new(DmaMode::Direct);
    {
        let attackers = Attackers::new(&simulator.endpoint(), Recovery::OFF);
        attackers.attack("nobody", "none");
        let function = guest.attach(&attackers.host, SIBLING);
        let neighbour = Neighbour::of(&function, &guest.ram);
        let stage = Stage::new(&neighbour, ours);
        for (name, expect) in OF_A_FUNCTION {
            ledger.attack(&stage, &format!("function {name}"), || {
                within(name, |attack| {
                    attackers.attack("function", attack);
                    drive(&attackers, *expect, DmaMode::Direct)
                })
            });
        }
        let name = "asks-for-memory-and-keys-of-others";
        ledger.attack(&stage, &format!("function {name}"), || {
            attackers.attack("function", name);
            drive(&attackers, Serves, DmaMode::Companion)
        });
        drop(neighbour);
        attackers.host.detach(&function);
    }
    {
        let attackers = Attackers::new(&simulator.endpoint(), Recovery::OFF);
        attackers.attack("nobody", "none");
        let function = guest.attach(&attackers.host, OTHER);
        let neighbour = Neighbour::of(&function, &guest.ram);
        let stage = Stage::new(&neighbour, ours);
        for (name, expect) in OF_A_CONNECTION {
            ledger.attack(&stage, &format!("connection {name}"), || {
                within(name, |attack| {
                    attackers.attack("connection", attack);
                    drive(&attackers, *expect, DmaMode::Direct)
                })
            });
        }
        // Whenever it ends on the way to the function's place, that is what is told.
        ledger.attack(&stage, "connection exits-once-ready, thirty times", || {
            within("exits-once-ready", |attack| {
                attackers.attack("connection", attack);
                let drive = |_| drive(&attackers, Ends("status 57"), DmaMode::Direct);
                (0..30).try_fold(String::new(), |_, time| drive(time))
            })
        });
        drop(neighbour);
        attackers.host.detach(&function);
    }
    let mut recovery = Recovery::default();
    recovery.timeout = Duration::from_secs(2);
    let attackers = Attackers::new(&simulator.endpoint(), recovery);
    attackers.attack("nobody", "none");
    let function = guest.attach(&attackers.host, SIBLING);
    let neighbour = Neighbour::of(&function, &guest.ram);
    let stage = Stage::new(&neighbour, ours);
    for name in AGAIN_AND_AGAIN {
        ledger.attack(&stage, &format!("function, replaced each time, {name}"), || {
            attackers.attack("function", name);
            drive(&attackers, Any, DmaMode::Direct)
        });
    }
    drop(neighbour);
    attackers.host.detach(&function);
    drop(attackers);
    for function in [SIBLING, ATTACKER, OTHER] {
        simulator.assert_released(function);
    }
}

/// What the attacked side of ours did meanwhile.
#[derive(Default)]
struct Calls {
    answered: AtomicU64,
    refused: AtomicU64,
    longest: AtomicU64,
}

impl Calls {
    fn make<T, E>(&self, call: impl FnOnce() -> Result<T, E>) {
        let began = Instant::now();
        let counter = if call().is_ok() { &self.answered } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        let taken = u64::try_from(began.elapsed().as_millis()).unwrap();
        self.longest.fetch_max(taken, Ordering::Relaxed);
    }
}

/// Attaches the attacker's function, uses it in every way for a while, and detaches it.
fn drive(attackers: &Attackers, expect: Expect, mode: DmaMode) -> Result<String, String> {
    let guest = Guest::new(mode);
    let began = Instant::now();
    let attached = match mode {
        DmaMode::Direct => attackers.host.attach(address(ATTACKER), &guest.container, None),
        DmaMode::Companion => {
            let config = CompanionConfig::new(address("00:05.0"));
            let host = &attackers.host;
            host.attach_with_companion(address(ATTACKER), &guest.container, None, config)
                .map(|(function, _)| function)
        }
    };
    let function = match attached {
        Ok(function) => function,
        Err(error) => {
            let (text, taken) = (ipc::chain(&error), began.elapsed());
            if taken > LONGEST {
                return Err(format!("it was refused after {taken:?} only: {text}"));
            }
            return match expect {
                Ends(why) if !text.contains(why) => Err(format!("no {why:?} in: {text}")),
                Serves => Err(format!("it must start, and did not: {text}")),
                _ => Ok(format!("not attached: {}", short(&text))),
            };
        }
    };
    let confined = [function.pid(), function.connection().pid()].map(|pid| {
        // One that is about to end shows nothing any more.
        let mut shown = Ok(());
        eventually(|| {
            shown = is_confined(pid);
            shown.is_ok() || !is_running(pid)
        });
        if is_running(pid) { shown } else { Ok(()) }
    });
    let calls = Calls::default();
    let death = use_it(&function, &guest, expect, &calls);
    let of_others = given(&function, mode);
    let replaced = function.replacements();
    let before = Instant::now();
    attackers.host.detach(&function);
    let detached = before.elapsed();
    confined.into_iter().collect::<Result<Vec<()>, _>>()?;
    let longest = Duration::from_millis(calls.longest.load(Ordering::Relaxed));
    if longest > CALL || detached > DETACH {
        return Err(format!("a call took {longest:?}, detaching {detached:?}"));
    }
    let of_others = of_others?;
    let counts = [&calls.answered, &calls.refused].map(|one| one.load(Ordering::Relaxed));
    let told = death.as_deref().map_or_else(|| "it serves".to_owned(), short);
    match (expect, death) {
        (Ends(why), Some(death)) if !death.contains(why) => Err(format!("no {why:?} in: {death}")),
        (Ends(_), None) => Err("it was let go on".to_owned()),
        (Serves, Some(death)) => Err(format!("it must serve: {death}")),
        _ => Ok(format!(
            "{told}; {} calls answered, {} refused, the longest {} ms{}{of_others}",
            counts[0],
            counts[1],
            longest.as_millis(),
            if replaced > 0 { format!(", {replaced} replaced") } else { String::new() },
        )),
    }
}

/// A line that fits.
fn short(text: &str) -> String {
    let (_, text) = text.split_once(") ").unwrap_or(("", text));
    text.chars().take(90).collect()
}

/// Calls of every kind from several threads, until the function is dead or it has been long enough; its death.
fn use_it(function: &Function, guest: &Guest, expect: Expect, calls: &Calls) -> Option<String> {
    let (over, began) = (AtomicBool::new(false), Instant::now());
    let time = if matches!(expect, Ends(_)) { LONGEST } else { TIME };
    std::thread::scope(|scope| {
        let ends = SetAtEnd(&over);
        let going = || !over.load(Ordering::Relaxed);
        let pause = || std::thread::sleep(Duration::from_millis(1));
        scope.spawn(move || {
            while going() {
                calls.make(|| function.bar_read(0, 0x10, &mut [0; 4]));
                calls.make(|| function.bar_write(0, 0x14, &[1; 4]));
                pause();
            }
        });
        scope.spawn(move || {
            while going() {
                calls.make(|| function.config_read(0, &mut [0; 64]));
                calls.make(|| function.config_write(4, &[6, 0]));
                calls.make(|| function.statistics());
                pause();
            }
        });
        scope.spawn(move || {
            let events: Vec<_> = (0..4).map(|_| Event::new().unwrap()).collect();
            let more = SharedMemory::create("more-ram", RAM).unwrap();
            while going() {
                let signallers = events.iter().map(|one| Some(one.signaller().unwrap())).collect();
                let assign = InterruptSetup::Assign { start: 0, signallers };
                calls.make(|| function.set_interrupts(InterruptIndex::Msix, assign));
                let trigger = InterruptSetup::Trigger { start: 0, count: 4 };
                calls.make(|| function.set_interrupts(InterruptIndex::Msix, trigger));
                let (iova, size, offset, writable) = (RAM_BASE + RAM, RAM, 0, true);
                let memory = more.try_clone().unwrap().into();
                let region = GuestRegion { iova, size, memory, offset, writable };
                calls.make(|| guest.container.map(region));
                calls.make(|| guest.container.unmap(iova, size));
                calls.make(|| function.reset());
                pause();
            }
        });
        while function.death().is_none() && began.elapsed() < time {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(ends);
    });
    function.death().map(|death| death.to_string())
}

/// What one that asks for what belongs to others was given: a read of it says so.
fn given(function: &Function, mode: DmaMode) -> Result<String, String> {
    if mode == DmaMode::Direct {
        return Ok(String::new());
    }
    let mut bytes = [0; 8];
    function.bar_read(0, 0, &mut bytes).map_err(|error| error.to_string())?;
    let value = u64::from_le_bytes(bytes);
    let (given, asked) = (value >> 32, value & 0xffff_ffff);
    if given > 0 || asked == 0 {
        return Err(format!("it was given {given} ranges of others in {asked} batches"));
    }
    Ok(format!(", {asked} batches asked for what is others', nothing given"))
}
