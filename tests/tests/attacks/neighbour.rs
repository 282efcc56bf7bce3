//! A function that nobody attacks, and whose guest works all the time: it has its device copy memory, waits
//! for the interrupt, compares every byte, and reads back what it wrote by trapped accesses.

use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cordon_tests::vfio_user::{Client, map, ram, words};
use cordon_tests::{RAM, RAM_BASE};
use cordon_vfio_user::protocol::command::{DMA_MAP, SET_IRQS};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{Function, InterruptIndex, PassthroughDevice as _};
use ipc::{Access, Deadline, Event, Window};

/// A pause between operations, so that a neighbour is no attack of its own.
const PAUSE: Duration = Duration::from_millis(1);
/// After that an operation has failed, and standing still is an error.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one copy, and where in guest memory they are.
const BYTES: usize = 4096;
const SOURCE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;
const VECTORS: u16 = 4;

#[derive(Default)]
struct Tally {
    over: AtomicBool,
    samples: Mutex<Vec<Duration>>,
    errors: Mutex<Vec<String>>,
}

/// The load of a function. Ended on drop.
pub(crate) struct Neighbour {
    tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Works on `function`, a probe whose guest has `ram` at [`RAM_BASE`].
    pub(crate) fn of(function: &Arc<Function>, ram: &Arc<Window>) -> Self {
        let (function, ram) = (Arc::clone(function), Arc::clone(ram));
        Self::start(move || {
            let registers = function.windows().unwrap()[0].map().unwrap();
            let events = events();
            let signallers = events.iter().map(|one| Some(one.signaller().unwrap())).collect();
            let setup = InterruptSetup::Assign { start: 0, signallers };
            function.set_interrupts(InterruptIndex::Msix, setup).unwrap();
            function.config_write(4, &[6, 0]).unwrap();
            let mut driver = Linked { function, registers };
            move |number| operation(&mut driver, &ram, &events, number)
        })
    }

    /// Works on the probe that is served at `path`.
    pub(crate) fn at(path: &Path) -> Self {
        let path = path.to_owned();
        Self::start(move || {
            let mut client = Client::negotiated(&path);
            let memory = ram(RAM);
            let reply = client.ask(DMA_MAP, &map(3, 0, RAM_BASE, RAM), &[memory.as_fd()]);
            assert_eq!(reply.error, 0);
            let events = events();
            let signallers: Vec<_> = events.iter().map(|one| one.signaller().unwrap()).collect();
            let handles: Vec<_> = signallers.iter().map(|one| one.as_fd()).collect();
            let install = words(&[20, 0x24, 2, 0, VECTORS.into()]);
            assert_eq!(client.ask(SET_IRQS, &install, &handles).error, 0);
            client.master_bus();
            let ram = memory.map_all(Access::ReadWrite).unwrap();
            move |number| operation(&mut client, &ram, &events, number)
        })
    }

    fn start<O: FnMut(u32) -> Result<(), String>>(
        set_up: impl FnOnce() -> O + Send + 'static,
    ) -> Self {
        let tally = Arc::new(Tally::default());
        let into = Arc::clone(&tally);
        let work = move || {
            let mut operation = set_up();
            for number in 1.. {
                if into.over.load(Ordering::Relaxed) {
                    break;
                }
                let began = Instant::now();
                let done = catch_unwind(AssertUnwindSafe(|| operation(number)));
                into.samples.lock().unwrap().push(began.elapsed());
                if let Err(error) = done.unwrap_or_else(|_| Err("it panicked".to_owned())) {
                    into.errors.lock().unwrap().push(error);
                    std::thread::sleep(Duration::from_millis(100));
                }
                std::thread::sleep(PAUSE);
            }
        };
        Self { tally, thread: Some(std::thread::spawn(work)) }
    }

    /// How long its operations took since the last time, and what went wrong.
    pub(crate) fn take(&self) -> (Vec<Duration>, Vec<String>) {
        let samples = std::mem::take(&mut *self.tally.samples.lock().unwrap());
        (samples, std::mem::take(&mut *self.tally.errors.lock().unwrap()))
    }

    /// Waits until it has done so many operations since it was last asked, for as long as it goes on.
    pub(crate) fn wait_for(&self, operations: usize) {
        let mut last = (0, Instant::now());
        while self.tally.samples.lock().unwrap().len() < operations && last.1.elapsed() < TIMEOUT {
            let now = self.tally.samples.lock().unwrap().len();
            if now > last.0 {
                last = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.tally.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the neighbour panicked");
        }
    }
}

fn events() -> Vec<Event> {
    (0..VECTORS).map(|_| Event::new().unwrap()).collect()
}

/// A probe's registers.
trait Driver {
    /// A store to a register.
    fn store(&mut self, at: u64, value: u32);
    /// A load from one.
    fn load(&mut self, at: u64) -> u32;
    /// Writes a register and reads it back by trapped accesses; then the ids.
    fn trapped(&mut self, value: u32) -> (u32, [u8; 4]);
}

struct Linked {
    function: Arc<Function>,
    registers: Window,
}

impl Driver for Linked {
    fn store(&mut self, at: u64, value: u32) {
        self.registers.store_u32(at, value).unwrap();
    }

    fn load(&mut self, at: u64) -> u32 {
        self.registers.load_u32(at).unwrap()
    }

    fn trapped(&mut self, value: u32) -> (u32, [u8; 4]) {
        let (mut back, mut ids) = ([0; 4], [0; 4]);
        self.function.bar_write(0, 0x10, &value.to_le_bytes()).unwrap();
        self.function.bar_read(0, 0x10, &mut back).unwrap();
        self.function.config_read(0, &mut ids).unwrap();
        (u32::from_le_bytes(back), ids)
    }
}

impl Driver for Client {
    fn store(&mut self, at: u64, value: u32) {
        self.write(0, at, &value.to_le_bytes());
    }

    fn load(&mut self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(0, at, 4).try_into().unwrap())
    }

    fn trapped(&mut self, value: u32) -> (u32, [u8; 4]) {
        self.store(0x10, value);
        (self.load(0x10), self.read(7, 0, 4).try_into().unwrap())
    }
}

/// Another pattern for each number.
fn pattern(number: u32) -> Vec<u8> {
    let mut state = u64::from(number) | 1 << 40;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..BYTES / 8).flat_map(word).collect()
}

fn operation(
    driver: &mut impl Driver,
    ram: &Window,
    events: &[Event],
    number: u32,
) -> Result<(), String> {
    let expected = pattern(number);
    ram.copy_in(SOURCE, &expected).unwrap();
    ram.copy_in(TARGET, &[0; BYTES]).unwrap();
    let vector = number % u32::from(VECTORS);
    let event = &events[usize::try_from(vector).unwrap()];
    event.clear().unwrap();
    for (at, value) in [
        (0x40, u32::try_from(RAM_BASE + SOURCE).unwrap()),
        (0x44, 0),
        (0x48, u32::try_from(RAM_BASE + TARGET).unwrap()),
        (0x4c, 0),
        (0x50, u32::try_from(BYTES).unwrap()),
        (0x54, vector),
        (0x58, number),
    ] {
        driver.store(at, value);
    }
    if !event.wait(Deadline::after(TIMEOUT)).unwrap() {
        return Err(format!("no interrupt {vector} of copy {number}"));
    }
    let (done, status) = (driver.load(0x5c), driver.load(0x60));
    if (done, status) != (number, 0) {
        return Err(format!("copy {number} ended as {done} with status {status}"));
    }
    let mut came = vec![0; BYTES];
    ram.copy_out(TARGET, &mut came).unwrap();
    if came != expected {
        return Err(format!("copy {number} brought something else"));
    }
    match driver.trapped(number) {
        (back, [0xd0, 0xc0, 2, 0]) if back == number => Ok(()),
        other => Err(format!("trapped accesses after copy {number} read {other:x?}")),
    }
}
