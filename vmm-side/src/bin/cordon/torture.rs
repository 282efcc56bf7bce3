//! `cordon torture`: function processes are killed at random points while the NVMe function moves
//! verified data and the probe function fires interrupts. Nothing may be lost, corrupted or left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ipc::{Access, Deadline, PciAddress, SharedMemory, Window};
use serde_json::json;
use vmm_side::container::GuestRegion;
use vmm_side::{Container, DmaMode, Host, PassthroughDevice as _, Proxy, Recovery};

use crate::Failure;
use crate::rig::leftovers::{self, Belongings};
use crate::rig::nvme::{Memory, Nvme};
use crate::rig::simulator::Simulator;
use crate::rig::storage::{Corrupt, Storage};
use crate::rig::{QUEUES, RAM, RAM_BASE, RigOptions, Voice, alive, register_window, vectors};

/// What the torture is told.
#[derive(Debug, Args)]
pub(crate) struct TortureOptions {
    /// How often a function process is killed.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    kills: u64,
    /// Which random points: the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON lines instead of text; the last one sums up.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rig: RigOptions,
}

/// Bytes that are written, read back and compared in one round.
const ROUND: u64 = 4 << 20;
/// How long a replacement may take before the torture calls it lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Spawns that a recovery is compared with.
const SPAWNS: usize = 50;

/// What went wrong, and how much went right.
#[derive(Default)]
struct Tally {
    ended: AtomicBool,
    bytes: AtomicU64,
    interrupts: AtomicU64,
    corrupt_bytes: AtomicU64,
    io_errors: AtomicU64,
    lost_interrupts: AtomicU64,
}

impl Tally {
    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    fn trouble(&self) -> u64 {
        let all = [&self.corrupt_bytes, &self.io_errors, &self.lost_interrupts];
        all.iter().map(|one| one.load(Ordering::Relaxed)).sum()
    }
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Runs the torture; an error unless everything but kills and recoveries is zero.
pub(crate) fn run(options: &TortureOptions) -> Result<(), Failure> {
    let voice = Voice::new(options.json);
    let (nvme, probe): (PciAddress, PciAddress) = ("01:00.0".parse()?, "01:00.1".parse()?);
    let devices = [format!("{nvme}=nvme,queues={QUEUES},size=64M"), format!("{probe}=probe")];
    // The kills are ours: no number of them is a crash loop.
    let recovery = Recovery { most_deaths: u32::MAX, ..Recovery::default() };
    let (simulator, config) = options.rig.start(&devices, recovery)?;
    let before = Belongings::now()?;

    voice.step("Measuring what a bare spawn takes");
    let mut spawns = Host::measure_spawn(&config, probe, SPAWNS)?;
    voice.step(&format!("Killing {} times, seed {}", options.kills, options.seed));
    let host = Host::new(config);
    let container = Arc::new(Container::new(DmaMode::Direct));
    let ram = SharedMemory::create("guest-ram", RAM)?;
    let window = ram.map_all(Access::ReadWrite)?;
    container.map(GuestRegion {
        iova: RAM_BASE,
        size: RAM,
        memory: ram,
        offset: 0,
        writable: true,
    })?;
    let proxies = [host.attach(nvme, &container, None)?, host.attach(probe, &container, None)?];
    let tally = Tally::default();
    let tortured = torture(options, &proxies, &window, &simulator, &tally, &voice);
    for proxy in &proxies {
        host.detach(proxy);
    }
    let growth = tortured?;
    let mut recoveries: Vec<Duration> = proxies.iter().flat_map(|one| one.recoveries()).collect();
    let replaced: u64 = proxies.iter().map(|one| one.replacements()).sum();
    drop((proxies, container));
    let mut left = leftovers::list(&before, &simulator)?;
    left.extend(growth);
    for one in &left {
        voice.say(&format!("left: {one}"));
    }
    sum_up(options, &voice, &tally, replaced, left.len(), &mut recoveries, &mut spawns)
}

/// The value below which `percent` of the times are; in microseconds.
fn percentile(times: &mut [Duration], percent: usize) -> u128 {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0, Duration::as_micros)
}

fn sum_up(
    options: &TortureOptions,
    voice: &Voice,
    tally: &Tally,
    replaced: u64,
    leaked: usize,
    recoveries: &mut [Duration],
    spawns: &mut [Duration],
) -> Result<(), Failure> {
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(recoveries, percent));
    let spawn = percentile(spawns, 50);
    voice.step("Done");
    voice.say(&format!("{} kills, {replaced} recoveries", options.kills));
    voice.say(&format!(
        "{} MiB moved and compared, {} interrupts taken",
        load(&tally.bytes) >> 20,
        load(&tally.interrupts)
    ));
    voice.say(&format!(
        "{} bytes corrupt, {} I/O errors, {} interrupts lost, {leaked} things leaked",
        load(&tally.corrupt_bytes),
        load(&tally.io_errors),
        load(&tally.lost_interrupts)
    ));
    voice.say(&format!("recovery: {p50} us median, {p99} us p99, {max} us at most"));
    voice.say(&format!("a bare spawn to ready in the same run: {spawn} us median"));
    voice.data(&json!({
        "kills": options.kills,
        "recoveries": replaced,
        "corrupt_bytes": load(&tally.corrupt_bytes),
        "io_errors": load(&tally.io_errors),
        "lost_interrupts": load(&tally.lost_interrupts),
        "leaked": leaked,
        "recovery_us": { "p50": p50, "p99": p99, "max": max },
        "spawn_us": { "p50": spawn },
    }));
    if tally.trouble() > 0 || leaked > 0 || replaced != options.kills {
        return Err("the deaths were not invisible".into());
    }
    Ok(())
}

/// Kills under load; what grew meanwhile.
fn torture(
    options: &TortureOptions,
    [disk, probe]: &[Arc<Proxy>; 2],
    ram: &Window,
    simulator: &Simulator,
    tally: &Tally,
    voice: &Voice,
) -> Result<Vec<String>, Failure> {
    for proxy in [disk, probe] {
        proxy.config_write(0x04, &[0x06, 0x00])?;
    }
    std::thread::scope(|scope| {
        let storage = scope.spawn(|| {
            let moved = move_data(disk, ram, tally).map_err(|error| {
                let corrupt = error.downcast_ref::<Corrupt>().map_or(0, |corrupt| corrupt.count);
                tally.corrupt_bytes.fetch_add(corrupt as u64, Ordering::Relaxed);
                tally.io_errors.fetch_add(u64::from(corrupt == 0), Ordering::Relaxed);
                error.to_string()
            });
            tally.ended.store(true, Ordering::Relaxed);
            moved
        });
        let interrupts = scope.spawn(|| {
            let taken = take_interrupts(probe, tally).map_err(|error| error.to_string());
            tally.ended.store(true, Ordering::Relaxed);
            taken
        });
        let killed = kill(options, [disk, probe], simulator, tally, voice);
        tally.ended.store(true, Ordering::Relaxed);
        for (what, worker) in [("NVMe", storage), ("probe", interrupts)] {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => voice.say(&format!("{what}: {error}")),
                Err(_) => return Err(format!("the {what} worker panicked").into()),
            }
        }
        killed
    })
}

fn kill(
    options: &TortureOptions,
    proxies: [&Arc<Proxy>; 2],
    simulator: &Simulator,
    tally: &Tally,
    voice: &Voice,
) -> Result<Vec<String>, Failure> {
    use rustix::process::{Pid, Signal, kill_process};
    let mut random = Random(options.seed | 1);
    let watched = [std::process::id(), proxies[0].connection().pid(), simulator.pid()];
    // What a run needs anyway is there after its first tenth.
    let warm = options.kills.div_ceil(10);
    let mut first = None;
    let mut last_word = Instant::now();
    for number in 0..options.kills {
        if !tally.goes_on() {
            return Ok(Vec::new());
        }
        if number == warm {
            first = Some(watched.map(Size::of));
        }
        if last_word.elapsed() > Duration::from_secs(5) {
            voice.say(&format!("{number} kills"));
            last_word = Instant::now();
        }
        let proxy = proxies[usize::from(random.next().is_multiple_of(2))];
        std::thread::sleep(Duration::from_micros(random.next() % 4000));
        let before = proxy.replacements();
        let pid = i32::try_from(proxy.pid()).ok().and_then(Pid::from_raw).ok_or("no process")?;
        kill_process(pid, Signal::KILL)?;
        let deadline = Deadline::after(PATIENCE);
        while proxy.replacements() == before {
            alive(proxy)?;
            if deadline.passed() {
                return Err(format!("{} did not come back", proxy.address()).into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    let Some(first) = first else { return Ok(Vec::new()) };
    let names = ["cordon", "the connection process", "dext-sim"];
    let grown = names.iter().zip(first).zip(watched.map(Size::of));
    Ok(grown.filter_map(|((name, first), now)| now.above(&first, name)).collect())
}

/// How much a process holds.
struct Size {
    descriptors: usize,
    mappings: usize,
    kib: u64,
}

impl Size {
    /// Zeroes for what this user may not look at (a confined process, unless one is root).
    fn of(pid: u32) -> Self {
        let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let status = proc("status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Self {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
            mappings: proc("maps").map_or(0, |maps| maps.lines().count()),
            kib: number.unwrap_or(0),
        }
    }

    /// What is more than `first`, beyond what the moment explains: a replacement under way holds a
    /// dozen descriptors, an allocator keeps some memory.
    fn above(&self, first: &Self, name: &str) -> Option<String> {
        let grown = self.descriptors > first.descriptors + 24
            || self.mappings > first.mappings + 24
            || self.kib > first.kib + 8 * 1024;
        grown.then(|| {
            format!(
                "{name} grew: {} to {} descriptors, {} to {} mappings, {} to {} KiB",
                first.descriptors,
                self.descriptors,
                first.mappings,
                self.mappings,
                first.kib,
                self.kib
            )
        })
    }
}

/// Writes, reads back and compares, round after round with new content.
fn move_data(disk: &Arc<Proxy>, ram: &Window, tally: &Tally) -> Result<(), Failure> {
    let registers = register_window(disk)?;
    let events = vectors(disk, QUEUES + 1)?;
    let mut memory = Memory::new(ram, RAM_BASE);
    let alive = || alive(disk);
    let mut nvme = Nvme::start(&registers, &mut memory, &events, &alive)?;
    let storage = Storage { memory: ram, buffer: memory.take(crate::rig::storage::BUFFER)? };
    let mut seed = 0;
    while tally.goes_on() {
        seed += 1;
        let bytes = storage.write_and_verify(&mut nvme, seed, ROUND)?;
        tally.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    nvme.stop()
}

/// Fires one vector after the other and takes each; trapped writes and reads in between.
fn take_interrupts(probe: &Arc<Proxy>, tally: &Tally) -> Result<(), Failure> {
    let registers = register_window(probe)?;
    let count = usize::from(probe.vectors());
    let events = vectors(probe, count)?;
    let mut number = 0u32;
    while tally.goes_on() {
        number = number.wrapping_add(1).max(1);
        let vector = usize::try_from(number)? % count;
        events[vector].clear()?;
        registers.write(0x64, u32::try_from(vector)?)?;
        registers.write(0x68, 1u32)?;
        registers.store_u32(0x6c, number)?;
        if !events[vector].wait(Deadline::after(PATIENCE))? {
            tally.lost_interrupts.fetch_add(1, Ordering::Relaxed);
            return Err(format!("vector {vector} did not come").into());
        }
        tally.interrupts.fetch_add(1, Ordering::Relaxed);
        let mut back = [0; 4];
        let written = probe.bar_write(0, 0x10, &number.to_le_bytes());
        let read = written.and_then(|()| probe.bar_read(0, 0x10, &mut back));
        if read.is_err() || back != number.to_le_bytes() {
            tally.io_errors.fetch_add(1, Ordering::Relaxed);
            return Err(format!("a trapped access failed: {read:?}, {back:02x?}").into());
        }
    }
    Ok(())
}
