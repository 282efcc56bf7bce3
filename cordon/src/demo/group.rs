//! `cordon demo --vfio FIRST --vfio SECOND`: two NVMe controllers of one guest, under I/O at once, while processes
//! of the first are killed, it is detached, and attached again. Nothing of that is seen at the second.
//!
//! Two functions of one IOMMU group have one connection process and one space of DMA addresses, so that this is
//! what they could disturb each other by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::GuestWindow;
use cordon_vmm::{
    Container, DmaMode, Function, Host, HostConfig, PassthroughDevice as _, Recovery, SharedMemory,
};
use ipc::{Access, PciAddress, Window};
use rustix::process::Signal;
use serde_json::json;

use super::vfio::{COMMAND, Handed, MASTER, MEMORY, Victim, leaving_nothing, strike};
use super::{DemoOptions, steps};
use crate::rig::nvme::{Memory, Nvme};
use crate::rig::reporter::Reporter;
use crate::rig::storage::{BUFFER, Storage};
use crate::rig::{QUEUES, RAM, RAM_BASE, alive, vectors};
use crate::{Failure, output};

/// What moves in one round, in bytes.
const ROUND: u64 = 2 << 20;
/// Rounds that the second function makes between two steps, at least.
const ROUNDS: u32 = 2;
/// How long these may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A function's own part of guest memory.
struct Part {
    base: u64,
    window: Window,
}

/// Runs every step on two functions.
pub(super) fn run(
    options: &DemoOptions,
    functions: [PciAddress; 2],
    handed: Handed,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let mut config = options.rig.over("vfio", Recovery::default().with_max_deaths(u32::MAX))?;
    config.vfio_groups = handed;
    leaving_nothing(reporter, || drive(&config, options.kills, functions, reporter))
}

/// Guest memory: a part for each driver, all of it for both functions.
fn parts(container: &Container) -> Result<[Part; 2], Failure> {
    let part = |number: u64| -> Result<Part, Failure> {
        let (base, memory) = (RAM_BASE + number * RAM, SharedMemory::create("guest-ram", RAM)?);
        let window = memory.map_all(Access::ReadWrite)?;
        let memory = memory.into();
        container.map(GuestRegion { iova: base, size: RAM, memory, offset: 0, writable: true })?;
        Ok(Part { base, window })
    };
    Ok([part(0)?, part(1)?])
}

/// A function that is attached, detached also when a step failed.
struct Attached<'h> {
    host: &'h Host,
    function: Arc<Function>,
    windows: Vec<Arc<GuestWindow>>,
}

impl<'h> Attached<'h> {
    fn new(
        host: &'h Host,
        address: PciAddress,
        container: &Arc<Container>,
    ) -> Result<Self, Failure> {
        let function = host.attach(address, container, None)?;
        let attached = Self { host, windows: function.map_windows()?, function };
        attached.function.config_write(COMMAND, &(MEMORY | MASTER).to_le_bytes())?;
        Ok(attached)
    }

    fn registers(&self) -> Result<&Window, Failure> {
        let first = self.windows.iter().find(|window| (window.bar, window.offset) == (0, 0));
        Ok(first.ok_or("BAR 0 has no window at its start")?.window())
    }

    /// Brings the controller up, and writes and verifies round after round until `is_done` says so, which is
    /// told how many there were; the bytes.
    fn under_load(
        &self,
        part: &Part,
        mut is_done: impl FnMut(u32) -> Result<bool, Failure>,
    ) -> Result<u64, Failure> {
        let events = vectors(&self.function, QUEUES + 1)?;
        let is_alive = || alive(&self.function);
        let mut memory = Memory::new(&part.window, part.base);
        let mut nvme = Nvme::start(self.registers()?, &mut memory, &events, &is_alive)?;
        let storage = Storage { memory: &part.window, buffer: memory.take(BUFFER)? };
        let (mut bytes, mut rounds) = (0, 0);
        while !is_done(rounds)? {
            bytes += storage.write_and_verify(&mut nvme, u64::from(rounds), ROUND)?;
            rounds += 1;
        }
        nvme.stop()?;
        Ok(bytes)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.windows.clear();
        self.host.detach(&self.function);
    }
}

/// The second function as the steps of the first see it.
struct Second<'a> {
    function: &'a Function,
    rounds: AtomicU32,
    bytes: AtomicU64,
    /// It is to end, or has.
    ends: AtomicBool,
    reporter: &'a Reporter,
}

impl Second<'_> {
    /// Waits until it made some rounds more from here on: its I/O goes on, and is verified.
    fn goes_on(&self) -> Result<(), Failure> {
        let (from, began) = (self.rounds.load(Ordering::Relaxed), Instant::now());
        while self.rounds.load(Ordering::Relaxed) < from + ROUNDS {
            self.reporter.check()?;
            if self.ends.load(Ordering::Relaxed) {
                return Err("the I/O of the second function ended".into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("the second function made no progress in {PATIENCE:?}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (replaced, away) = (self.function.replacements(), self.function.returns());
        if (replaced, away) != (0, 0) {
            return Err(format!(
                "the second function was disturbed: {replaced} processes replaced, {away} times away"
            )
            .into());
        }
        Ok(())
    }
}

/// Why a function is refused for a guest of its own, if it is.
fn refusal(host: &Host, address: PciAddress) -> Result<Option<String>, Failure> {
    let alone = Arc::new(Container::new(DmaMode::Direct));
    match host.attach(address, &alone, None) {
        Ok(function) => {
            host.detach(&function);
            Ok(None)
        }
        Err(error) if error.to_string().contains("another guest's memory") => {
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn drive(
    config: &HostConfig,
    kills: u32,
    [first, second]: [PciAddress; 2],
    reporter: &Reporter,
) -> Result<serde_json::Value, Failure> {
    reporter.step(&format!("Attaching {first} and {second} to one guest"))?;
    let host = Host::new(config.clone());
    let container = Arc::new(Container::new(DmaMode::Direct));
    let parts = parts(&container)?;
    let attached = Attached::new(&host, first, &container)?;
    let stranger = refusal(&host, second)?;
    let other = Attached::new(&host, second, &container)?;
    let process = other.function.connection().pid();
    let shared = attached.function.connection().pid() == process;
    if shared != stranger.is_some() {
        return Err("another guest was let in, or refused for nothing".into());
    }
    if let Some(why) = stranger {
        reporter.say(&format!("for another guest: {why}"))?;
    }
    reporter.say(match shared {
        true => "they are of one IOMMU group: one connection process has both",
        false => "each is alone in its IOMMU group: each has a connection process",
    })?;
    steps::tree(&[&attached.function, &other.function], reporter)?;
    let load = Second {
        function: &other.function,
        rounds: AtomicU32::new(0),
        bytes: AtomicU64::new(0),
        ends: AtomicBool::new(false),
        reporter,
    };
    let loaded = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let done = other.under_load(&parts[1], |rounds| {
                load.rounds.store(rounds, Ordering::Relaxed);
                Ok(load.ends.load(Ordering::Relaxed))
            });
            load.ends.store(true, Ordering::Relaxed);
            done.map(|bytes| load.bytes.store(bytes, Ordering::Relaxed))
                .map_err(|error| format!("{second}: {error}"))
        });
        let first = with_the_other(&host, &container, attached, &parts[0], kills, &load, shared);
        load.ends.store(true, Ordering::Relaxed);
        let second = running.join().unwrap_or_else(|_| Err("its thread panicked".to_owned()));
        second.map_err(Failure::from).and(first)
    });
    let bytes = loaded?;
    let (of_second, rounds) = (load.bytes.into_inner(), load.rounds.into_inner());
    reporter.say(&format!(
        "{} of the second function written, read back and compared, in {rounds} rounds",
        output::size(of_second)
    ))?;
    let replaced = other.function.replacements();
    drop(other);
    Ok(json!({
        "ok": true,
        "backend": "vfio",
        "functions": [first.to_string(), second.to_string()],
        "one_process": shared,
        "bytes_verified": [bytes, of_second],
        "kills": kills,
        "replaced_of_second": replaced,
    }))
}

/// What is done with the first function while the second one is under load; the bytes verified on the first.
fn with_the_other(
    host: &Host,
    container: &Arc<Container>,
    attached: Attached<'_>,
    part: &Part,
    kills: u32,
    second: &Second<'_>,
    shared: bool,
) -> Result<u64, Failure> {
    let (reporter, address) = (second.reporter, attached.function.address());
    second.goes_on()?;
    reporter.step(&format!("Killing function processes of {address} under I/O of both"))?;
    let (killed, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let mut bytes = std::thread::scope(|scope| {
        let striker = scope.spawn(|| {
            let strikes = (Victim::Function, Signal::KILL, kills);
            let struck = strike(&attached.function, strikes, &killed, &done);
            done.store(true, Ordering::Relaxed);
            struck
        });
        let moved = attached.under_load(part, |rounds| {
            reporter.check()?;
            Ok(rounds >= ROUNDS && done.load(Ordering::Relaxed))
        });
        done.store(true, Ordering::Relaxed);
        let struck = striker.join().unwrap_or_else(|_| Err("its thread panicked".to_owned()));
        struck.map_err(Failure::from).and(moved)
    })?;
    let replaced = attached.function.replacements();
    reporter.say(&format!("{replaced} replaced; the second function's processes are the same"))?;
    second.goes_on()?;

    reporter.step(&format!("Detaching {address}"))?;
    drop(attached);
    second.goes_on()?;

    reporter.step(&format!("Attaching {address} again"))?;
    let again = Attached::new(host, address, container)?;
    if shared && again.function.connection().pid() != second.function.connection().pid() {
        return Err("it has another connection process than the rest of its group".into());
    }
    bytes += again.under_load(part, |rounds| {
        reporter.check()?;
        Ok(rounds >= ROUNDS)
    })?;
    second.goes_on()?;
    drop(again);
    Ok(bytes)
}
