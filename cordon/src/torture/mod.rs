//! `cordon torture`: function processes are struck at random points while the NVMe function moves
//! verified data and the probe function fires interrupts. Nothing may be lost, corrupted or left.

mod load;
mod size;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::faults::{Fault, Faults, Point, Target, What};
use cordon_vmm::host::SpawnMeter;
use cordon_vmm::{Container, DmaMode, Function, Host, PassthroughDevice as _, Recovery};
use ipc::{Access, Deadline, PciAddress, SharedMemory, Window};
use serde_json::json;

use self::load::{Tally, move_data, take_interrupts};
use self::size::{Growth, Size};
use crate::Failure;
use crate::faults::FaultOptions;
use crate::rig::leftovers::{self, Belongings};
use crate::rig::simulator::Simulator;
use crate::rig::{QUEUES, RAM, RAM_BASE, RigOptions, Voice, alive};

/// What the torture is told.
#[derive(Debug, Args)]
pub(crate) struct TortureOptions {
    /// How often a function process is struck.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    kills: u64,
    /// What strikes it, chosen at random among these.
    #[arg(long = "with", value_enum, value_delimiter = ',', default_values_t = [Blow::Kill])]
    blows: Vec<Blow>,
    /// Which random points: the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep a standby for each function process, and strike only while it waits.
    #[arg(long)]
    standby: bool,
    /// Print JSON lines instead of text; the last one sums up.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faults: FaultOptions,
    #[command(flatten)]
    rig: RigOptions,
}

/// What strikes a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Blow {
    /// kill -9, at any moment.
    Kill,
    /// A stop signal at its next request.
    Stop,
    /// An endless loop at its next request.
    Hang,
    /// Bytes that are no message at its next request.
    Garbage,
    /// Half a message at its next request.
    Truncated,
    /// A closed tube at its next request.
    Closed,
}

/// How long a replacement may take before the torture calls it lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// A process that does not answer for this long is killed, where processes are stopped or hang.
const DEADLINE: Duration = Duration::from_millis(600);
/// Data moved before the first look at what processes hold.
const WARM_BYTES: u64 = 64 << 20;
/// Spawns that a recovery is compared with, spread over the run.
const SPAWNS: u64 = 50;

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

/// What is tortured.
struct Rack<'r> {
    options: &'r TortureOptions,
    proxies: &'r [Arc<Function>; 2],
    faults: &'r Faults,
    simulator: &'r Simulator,
    meter: &'r SpawnMeter,
    tally: &'r Tally,
    voice: &'r Voice,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    spawns: Vec<Duration>,
    growth: Vec<Growth>,
}

/// Runs the torture; an error unless everything but kills and recoveries is zero.
pub(crate) fn run(options: &TortureOptions) -> Result<(), Failure> {
    let voice = Voice::new(options.json);
    let faults = options.faults.arm()?;
    for report in faults.report() {
        if report.fault.process == Target::Connection || !report.fault.what.is_deadly() {
            let why = "the torture's driver survives the deaths of function processes only";
            return Err(format!("fault '{}': {why}", report.fault).into());
        }
    }
    let (nvme, probe): (PciAddress, PciAddress) = ("01:00.0".parse()?, "01:00.1".parse()?);
    let free: PciAddress = "02:00.0".parse()?;
    let devices = [
        format!("{nvme}=nvme,queues={QUEUES},size=64M"),
        format!("{probe}=probe"),
        format!("{free}=probe"),
    ];
    // The deaths are ours: no number of them is a crash loop.
    let standby = options.standby;
    let recovery = Recovery::default().with_max_deaths(u32::MAX).with_standby(standby);
    let by_kills_only = options.blows == [Blow::Kill] && !options.faults.any();
    let armed = (!by_kills_only).then(|| Arc::clone(&faults));
    let (simulator, mut config) = options.rig.start(&devices, recovery, armed)?;
    if !by_kills_only {
        config.deadlines.call = DEADLINE;
    }
    let before = Belongings::now()?;

    voice.step(&format!("Striking {} times, seed {}", options.kills, options.seed));
    let meter = SpawnMeter::start(&config, free)?;
    let host = Host::new(config);
    let container = Arc::new(Container::new(DmaMode::Direct));
    let ram = SharedMemory::create("guest-ram", RAM)?;
    let window = ram.map_all(Access::ReadWrite)?;
    container.map(GuestRegion {
        iova: RAM_BASE,
        size: RAM,
        memory: ram.into(),
        offset: 0,
        writable: true,
    })?;
    let proxies = [host.attach(nvme, &container, None)?, host.attach(probe, &container, None)?];
    let tally = Tally::default();
    let rack = Rack {
        options,
        proxies: &proxies,
        faults: &faults,
        simulator: &simulator,
        meter: &meter,
        tally: &tally,
        voice: &voice,
    };
    let tortured = rack.torture(&window);
    for proxy in &proxies {
        host.detach(proxy);
    }
    meter.stop()?;
    let mut outcome = tortured?;
    let mut recoveries: Vec<Duration> = proxies.iter().flat_map(|one| one.recoveries()).collect();
    let replaced: u64 = proxies.iter().map(|one| one.replacements()).sum();
    drop((proxies, container));
    let left = leftovers::list(&before, &simulator)?;
    for one in &left {
        voice.say(&format!("left: {one}"));
    }
    for one in &outcome.growth {
        voice.say(&one.to_string());
    }
    voice.data(&json!({ "processes": outcome.growth }));
    let leaked = left.len() + outcome.growth.iter().filter(|one| one.is_leak()).count();
    let planned = rack_report(&faults, &voice);
    let spawns = &mut outcome.spawns;
    let sum = Sum { options, voice: &voice, tally: &tally, replaced, planned, leaked };
    sum.up(&mut recoveries, spawns)
}

/// Says which faults of the plan fired; how many did.
fn rack_report(faults: &Faults, voice: &Voice) -> u64 {
    let mut planned = 0;
    for report in faults.report().into_iter().filter(|report| report.fault.request.is_some()) {
        match report.fired {
            Some(pid) => voice.say(&format!("fired at process {pid}: {}", report.fault)),
            None => voice.say(&format!("never fired: {}", report.fault)),
        }
        planned += u64::from(report.fired.is_some());
        voice.data(&json!({ "fault": report }));
    }
    planned
}

/// The value below which `percent` of the times are; in microseconds.
fn percentile(times: &mut [Duration], percent: usize) -> u128 {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0, Duration::as_micros)
}

struct Sum<'r> {
    options: &'r TortureOptions,
    voice: &'r Voice,
    tally: &'r Tally,
    replaced: u64,
    planned: u64,
    leaked: usize,
}

impl Sum<'_> {
    fn up(&self, recoveries: &mut [Duration], spawns: &mut [Duration]) -> Result<(), Failure> {
        let Self { options, voice, tally, replaced, planned, leaked } = *self;
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
        voice.say(&format!("a bare spawn to ready under the same load: {spawn} us median"));
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
        // A planned fault may strike the process that a kill is about to strike.
        let expected = options.kills..=options.kills + planned;
        if tally.trouble() > 0 || leaked > 0 || !expected.contains(&replaced) {
            return Err("the deaths were not invisible".into());
        }
        Ok(())
    }
}

impl Rack<'_> {
    /// Strikes under load.
    fn torture(&self, ram: &Window) -> Result<Outcome, Failure> {
        let [disk, probe] = self.proxies;
        for proxy in [disk, probe] {
            proxy.config_write(0x04, &[0x06, 0x00])?;
        }
        std::thread::scope(|scope| {
            let storage = scope.spawn(|| move_data(disk, ram, self.tally));
            let interrupts = scope.spawn(|| take_interrupts(probe, self.tally));
            let struck = self.strike_all();
            self.tally.end();
            for (what, worker) in [("NVMe", storage), ("probe", interrupts)] {
                match worker.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.voice.say(&format!("{what}: {error}")),
                    Err(_) => return Err(format!("the {what} worker panicked").into()),
                }
            }
            struck
        })
    }

    fn strike_all(&self) -> Result<Outcome, Failure> {
        let kills = self.options.kills;
        let mut random = Random(self.options.seed | 1);
        let names = ["cordon", "connection process", "dext-sim"];
        let connection = self.proxies[0].connection();
        let watched = [std::process::id(), connection.pid(), self.simulator.pid()];
        let mut outcome = Outcome::default();
        // What a run needs anyway is there after its first tenth.
        let warm = kills.div_ceil(10);
        let mut first = None;
        let mut last_word = Instant::now();
        for number in 0..kills {
            if !self.tally.goes_on() {
                return Ok(outcome);
            }
            if number == warm {
                // And after the first rounds of data.
                let _ = wait(|| self.tally.bytes.load(Ordering::Relaxed) >= WARM_BYTES);
                first = Some(watched.map(Size::of));
            }
            if number.is_multiple_of(kills.div_ceil(SPAWNS)) {
                outcome.spawns.push(self.meter.measure()?);
            }
            if last_word.elapsed() > Duration::from_secs(5) {
                self.voice.say(&format!("{number} kills"));
                last_word = Instant::now();
            }
            let proxy = &self.proxies[usize::from(random.next().is_multiple_of(2))];
            if self.options.standby {
                wait(|| proxy.has_standby())
                    .map_err(|()| format!("{} has no standby", proxy.address()))?;
            }
            std::thread::sleep(Duration::from_micros(random.next() % 4000));
            let before = proxy.replacements();
            self.strike(proxy, &mut random)?;
            let back = wait(|| proxy.replacements() > before || alive(proxy).is_err());
            alive(proxy)?;
            back.map_err(|()| format!("{} did not come back", proxy.address()))?;
        }
        if let Some(first) = first {
            let sizes = first.into_iter().zip(watched.map(Size::of));
            let grown = |(name, (first, last))| Growth::between(name, first, last);
            outcome.growth = names.into_iter().zip(sizes).map(grown).collect();
        }
        Ok(outcome)
    }

    fn strike(&self, proxy: &Function, random: &mut Random) -> Result<(), Failure> {
        use rustix::process::{Pid, Signal, kill_process};
        let blows = &self.options.blows;
        let pick = |random: &mut Random, count: usize| -> usize {
            usize::try_from(random.next() % count as u64).unwrap_or_default()
        };
        let what = match blows[pick(random, blows.len())] {
            Blow::Kill => {
                let pid = i32::try_from(proxy.pid()).ok().and_then(Pid::from_raw);
                return Ok(kill_process(pid.ok_or("no process")?, Signal::KILL)?);
            }
            Blow::Stop => What::Stop,
            Blow::Hang => What::Hang,
            Blow::Garbage => What::Garbage,
            Blow::Truncated => What::Truncated,
            Blow::Closed => What::Closed,
        };
        let when = [Point::Before, Point::During, Point::After][pick(random, 3)];
        let (process, device) = (Target::Function, Some(proxy.address()));
        self.faults.add(Fault {
            process,
            device,
            request: None,
            nth: 1,
            when,
            after_ms: 0,
            what,
        })?;
        // One request to strike at, and one to notice that a process stopped after the first.
        for _ in 0..2 {
            proxy.config_read(0, &mut [0; 4])?;
        }
        Ok(())
    }
}

/// Waits until something holds.
fn wait(holds: impl Fn() -> bool) -> Result<(), ()> {
    let deadline = Deadline::after(PATIENCE);
    while !holds() {
        if deadline.passed() {
            return Err(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
